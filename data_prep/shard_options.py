"""The options of `data_prep.shard`, both of the function and of the command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from data_prep.command_line import read
from data_prep.readers.stated import NOTHING_STATED, Stated
from data_prep.settings import Settings, whole
from data_prep.tables.target_columns import TargetColumns
from data_prep.writing.skipped import SKIPPED_NAME
from mhimdist.config.fields import Inline, Metavar, Several
from mhimdist.data.feature_sets import is_name
from mhimdist.data.targets import TaskName
from mhimdist.errors import ConfigError
from mhimdist.tables.names import composed


def _names(value: Any) -> Any:
    names = value.split(",") if isinstance(value, str) else value
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(map(composed, names)) if is_list else names


def _renames(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = composed(value)
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(old and new for old, _, new in pairs) or len({old for old, _, _ in pairs}) < len(pairs):
        raise ValueError(f"expected OLD=NEW,OLD=NEW,..., got {value!r}")
    return {old: new for old, _, new in pairs}


def features_of(value: Any) -> Any:
    """A path, or paths by the names of feature sets, from what an option or a caller gives.

    Raises:
        ValueError: several values are not all NAME=PATH, or a name is not one or comes twice.
    """
    if isinstance(value, Mapping):
        sets = [(str(name), Path(path)) for name, path in value.items()]
    else:
        given = [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
        pairs = [item.partition("=") for item in given]
        alone = len(given) == 1 and not is_name(pairs[0][0])
        if alone or (len(given) == 1 and (not pairs[0][1] or Path(given[0]).exists())):
            return Path(given[0])
        if bad := [item for item, (_, _, path) in zip(given, pairs, strict=True) if not path]:
            raise ValueError(f"expected a path, or several as NAME=PATH NAME=PATH ..., got {bad[0]!r}")
        sets = [(name, Path(path)) for name, _, path in pairs]
    if bad := [name for name, _ in sets if not is_name(name)]:
        raise ValueError(f"expected names of feature sets in letters, digits, _ and -, got {bad[0]!r}")
    if not sets or len(dict(sets)) < len(sets):
        raise ValueError(
            f"expected each feature set once, got {', '.join(name for name, _ in sets) or 'none'}"
        )
    return dict(sets)


Features = Annotated[Path | dict[str, Path], BeforeValidator(features_of)]
"""A path of features, or paths by the names of feature sets."""

Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""Several names; as text, separated by commas: a name may hold any other character."""

Renames = Annotated[dict[str, str], BeforeValidator(_renames)]
"""New names by old ones; as text, pairs OLD=NEW separated by commas."""


