"""The options of `python -m data_prep.shard`."""

import argparse
from pathlib import Path

from data_prep import stated
from data_prep.skipped import SKIPPED_NAME
from mhimdist.data.format import FEATURE_DTYPES


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m data_prep.shard",
        description="Turn features of slides and a table of labels into checked shards. Interrupted, the "
        "same command goes on with the shards that are finished.",
        epilog="On a Ray cluster: ray job submit --working-dir . -- python -m data_prep.shard ...; its nodes "
        "must see the paths.",
    )
    made.add_argument(
        "--features",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder of CLAM, TRIDENT or STAMP, or one with a .pt, .h5, .npy, .npz or .zarr a slide, also in "
        "folders below, or with WebDataset shards or Parquet files of bags; what a file is, its content says",
    )
    made.add_argument(
        "--labels",
        type=Path,
        metavar="TABLE",
        help="CSV, TSV or Parquet with slide, label and, if slides share patients, case (or the like: "
        "slide_id, case_id, patient, ...); without a header, two columns are slide and label (default: what "
        "WebDataset shards or Parquet files say)",
    )
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to make; must not exist, but for --append",
    )
    made.add_argument(
        "--append", action="store_true", help="add the slides that --out does not have, as further shards"
    )
    made.add_argument("--name", help="name of the data set, for reports (default: that of --out)")
    made.add_argument(
        "--classes",
        metavar="NAME,NAME,...",
        help="class names in the order of their indices (default: as in the shards that say the labels, else "
        "by number if all labels are whole numbers, else by name)",
    )
    made.add_argument(
        "--class-map",
        type=_mapping,
        metavar="OLD=NEW,...",
        help="rename classes of the table; several may become one",
    )
    for what in ("slide", "label", "case"):
        made.add_argument(
            f"--{what}-column",
            metavar="NAME",
            help=f"column of the {what}, or its number from 1, if it is not found",
        )
    made.add_argument(
        "--slides",
        type=Path,
        metavar="TABLE",
        help="second table, of slide and case, where --labels is a table of case and label",
    )
    made.add_argument(
        "--case-from",
        choices=("tcga",),
        help="take the case of a slide from its name: of TCGA's, the first 12 characters",
    )
    made.add_argument(
        "--skip-unmatched",
        action="store_true",
        help="pass over slides without features and features without a label, and name them",
    )
    made.add_argument(
        "--skip-bad",
        action="store_true",
        help=f"leave out slides whose features cannot be used (empty, NaN, damaged, of another width than "
        f"most), count them, and list them in {SKIPPED_NAME}",
    )
    stated.add_options(made)
    made.add_argument(
        "--dtype",
        choices=FEATURE_DTYPES,
        help="how features are stored (default: float16, or as the data set appended to)",
    )
    made.add_argument(
        "--shard-bytes",
        type=_positive,
        default=2**30,
        metavar="N",
        help="size at which a new shard is begun (default: %(default)s, 1 GiB)",
    )
    made.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the order of bags over shards (default: %(default)s)",
    )
    made.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="shards written at a time; the bytes are the same (default: as many as this machine has cores, "
        "or the Ray cluster that the command is submitted to)",
    )
    made.add_argument(
        "--description", default="", metavar="TEXT", help="where the features come from, for the manifest"
    )
    made.add_argument("--synthetic", action="store_true", help="record that the features are made up")
    return made


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _mapping(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(old and new for old, _, new in pairs) or len({old for old, _, _ in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW,OLD=NEW,..., got {text!r}")
    return {old: new for old, _, new in pairs}
