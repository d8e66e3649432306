"""Feature sets: the features of several encoders of the same slides, in one data set, each under its name.

A shard holds bags of one set, so a reader touches, and fetches, only the bytes of the set that it was asked
for. The manifest then has a row per bag and set, and a column that names the set; a data set of one encoder
without a name has neither. All sets have the same slides, of the same cases and classes; each has its own
instances, width and dtype.

`uni+virchow2` names two sets side by side: instance by instance, where their coordinates agree.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mhimdist.data.targets import TARGETS
from mhimdist.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from mhimdist.data.manifest import DatasetInfo

COLUMN = "feature_set"
FIELD = pa.field(COLUMN, pa.string(), nullable=False)
NAME = r"[A-Za-z0-9_-]+"
"""The name of a set is part of a member's name, which webdataset cuts at dots, and `+` joins two."""
TOGETHER = "+"
_SAME = ("slide", "case", "label", TARGETS)


def is_name(text: str) -> bool:
    """Whether a text can name a feature set."""
    return re.fullmatch(NAME, text) is not None


def names_in(rows: pa.Table) -> tuple[str, ...]:
    """The names of the feature sets, in the order of their shards; empty if features have no name."""
    return tuple(rows[COLUMN].unique().to_pylist()) if COLUMN in rows.column_names else ()


def part(info: "DatasetInfo", rows: pa.Table, name: str) -> "tuple[DatasetInfo, pa.Table]":
    """The description and the rows of one set, as those of a data set that has only this one, without a name.

    Both are the same whatever other sets there are, and so is the hash of the manifest that they make.
    """
    own = rows.filter(pc.equal(rows[COLUMN], name)).drop_columns([COLUMN])
    used = set(own["shard"].unique().to_pylist())
    standardized = {"": info.standardized[name]} if name in info.standardized else {}
    shards = tuple(shard for shard in info.shards if shard.name in used)
    return info.model_copy(update={"shards": shards, "standardized": standardized}), own


def chosen(names: Sequence[str], asked: str | None, where: str) -> tuple[str, ...]:
    """The sets that `--features` asks for; empty for the features of a data set whose features have no name.

    Args:
        names: the sets of the data set.
        asked: a name, or several joined by `+`; None for the only set.
        where: names the data set in messages.

    Raises:
        ConfigError: the data set has no such set, or has several and none was asked for.
    """
    listing = ", ".join(names)
    if not names:
        if asked is not None:
            raise ConfigError(
                f"features: expected none for {where}, whose features have no name, got {asked!r}; leave it "
                "out"
            )
        return ()
    if asked is None:
        if len(names) > 1:
            raise ConfigError(
                f"features: expected one of the feature sets of {where}, {listing}, got none; give "
                f"--features {names[0]}, or {TOGETHER.join(names[:2])} for both side by side"
            )
        return tuple(names)
    wanted = tuple(asked.split(TOGETHER))
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"features: {where} has no feature set {name!r}; it has {listing}{hint}")
    return wanted


def check(info: "DatasetInfo", rows: pa.Table, check_one: "Callable[[pa.Table, DatasetInfo], None]") -> None:
    """Refuse sets that differ in their slides, or that are each not what a data set may be.

    Args:
        info, rows: of the manifest.
        check_one: checks the rows and the description of a single set.

    Raises:
        ManifestError: they contradict each other.
    """
    names = names_in(rows)
    if bad := [name for name in names if not is_name(name)]:
        raise ManifestError(f"it has a feature set named {bad[0]!r}, expected letters, digits, _ or -")
    if extra := info.standardized.keys() - set(names):
        raise ManifestError(f"it standardises {sorted(extra)[0]!r}, which is not among its sets")
    listed = pa.array([shard.name for shard in info.shards], pa.string())
    place_N = pc.index_in(rows["shard"], listed).fill_null(len(listed)).to_numpy()
    if (place_N[1:] < place_N[:-1]).any():
        raise ManifestError("its rows are not in the order of the shards")
    pairs = rows.select(["shard", COLUMN]).group_by(["shard", COLUMN]).aggregate([])
    if len(pairs) > len(pairs["shard"].unique()):
        raise ManifestError("it has a shard with bags of two feature sets")
    if idle := set(listed.to_pylist()) - set(pairs["shard"].to_pylist()):
        raise ManifestError(f"{sorted(idle)[0]} is listed, but no bag is in it")
    first: pa.Table | None = None
    for name in names:
        one, own = part(info, rows, name)
        try:
            check_one(own, one)
        except ManifestError as error:
            raise ManifestError(f"feature set {name!r}: {error}") from None
        same = (
            own.select([name for name in _SAME if name in own.column_names]).sort_by("slide").combine_chunks()
        )
        if first is None:
            first = same
        elif not same.equals(first):
            slides, others = (set(table["slide"].to_pylist()) for table in (same, first))
            lacking = sorted(slides ^ others)
            what = (
                f"slide {lacking[0]!r} is in one of them only"
                if lacking
                else "cases, labels or targets differ"
            )
            raise ManifestError(f"feature sets {names[0]!r} and {name!r} have different slides: {what}")
