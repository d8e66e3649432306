"""Two sides on the same slides: whether they can be compared, and the paired tests.

Dimensions: N slides, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from mhimdist.comparison.entries import Entry
from mhimdist.errors import ComparisonError, UndefinedError
from mhimdist.statistics import metrics
from mhimdist.statistics.curves import predicted_classes
from mhimdist.statistics.delong import delong_test
from mhimdist.statistics.metrics import Scores, auc_difference_interval
from mhimdist.statistics.paired import FoldValue, Place, accuracy_test, folds_test
from mhimdist.statistics.results import Tested

SHOWN = 3
"""How many slides an error names."""


@dataclass(frozen=True)
class Outcome:
    """One test of one pair.

    Attributes:
        test: its name, such as "DeLong".
        metric: what it compares: "AUC" or "accuracy".
        first, second: the metric of each side; None if it is undefined.
        tested: the difference, its interval and its p-value; None if the test cannot be made.
        p_adjusted: Holm's p-value over all pairs of the comparison; None with one pair, or without a p.
        note: how the test was formed, or why it cannot be made.
    """

    test: str
    metric: str
    first: float | None
    second: float | None
    tested: Tested | None
    note: str
    p_adjusted: float | None = None

    @property
    def p(self) -> float | None:
        """The p-value that counts: the adjusted one if there are several pairs."""
        if self.tested is None:
            return None
        return self.tested.p if self.p_adjusted is None else self.p_adjusted


REFITTED = {"refit", "nested"}
"""Protocols of one comparison: inner folds choose under both, and under nested the settings as well."""


def on_the_same_slides(entries: Sequence[Entry], *, common: bool) -> tuple[list[Entry], list[str]]:
    """The sides restricted to the slides that all of them tested, and what a reader must know of that.

    Args:
        entries: the sides, at least two.
        common: compare on the common slides where data sets or test slides differ; otherwise refuse them.

    Raises:
        ComparisonError: protocols or classes differ, a slide has another label or case, the data sets or the
            test slides differ without `common`, or no slide is common.
    """
    first, notes = entries[0], []
    tested = [_slides(entry) for entry in entries]
    for entry, slides in zip(entries[1:], tested[1:], strict=True):
        _check_alike(first, entry)
        if entry.data_digest != first.data_digest and _of_other_features(first, entry):
            notes.append(
                f"{entry.name} reads other features of the same slides than {first.name}: "
                f"{entry.features}, not {first.features}."
            )
        elif entry.data_digest != first.data_digest:
            where = f"{first.name}: {first.dataset} {first.data_digest[:8] or 'unknown'}"
            other = f"{entry.name}: {entry.dataset} {entry.data_digest[:8] or 'unknown'}"
            if not common:
                raise ComparisonError(
                    f"expected one data set, got {where}; {other}; --common compares the slides that are in "
                    "both under the same name"
                )
            notes.append(f"The data sets differ ({where}; {other}): slides are matched by name.")
        if slides.keys() != tested[0].keys() and not common:
            raise ComparisonError(
                f"expected the same test slides, got {len(tested[0])} of {first.name} and {len(slides)} of "
                f"{entry.name}: {_difference(tested[0], slides)}; --common compares those that both tested"
            )
    what = "class" if first.networks[0].targets_NK is None else "targets"
    kept = set(tested[0]).intersection(*tested[1:])
    if not kept:
        raise ComparisonError(f"{', '.join(entry.name for entry in entries)} tested no slide in common")
    for entry, slides in zip(entries[1:], tested[1:], strict=True):
        for slide in sorted(kept):
            if slides[slide] != tested[0][slide]:
                raise ComparisonError(
                    f"slide {slide!r} is case {tested[0][slide][0]!r} of {what} {tested[0][slide][1]} for "
                    f"{first.name}, and case {slides[slide][0]!r} of {what} {slides[slide][1]} for "
                    f"{entry.name}"
                )
    most = max(map(len, tested))
    if len(kept) < most:
        notes.append(f"Compared on the {len(kept)} test slides that all have in common, of up to {most}.")
    return [_only(entry, kept) for entry in entries], notes


def _of_other_features(one: Entry, two: Entry) -> bool:
    """Whether two sides differ in their data because they read different feature sets of one data set.

    Slides, cases and labels are compared beside this.
    """
    names = {one.features, two.features}
    is_one_set = one.folder == two.folder or one.dataset == two.dataset
    return len(names) == 2 and None not in names and is_one_set


def _only(entry: Entry, kept: set[str]) -> Entry:
    networks = [network.only(kept) for network in entry.networks]
    return replace(entry, networks=tuple(network for network in networks if network is not None))


def _check_alike(first: Entry, other: Entry) -> None:
    if first.protocol != other.protocol and {first.protocol, other.protocol} != REFITTED:
        raise ComparisonError(
            f"expected one protocol, got {first.protocol} for {first.name} and {other.protocol} for "
            f"{other.name}: protocols select epochs and thresholds on other bags (under paper on the test "
            "fold), so their figures differ for that alone; choose with --protocol"
        )
    tasks = [_means(entry) for entry in (first, other)]
    if tasks[0] != tasks[1]:
        raise ComparisonError(
            f"expected one task, got {tasks[0]} for {first.name} and {tasks[1]} for {other.name}"
        )
    if first.networks[0].targets_NK is not None:
        return
    num_classes = {len(n.scores.probabilities_NC[0]) for entry in (first, other) for n in entry.networks}
    if len(num_classes) > 1 or (first.classes and other.classes and first.classes != other.classes):
        raise ComparisonError(
            f"expected the same classes, got {', '.join(first.classes) or min(num_classes)} for {first.name} "
            f"and {', '.join(other.classes) or max(num_classes)} for {other.name}"
        )


def _means(entry: Entry) -> str:
    """What the labels mean, in words."""
    if entry.task is None:
        return "classification"
    info = entry.task.info
    columns = f" of {', '.join(info.columns)}" if info.columns else ""
    return f"{entry.task.name}{columns}{f' in {info.unit}' if info.unit else ''}"


def _slides(entry: Entry) -> dict[str, tuple[str, object]]:
    """Case and label, or targets, of every slide that any network tested."""
    return {
        key: (case, truth)
        for network in entry.networks
        for key, case, truth in zip(network.keys, network.scores.cases, network.truth, strict=True)
    }


def _difference(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    texts = []
    for what, slides in (
        ("only in the first", one.keys() - other),
        ("only in the second", other.keys() - one),
    ):
        if slides:
            named = ", ".join(map(repr, sorted(slides)[:SHOWN]))
            texts.append(f"{len(slides)} {what}, such as {named}")
    return "; ".join(texts)


def paired_tests(
    first: Entry, second: Entry, *, level: float, num_resamples: int, seed: int
) -> list[Outcome]:
    """All tests of a pair on the same slides.

    Args:
        first, second: see `on_the_same_slides`.
        level: confidence level of the intervals, in (0, 1).
        num_resamples: resamples of the bootstrap.
        seed: seed of the resamples.
    """
    one, two = ([network.scores for network in entry.networks] for entry in (first, second))
    aucs = _mean_auc(one), _mean_auc(two)

    def bootstrapped() -> Tested:
        ends = auc_difference_interval(one, two, num_resamples=num_resamples, level=level, seed=seed)
        if ends is None or aucs[0] is None or aucs[1] is None:
            raise UndefinedError("the AUC of a network is undefined, or is so in most resamples")
        note = f"{num_resamples:,} resamples of cases; no p"
        return Tested(aucs[0] - aucs[1], *ends, None, None, note)

    def delong() -> Tested:
        if None in aucs:
            raise UndefinedError("the AUC of a network is undefined: its test slides lack a class")
        return delong_test(one, two, level=level)

    slides, cases = _order(first)
    right, other = _right(first, slides), _right(second, slides)
    accuracies = float(right.mean()), float(other.mean())
    return [
        _outcome("DeLong", "AUC", aucs, delong),
        _outcome("bootstrap", "AUC", aucs, bootstrapped),
        _outcome("corrected t", "AUC", aucs, lambda: _folds_test(first, second, level)),
        _outcome("McNemar", "accuracy", accuracies, lambda: accuracy_test(right, other, cases, level=level)),
    ]


def _outcome(
    test: str, metric: str, values: tuple[float | None, float | None], make: Callable[[], Tested]
) -> Outcome:
    try:
        tested = make()
    except UndefinedError as error:
        return Outcome(test, metric, *values, tested=None, note=f"not made: {error}")
    return Outcome(test, metric, *values, tested=tested, note=tested.note)


def _mean_auc(parts: Sequence[Scores]) -> float | None:
    """The mean of the networks' AUCs, as in the tables; None if one of them is undefined."""
    values = [metrics.auc(part.labels_N, part.probabilities_NC) for part in parts]
    defined = [value for value in values if value is not None]
    return mean(defined) if len(defined) == len(values) else None


