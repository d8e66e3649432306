"""What the user says of all features, where their files do not."""

import argparse
from dataclasses import dataclass
from typing import Any

from data_prep.fields import FEATURES, SIDE_ARRAYS


@dataclass(frozen=True)
class Stated:
    """What the user says of all features.

    Attributes:
        feature_key: the array of features, where it has none of the names of `FEATURES`.
        encoder: the network that computed them.
        patch_size: edge of a patch in pixels.
        level: of the slide's pyramid, from 0.
    """

    feature_key: str | None = None
    encoder: str | None = None
    patch_size: int | None = None
    level: int | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the array of features, of which a file should hold one."""
        return FEATURES if self.feature_key is None else (self.feature_key,)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that are read."""
        return (*self.features, *SIDE_ARRAYS)

    @property
    def details(self) -> dict[str, Any]:
        """Those of `DETAILS` that are stated."""
        stated = {"encoder": self.encoder, "patch_size": self.patch_size, "level": self.level}
        return {name: value for name, value in stated.items() if value is not None}


NOTHING_STATED = Stated()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Stated` to a command."""
    parser.add_argument(
        "--feature-key",
        metavar="NAME",
        help=f"array of the features in a file, if it is not called {', '.join(FEATURES)}",
    )
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="network that computed the features, if their files do not say (.pt, .npy, CLAM)",
    )
    parser.add_argument(
        "--patch-size", type=_whole, metavar="PIXELS", help="edge of a patch, if the files do not say"
    )
    parser.add_argument(
        "--level", type=_whole, metavar="N", help="level of the slide's pyramid, if the files do not say"
    )


def stated_by(options: argparse.Namespace) -> Stated:
    """What the options say."""
    return Stated(options.feature_key, options.encoder, options.patch_size, options.level)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)
