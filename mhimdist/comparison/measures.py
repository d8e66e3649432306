"""Paired tests of two sides whose measures are no AUC and no accuracy: concordance, kappa, Pearson's r.

`pairs.paired_tests` does the same for classes. Both return `Outcome`s, which the verdict and its tables read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mhimdist.comparison.pairs import Outcome
from mhimdist.errors import ComparisonError, UndefinedError
from mhimdist.statistics.bootstrap import Weighed, mean_of
from mhimdist.statistics.paired import FoldValue, Place, bootstrap_tests, folds_test
from mhimdist.statistics.results import Tested


@dataclass(frozen=True)
class Measured:
    """A network's measures of its test bags.

    Attributes:
        seed, fold: which one it is; None where that is not known.
        keys: names of the test bags.
        weighed: the measures, as functions of weights.
        num_train: number of training bags; None if it is not known.
    """

    seed: int | None
    fold: int | None
    keys: Sequence[str]
    weighed: Weighed
    num_train: int | None = None

    @cached_property
    def values(self) -> dict[str, float | None]:
        """The measures of all test bags."""
        return self.weighed.once()


def measure_tests(
    first: Sequence[Measured],
    second: Sequence[Measured],
    headings: Mapping[str, str],
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[Outcome]:
    """All tests of a pair on the same bags: per measure, the paired bootstrap and the corrected t over folds.

    Args:
        first, second: the networks of each side.
        headings: the measures to test, and what tables call them.
        level: confidence level of the intervals, in (0, 1).
        num_resamples: resamples of the cases.
        seed: seed of the resamples.

    Raises:
        ComparisonError: the two sides did not test the same bags.
    """
    if (one := _keys(first)) != (other := _keys(second)):
        raise ComparisonError(
            f"expected the same test slides, got {len(one)} and {len(other)}, of which {len(one ^ other)} "
            "are in one only; --common compares those that both tested"
        )
    sides = [[network.weighed for network in side] for side in (first, second)]
    means = [mean_of(side) for side in sides]
    refused = ""
    try:
        tested = bootstrap_tests(*sides, num_resamples=num_resamples, level=level, seed=seed)
    except UndefinedError as error:
        tested, refused = {}, str(error)
    found = []
    for name, heading in headings.items():
        values = means[0].get(name), means[1].get(name)
        why = refused or "the measure of a network is undefined, or is so in most resamples"
        found.append(_outcome("bootstrap", heading, values, tested.get(name), why))
        over_folds, why = None, ""
        try:
            over_folds = folds_test(_by_place(first, name), _by_place(second, name), level=level)
        except UndefinedError as error:
            why = str(error)
        found.append(_outcome("corrected t", heading, values, over_folds, why))
    return found


def _outcome(
    test: str, metric: str, values: tuple[float | None, float | None], tested: Tested | None, why: str
) -> Outcome:
    note = f"not made: {why}" if tested is None else tested.note
    return Outcome(test, metric, *values, tested=tested, note=note)


def _keys(side: Sequence[Measured]) -> set[str]:
    return {key for network in side for key in network.keys}


def _by_place(side: Sequence[Measured], name: str) -> dict[Place, FoldValue]:
    return {
        (each.seed, each.fold): FoldValue(
            frozenset(each.keys), each.values.get(name), len(each.keys), each.num_train or 1
        )
        for each in side
        if each.fold is not None
    }