def _order(entry: Entry) -> tuple[list[str], list[str]]:
    """The slides, sorted, and their cases."""
    slides = _slides(entry)
    names = sorted(slides)
    return names, [slides[name][0] for name in names]


def _right(entry: Entry, slides: Sequence[str]) -> np.ndarray:
    """Whether each slide is classified correctly by the mean over the networks that tested it, bool.

    Two classes: by the mean distance of the probability to each network's own threshold. More: by the mean
    probabilities. With one network per slide that is its own decision.
    """
    sums: dict[str, np.ndarray] = {}
    labels: dict[str, int] = {}
    binary = len(entry.networks[0].scores.probabilities_NC[0]) == 2
    for network in entry.networks:
        values_NC = network.scores.probabilities_NC
        if binary:
            threshold = 0.5 if network.threshold is None else network.threshold
            values_NC = np.stack([np.zeros(len(values_NC)), values_NC[:, 1] - threshold], axis=1)
        for key, value_C, label in zip(network.keys, values_NC, network.scores.labels_N, strict=True):
            sums[key] = sums.get(key, 0.0) + value_C
            labels[key] = int(label)
    values_NC = np.stack([sums[slide] for slide in slides])
    predicted_N = predicted_classes(values_NC, 0.0 if binary else None)
    return predicted_N == np.array([labels[slide] for slide in slides])


def _folds_test(first: Entry, second: Entry, level: float) -> Tested:
    """The corrected resampled t-test over the folds and seeds that both sides have.

    Raises:
        UndefinedError: they share fewer than two folds, all shared ones test the same slides, or an AUC is
            undefined.
    """

    def by_place(entry: Entry) -> dict[Place, FoldValue]:
        return {
            (n.seed, n.fold): FoldValue(
                frozenset(n.keys),
                metrics.auc(n.scores.labels_N, n.scores.probabilities_NC),
                n.num_test or 0,
                n.num_train or 1,
            )
            for n in entry.networks
            if n.fold is not None
        }

    return folds_test(by_place(first), by_place(second), level=level)
