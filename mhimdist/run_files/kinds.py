"""The kinds of files that say a whole run, cross-validation or sweep, by the command that runs them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mhimdist.config.nearest import did_you_mean
from mhimdist.config.options import Options
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.errors import ConfigError
from mhimdist.search.options import Sweep

KindName = Literal["train", "cross-validate", "tune"]
SCHEMA_FILE = "mhimdist.schema.json"
SPACE = "space"
_TRAIN_FIRST = ("train.epochs", "train.optimizer.learning_rate", "train.bags_per_step")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        options: the class of its settings.
        noun: what it describes.
        first: the settings that people change first, by dotted path; they are live in a new file.
        defaults: defaults that differ from those of the class; the command has them, too.
        has_space: whether it states a search space.
    """

    options: type[Options]
    noun: str
    first: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    has_space: bool = False


KINDS: dict[str, Kind] = {
    "train": Kind(
        CrossValidation,
        "one run: the first fold with one seed",
        ("name", "data", "protocol", "folds", "run_folds", "seeds", "gpus_per_run", *_TRAIN_FIRST),
        {"run_folds": 1, "seeds": (2021,)},
    ),
    "cross-validate": Kind(
        CrossValidation,
        "a cross-validation: folds x seeds of one configuration",
        ("name", "data", "protocol", "folds", "seeds", "cpus_per_run", "gpus_per_run", *_TRAIN_FIRST),
    ),
    "tune": Kind(
        Sweep,
        "a sweep: a search for a better configuration",
        ("name", "data", "protocol", "folds", "num_trials", "sampler", "gpus_per_run", *_TRAIN_FIRST),
        has_space=True,
    ),
}


def kind_of(kind: str) -> Kind:
    """The kind of files that a command runs.

    Raises:
        ConfigError: no command runs files of that name.
    """
    if kind not in KINDS:
        raise ConfigError(f"no kind of file {kind!r}{did_you_mean(kind, KINDS)}; valid: {', '.join(KINDS)}")
    return KINDS[kind]
