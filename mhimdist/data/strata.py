"""Strata: the groups of bags with similar targets, by which data sets without classes are divided.

Whatever keeps proportions alike (folds, validation sets, balanced sampling) takes the class of a bag. Bags
with targets have no class, so the writer of shards decides their strata here, from all bags at once, and the
manifest holds these as its classes.

Dimensions: N bags, K targets of a bag.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mhimdist.data.manifest import Manifest
from mhimdist.data.targets import TaskInfo, of_rows

MIN_CASES = 10
"""Fewest cases of a stratum, if it can be chosen: each of ten folds can then test on one of them."""
MOST_BINS = 4
_BIN_NAMES = {
    1: ("all",),
    2: ("low", "high"),
    3: ("low", "middle", "high"),
    4: ("lowest", "low", "high", "highest"),
}
_TIME_NAMES = {
    1: ("",),
    2: ("early", "late"),
    3: ("early", "middle", "late"),
    4: ("first", "second", "third", "last"),
}


def strata(
    task: TaskInfo, targets_NK: np.ndarray, cases: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Divide bags by their targets into groups that each have enough cases for folds.

    - regression: up to four groups of equal size by the value, or by the mean rank in several columns;
    - survival: event or not, and the time, divided at up to three quantiles of the times of events;
    - multilabel: the rarest label that a bag has, leaving out labels of too few cases.

    There are as many groups as leave each `MIN_CASES` cases, but two wherever the targets differ.

    Args:
        task: a task with targets.
        targets_NK: float64 targets of all bags, NaN where one is missing.
        cases: case of every bag.

    Returns:
        The names of the strata, and the stratum of each bag, int64. Every stratum has a bag.
    """
    case_N = np.unique(np.asarray(cases), return_inverse=True)[1]
    if task.name == "multilabel":
        names, stratum_N = _by_label(task.columns, targets_NK, case_N)
    elif task.name == "survival":
        names, stratum_N = _by_event_and_time(targets_NK, case_N)
    else:
        names, stratum_N = _by_value(targets_NK, case_N)
    used, stratum_N = np.unique(stratum_N, return_inverse=True)
    return tuple(names[index] for index in used), stratum_N.astype(np.int64)


def stratified(manifest: Manifest) -> Manifest:
    """The manifest with the strata of all its bags as their classes, if it has targets; otherwise itself."""
    task = manifest.info.task
    if task is None or task.of_classes:
        return manifest
    rows = manifest.rows
    # All feature sets have the same slides: one decides, as if there were no other.
    first = next(iter(manifest.each.values())).rows
    names, first_N = strata(task, of_rows(first, task), first["case"].to_pylist())
    stratum_of = dict(zip(first["slide"].to_pylist(), first_N.tolist(), strict=True))
    stratum_N = [stratum_of[slide] for slide in rows["slide"].to_pylist()]
    index = rows.schema.get_field_index("label")
    rows = rows.set_column(index, rows.schema.field(index), pa.array(stratum_N, pa.int32()))
    return Manifest(manifest.info.model_copy(update={"classes": names}), rows)


def _num_cases(stratum_N: np.ndarray, case_N: np.ndarray) -> dict[int, int]:
    """The number of cases of each stratum that has bags."""
    return {int(each): len(np.unique(case_N[stratum_N == each])) for each in np.unique(stratum_N)}


def _bins(values_N: np.ndarray, of_N: np.ndarray, count: int) -> np.ndarray:
    """The bin of each value between quantiles of some of them; equal values are in the same bin."""
    edges = np.quantile(of_N, np.arange(1, count) / count)
    return np.searchsorted(edges, values_N, side="left")


def _by_value(targets_NK: np.ndarray, case_N: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
    values_N = targets_NK[:, 0]
    if targets_NK.shape[1] > 1:
        rank_NK = np.stack([np.unique(column, return_inverse=True)[1] for column in targets_NK.T], axis=1)
        values_N = (rank_NK / np.maximum(rank_NK.max(axis=0), 1)).mean(axis=1)
    for count in range(MOST_BINS, 2, -1):
        bin_N = _bins(values_N, values_N, count)
        found = _num_cases(bin_N, case_N)
        if len(found) == count and min(found.values()) >= MIN_CASES:
            return _BIN_NAMES[count], bin_N
    bin_N = _bins(values_N, values_N, 2)
    if len(np.unique(bin_N)) == 1:  # half of all values or more are the highest one
        bin_N = (values_N == values_N.max()).astype(np.int64)
    return _BIN_NAMES[2], bin_N


def _by_event_and_time(targets_NK: np.ndarray, case_N: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
    time_N, event_N = targets_NK[:, 0], targets_NK[:, 1].astype(np.int64)
    of_N = time_N[event_N == 1] if event_N.any() else time_N
    for count in range(MOST_BINS, 0, -1):
        bin_N = _bins(time_N, of_N, count)
        stratum_N = (1 - event_N) * count + bin_N
        if count == 1 or min(_num_cases(stratum_N, case_N).values()) >= MIN_CASES:
            break
    if len(np.unique(stratum_N)) == 1:  # all events, or none, of few cases
        count, stratum_N = 2, (1 - event_N) * 2 + _bins(time_N, of_N, 2)
    names = [
        f"{what}, {when}" if when else what for what in ("event", "censored") for when in _TIME_NAMES[count]
    ]
    return names, stratum_N


def _by_label(
    columns: Sequence[str], targets_NK: np.ndarray, case_N: np.ndarray
) -> tuple[Sequence[str], np.ndarray]:
    has_NK = targets_NK == 1
    rarest_first = np.argsort([len(np.unique(case_N[has_N])) for has_N in has_NK.T], kind="stable").tolist()
    none = len(columns)
    used = list(rarest_first)
    while True:
        stratum_N = np.full(len(has_NK), none)
        for label in reversed(used):  # the rarest one last, which then counts
            stratum_N[has_NK[:, label]] = label
        found = _num_cases(stratum_N, case_N)
        small = [label for label in used if found.get(label, 0) < MIN_CASES]
        if len(used) == 1 or not small:
            break
        used.remove(small[0])
    if 0 < found.get(none, 0) < MIN_CASES and len(found) > 2:
        stratum_N[stratum_N == none] = max(found.keys() - {none}, key=lambda label: found[label])
    if len(found) == 1:  # every bag has a label that many have
        rarest = next(label for label in rarest_first if has_NK[:, label].any())
        stratum_N = np.where(has_NK[:, rarest], rarest, none)
    return [*columns, "other" if "other" not in columns else "other bags"], stratum_N
