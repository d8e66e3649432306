"""What `data_prep.shard` can be asked for, as a function and as a command."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from data_prep.command_line import add_options, chosen
from data_prep.readers.stated import NOTHING_STATED, Stated
from data_prep.settings import Metavar, Settings, whole
from data_prep.writing.skipped import SKIPPED_NAME


def _names(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


def _renames(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(old and new for old, _, new in pairs) or len({old for old, _, _ in pairs}) < len(pairs):
        raise ValueError(f"expected OLD=NEW,OLD=NEW,..., got {value!r}")
    return {old: new for old, _, new in pairs}


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""Several names; as text, with a comma between them: a name may hold anything else."""

Renames = Annotated[dict[str, str], BeforeValidator(_renames)]
"""New names by old ones; as text, OLD=NEW with a comma between them."""


class ShardOptions(Settings):
    """How features of slides and their labels become shards."""

    features: Annotated[Path, Metavar("PATH")] = Field(
        description="folder of CLAM, TRIDENT or STAMP, or one with a .pt, .h5, .npy, .npz or .zarr a slide, "
        "also in folders below, or with WebDataset shards or Parquet files of bags; what a file is, its "
        "content says"
    )
    labels: Annotated[Path | None, Metavar("TABLE")] = Field(
        None,
        description="CSV, TSV or Parquet with slide, label and, if slides share patients, case (or the like: "
        "slide_id, case_id, patient, ...); without a header, two columns are slide and label (default: what "
        "WebDataset shards or Parquet files say)",
    )
    out: Annotated[Path, Metavar("DIR")] = Field(
        description="folder to make; must not exist, but for --append"
    )
    append: bool = Field(False, description="add the slides that --out does not have, as further shards")
    name: str | None = Field(None, description="name of the data set, for reports (default: that of --out)")
    classes: Annotated[Names | None, Metavar("NAME,NAME,...")] = Field(
        None,
        description="class names in the order of their indices (default: as in the shards that say the "
        "labels, else by number if all labels are whole numbers, else by name)",
    )
    class_map: Annotated[Renames | None, Metavar("OLD=NEW,...")] = Field(
        None, description="rename classes of the table; several may become one"
    )
    slide_column: Annotated[str | None, Metavar("NAME")] = Field(
        None, description="column of the slide, or its number from 1, if it is not found"
    )
    label_column: Annotated[str | None, Metavar("NAME")] = Field(
        None, description="column of the label, or its number from 1, if it is not found"
    )
    case_column: Annotated[str | None, Metavar("NAME")] = Field(
        None, description="column of the case, or its number from 1, if it is not found"
    )
    slides: Annotated[Path | None, Metavar("TABLE")] = Field(
        None,
        description="second table, of slide and case, where --labels is a table of case and label",
    )
    case_from: Literal["tcga"] | None = Field(
        None,
        description="take the case of a slide from its name: of TCGA's, the first 12 characters",
    )
    skip_unmatched: bool = Field(
        False,
        description="pass over slides without features and features without a label, and name them",
    )
    skip_bad: bool = Field(
        False,
        description="leave out slides whose features cannot be used (empty, NaN, damaged, of another width "
        f"than most), count them, and list them in {SKIPPED_NAME}",
    )
    stated: Stated = NOTHING_STATED
    dtype: Literal["float16", "bfloat16", "float32"] | None = Field(
        None,
        description="how features are stored (default: float16, or as the data set appended to)",
    )
    shard_bytes: Annotated[int, whole(1), Metavar("N")] = Field(
        2**30, description="size in bytes at which a new shard begins"
    )
    seed: Annotated[int, whole(), Metavar("N")] = Field(0, description="of the order of bags over shards")
    workers: Annotated[Annotated[int, whole(1)] | None, Metavar("N")] = Field(
        None,
        description="shards written at a time; the bytes are the same (default: as many as this machine has "
        "cores, or the Ray cluster that the command is submitted to)",
    )
    description: Annotated[str, Metavar("TEXT")] = Field(
        "", description="where the features come from, for the manifest"
    )
    synthetic: bool = Field(False, description="record that the features are made up")

    @classmethod
    def from_command_line(cls, arguments: Sequence[str] | None = None) -> Self:
        """The options of this process, or of `arguments`.

        Raises:
            SystemExit: argparse refuses an option, after it named it, or showed the help.
        """
        return chosen(cls, parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m data_prep.shard",
        description="Turn features of slides and a table of labels into checked shards. Interrupted, the "
        "same command goes on with the shards that are finished.",
        epilog="On a Ray cluster: ray job submit --working-dir . -- python -m data_prep.shard ...; its nodes "
        "must see the paths.",
    )
    add_options(made, ShardOptions)
    return made
