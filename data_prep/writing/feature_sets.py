"""Several feature sets of the same slides: the bags of each that are written, the same slides in all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.readers.sources import Source, some
from data_prep.tables.labels import SlideLabel
from data_prep.writing.plan import PlannedBag, ShardPlan, plan_shards
from data_prep.writing.selection import matched, not_in
from data_prep.writing.skipped import BadBag
from mhimdist.data.feature_sets import COLUMN
from mhimdist.data.manifest import Manifest
from mhimdist.errors import ConfigError, DataError


@dataclass(frozen=True)
class Selected:
    """The slides of one feature set that are new to the data set.

    Attributes:
        table: their labels.
        sources: their features by slide.
        before: the set in the data set that they are appended to; None if it has no such set.
    """

    table: list[SlideLabel]
    sources: dict[str, Source]
    before: Manifest | None


def refuse_other_names(names: Sequence[str], before: Manifest | None, out: Path) -> None:
    """Refuse to mix named feature sets with features that have no name.

    Raises:
        ConfigError: the data set to append to has names and the new features do not, or the reverse.
    """
    if before is None or bool(before.feature_sets) == (names != [""]):
        return
    if before.feature_sets:
        known = " ".join(f"{name}=PATH" for name in before.feature_sets)
        raise ConfigError(f"features: {out} has named feature sets: give --features {known}")
    raise ConfigError(
        f"features: the features in {out} have no name, so sets cannot be added; shard them again with "
        f"--features NAME=PATH {' '.join(f'{name}=PATH' for name in names)}"
    )


def select(
    table: list[SlideLabel],
    sources: Mapping[str, dict[str, Source]],
    before: Manifest | None,
    *,
    features: Mapping[str, Path],
    labels: Path | None,
    skip: bool,
) -> tuple[dict[str, Selected], tuple[str, ...]]:
    """Select the slides of each set; all sets then have the same.

    Args:
        table: the labels.
        sources: the features by set and slide.
        before: the data set to append to, if there is one.
        features: where each set is, for messages.
        labels: where the labels are, for messages; None if the features state them.
        skip: whether to pass over slides that have a label, or features in a set, and not all of them.

    Returns:
        The new slides of each set, and all slides that are passed over.

    Raises:
        DataError: a set lacks slides that have a label, or that another set has.
        LabelError: a slide with features has no label, or the data set has it with another.
    """
    old = before.each if before is not None else {}
    chosen, passed_over = {}, list[str]()
    for name, found in sources.items():
        part = old.get(name)
        if old:  # a new set is compared with another one's labels
            new_table, new_sources = not_in(table, found, part or next(iter(old.values())))
            rows, there = (new_table, new_sources) if part is not None else (table, dict(found))
        else:
            rows, there = table, dict(found)
        place = features[name]
        kept, passed = matched(rows, there, place, labels or place, skip=skip)
        passed_over += [slide for slide in passed if slide not in passed_over]
        chosen[name] = Selected(kept, there, part)
    if len({*chosen, *old}) == 1:
        return chosen, tuple(passed_over)
    slides = {
        name: {row.slide for row in (chosen[name].table if name in chosen else ())}
        | set(old[name].rows["slide"].to_pylist() if name in old else ())
        for name in {**old, **chosen}
    }
    common = set.intersection(*slides.values())
    everything = set.union(*slides.values())
    held = {slide for part in old.values() for slide in part.rows["slide"].to_pylist()}
    for name, own in slides.items():
        lacking = sorted(everything - own if not skip else held - own)
        if lacking:
            way = "give its features of them" if name in chosen else f"give {name}=PATH, too"
            raise DataError(
                f"feature set {name!r} lacks {len(lacking)} slides that others have: {some(lacking)}; every "
                f"set needs all slides: {way}{'' if held & set(lacking) else ', or --skip-unmatched'}"
            )
    passed_over += [slide for slide in sorted(everything - common) if slide not in passed_over]
    return {
        name: replace(each, table=[row for row in each.table if row.slide in common])
        for name, each in chosen.items()
    }, tuple(passed_over)


def named(bags: Sequence[PlannedBag], name: str) -> list[PlannedBag]:
    """The plans of the same bags in a named set, whose name stands for the encoder if no file states one."""
    if not name:
        return list(bags)
    made = []
    for bag in bags:
        said = json.loads(bag.json)
        text = json.dumps(said | {"encoder": said["encoder"] or name}).encode()
        made.append(
            replace(
                bag,
                columns=bag.columns | {COLUMN: name},
                json=text,
                num_bytes=bag.num_bytes | {"json": len(text)},
            )
        )
    return made


def planned_in_all(
    sets: Mapping[str, tuple[list[PlannedBag], Sequence[BadBag]]],
) -> dict[str, list[PlannedBag]]:
    """The bags of each set without those that cannot be used in another set."""
    bad = {bag.slide for _, bags in sets.values() for bag in bags}
    return {
        name: [bag for bag in bags if bag.columns["slide"] not in bad] for name, (bags, _) in sets.items()
    }


def fill(sets: Mapping[str, Sequence[PlannedBag]], shard_bytes: int, first: int) -> list[ShardPlan]:
    """The shards of all sets, one set after the other, as `plan.plan_shards` fills them."""
    plans: list[ShardPlan] = []
    for bags in sets.values():
        plans += plan_shards(bags, shard_bytes, first=first + len(plans))
    return plans


def without(plans: Sequence[ShardPlan], worse: Sequence[BadBag]) -> list[ShardPlan]:
    """The plans without slides that turned out bad in one set while they were written.

    Every other bag stays in the shard that it was planned for, so the others need not be written again.
    """
    slides = {bag.slide for bag in worse}
    kept = []
    for plan in plans:
        bags = tuple(bag for bag in plan.bags if bag.columns["slide"] not in slides)
        if len(bags) == len(plan.bags):
            kept.append(plan)
        elif bags:
            kept.append(ShardPlan(plan.name, bags, sum(bag.tar_bytes for bag in bags)))
    return kept