class ShardOptions(Settings):
    """Turn features of slides and a table of labels into checked shards.

    After an interruption, the same command resumes and keeps the shards that are finished. On a Ray cluster:
    ray job submit --working-dir . -- python -m data_prep.shard ...; every node must see the paths.
    """

    FIRST: ClassVar[tuple[str, ...]] = (
        *("features", "labels", "out", "append", "name", "classes", "task", "case_from", "skip_unmatched"),
        *("skip_bad", "workers"),
    )
    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Input and output": ("features", "labels", "slides", "out", "append", "name", "description"),
        "Labels": ("task", "classes", "class_map", "unit", "case_from"),
        "Columns of the tables": (
            *("slide_column", "label_column", "case_column", "target_column", "time_column", "event_column"),
        ),
        "What to leave out": ("skip_unmatched", "skip_bad", "stated.drop_coords"),
        "What files do not say": (
            *("stated.feature_key", "stated.encoder", "stated.patch_size", "stated.level", "synthetic"),
        ),
        "Features": ("standardize", "standardize_as", "dtype"),
        "Writing": ("shard_bytes", "seed", "workers"),
    }

    features: Annotated[Features, Metavar("[NAME=]PATH"), Several()] = Field(
        description="folder that CLAM, TRIDENT or STAMP wrote; or any folder, with its subfolders, of one "
        ".pt, .h5, .npy, .npz or .zarr per slide, of WebDataset shards, or of Parquet files of bags; the "
        "content of a file decides how it is read. For several encoders of the same slides, NAME=PATH of "
        "each, such as uni=PATH virchow2=PATH: training then chooses one, or uni+virchow2 side by side"
    )
    labels: Annotated[Path | None, Metavar("TABLE")] = Field(
        None,
        description="table with the columns slide, label and, if patients have more than one slide, case (or "
        "usual names such as slide_id, case_id or patient), in CSV, TSV or other text, .xlsx, .xls, .ods or "
        "Parquet; two columns without a header are slide and label (default: what WebDataset shards or "
        "Parquet files state)",
    )
    out: Annotated[Path, Metavar("DIR")] = Field(
        description="folder to make; must not exist, unless you give --append"
    )
    append: bool = Field(False, description="add the slides that --out lacks, as further shards")
    name: str | None = Field(None, description="name of the data set in reports (default: the name of --out)")
    classes: Annotated[Names | None, Metavar("NAME,NAME,...")] = Field(
        None,
        description="class names in the order of their indices (default: the order in the shards that state "
        "the labels; otherwise by number if all labels are numbers, and by name if not)",
    )
    class_map: Annotated[Renames | None, Metavar("OLD=NEW,...")] = Field(
        None,
        description="new names of classes; several classes may become one. Of events and of labels of "
        "multilabel: what words mean, as in relapse=1,stable=0",
    )
    task: TaskName | None = Field(
        None,
        description="what the table says of a slide: one of several classes; an ordinal grade, whose order "
        "--classes gives unless the names say it (0, 1, 2; G1, G2; low, intermediate, high); several labels "
        "of 0 or 1 (multilabel); one or more numbers (regression); a time and whether the event happened "
        "then (survival) (default: classification, or the task of the data set to append to or of the shards "
        "to read)",
    )
    target_column: Annotated[Names | None, Metavar("NAME,NAME,...")] = Field(
        None,
        description="columns of the labels (multilabel; cells may be empty) or of the numbers (regression), "
        "by name or by number from 1",
    )
    time_column: Annotated[Names | None, Metavar("NAME[,NAME]")] = Field(
        None,
        description="column of the time until the event or until the patient was last seen, by name or by "
        "number from 1, if it has an unusual name; two columns are the time of the event and the time last "
        "seen, as days_to_death and days_to_last_follow_up of the GDC, which are found",
    )
    event_column: Annotated[str | None, Metavar("NAME")] = Field(
        None,
        description="column that says whether the event happened (0 or 1, dead or alive, 1:DECEASED, ...), "
        "by name or by number from 1, if it has an unusual name; in a column named censored or censorship, "
        "1 says that it did not",
    )
    unit: Annotated[str | None, Metavar("NAME")] = Field(
        None,
        description="unit of the time or the numbers, such as months (default: what the name of the time's "
        "column says)",
    )
    slide_column: Annotated[str | None, Metavar("NAME")] = Field(
        None, description="column of the slide, by name or by number from 1, if it has an unusual name"
    )
    label_column: Annotated[str | None, Metavar("NAME")] = Field(
        None, description="column of the label, by name or by number from 1, if it has an unusual name"
    )
    case_column: Annotated[str | None, Metavar("NAME")] = Field(
        None,
        description="column of the case, by name or by number from 1, if it has an unusual name; if only one "
        "of the tables --labels and --slides has it, usual names are looked for in the other",
    )
    slides: Annotated[Path | None, Metavar("TABLE")] = Field(
        None,
        description="second table, of slide and case, if --labels is a table of case and label",
    )
    case_from: Literal["tcga"] | None = Field(
        None,
        description="take the case from the name of the slide; tcga takes the first 12 characters",
    )
    skip_unmatched: bool = Field(
        False,
        description="pass over slides without features and features without a label, and report them; leave "
        "out slides whose row has no label or case (empty, NA, ...) or a time of 0 or less, and list them in "
        f"{SKIPPED_NAME}",
    )
    skip_bad: bool = Field(
        False,
        description="leave out slides whose features cannot be used (empty, NaN, damaged, of another width "
        f"than most), report how many, and list them in {SKIPPED_NAME}",
    )
    standardize: bool = Field(
        False,
        description="subtract from every feature its mean, and divide by its standard deviation, over all "
        "instances of all bags, whatever their labels. Bags that a fold tests later count in both; the "
        "manifest keeps them. Meant for measured features, such as those of data_prep.classic",
    )
    standardize_as: Annotated[Path | None, Metavar("DIR")] = Field(
        None,
        description="standardise by the mean and deviation of this data set, as for slides that a model "
        "trained on it shall predict",
    )
    stated: Annotated[Stated, Inline()] = NOTHING_STATED
    dtype: Literal["float16", "bfloat16", "float32"] | None = Field(
        None,
        description="stored type of the features (default: float16, or that of the data set to append to)",
    )
    shard_bytes: Annotated[int, whole(1), Metavar("N")] = Field(
        2**30, description="largest size in bytes of a shard that holds more than one bag"
    )
    seed: Annotated[int, whole(), Metavar("N")] = Field(
        0, description="seed of the order in which bags fill the shards"
    )
    workers: Annotated[Annotated[int, whole(1)] | None, Metavar("N")] = Field(
        None,
        description="number of shards written at a time; the bytes do not depend on it (default: one per "
        "core of this machine, or of the Ray cluster that runs the command)",
    )
    description: Annotated[str, Metavar("TEXT")] = Field(
        "", description="where the features come from, for the manifest"
    )
    synthetic: bool = Field(False, description="record in the manifest that the features are synthetic")

    @model_validator(mode="after")
    def _encoder_of_all(self) -> Self:
        if "" not in self.sets and self.stated.encoder is not None:
            raise ValueError(
                "encoder: the name of each feature set stands for its encoder; leave --encoder out"
            )
        return self

    @property
    def sets(self) -> dict[str, Path]:
        """The folder of every feature set by its name; that of features without a name under ""."""
        return {"": self.features} if isinstance(self.features, Path) else self.features

    def target_columns(self, task: TaskName | None) -> TargetColumns | None:
        """The columns of targets to read; None for a task of classes.

        Args:
            task: the task, if the user did not choose one.

        Raises:
            ConfigError: an option names a column that the task does not have.
        """
        task = self.task or task or "classification"
        of_task = {
            "time_column": ("survival",),
            "event_column": ("survival",),
            "target_column": ("multilabel", "regression"),
            "unit": ("survival", "regression"),
            "label_column": ("classification", "ordinal"),
            "classes": ("classification", "ordinal"),
        }
        for name, tasks in of_task.items():
            if getattr(self, name) is not None and task not in tasks:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} is for --task {' or '.join(tasks)}; got --task {task}")
        if task in ("classification", "ordinal"):
            return None
        given = self.target_column or (), self.time_column or (), self.event_column, self.unit
        return TargetColumns(task, *given)

    def refuse_columns(self) -> None:
        """Refuse what names a column of a table of labels, where there is none.

        Raises:
            ConfigError: such an option is given; the message names it.
        """
        names = (
            "slide_column",
            "label_column",
            "case_column",
            "target_column",
            "time_column",
            "event_column",
        )
        given = [f"--{name.replace('_', '-')}" for name in (*names, "unit", "slides") if getattr(self, name)]
        if given:
            raise ConfigError(
                f"{', '.join(given)} names what a table of labels has, and there is no --labels: labels "
                "are then those that the features state; give --labels, or leave it out"
            )

    @classmethod
    def from_command_line(cls, arguments: Sequence[str] | None = None) -> Self:
        """The options on the command line of this process, or in `arguments`.

        Raises:
            SystemExit: an option was refused, and named, or the help was shown.
            ConfigError: the options do not fit together.
        """
        return read(cls, arguments, "python -m data_prep.shard")
