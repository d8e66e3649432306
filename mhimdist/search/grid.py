"""The points of a grid over a space, with its conditional parameters."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mhimdist.config.presets import PRESETS, preset
from mhimdist.errors import SweepError
from mhimdist.search.options import Sweep
from mhimdist.search.proposals import Facts, Params, distinct, draw, fixed
from mhimdist.search.random_answers import holds
from mhimdist.search.space import Space, SpaceFunction, value_at

MAX_GRID = 100_000
"""A grid with more points is refused."""


def points(sweep: Sweep, space: SpaceFunction, facts: Facts) -> list[Params]:
    """All points of a grid that meet the space's requirements, in an order set by the sweep's seed.

    The order does not depend on how many points the sweep tries, so the sweep can resume with more.

    Args:
        sweep: says which grid is wanted; there are no points if its sampler is not a grid.
        space: the search space.
        facts: the facts about the space.

    Raises:
        SweepError: the grid is too large to list, or no point meets the requirements.
    """
    if not sweep.is_grid:
        return []
    found = distinct(_walk(sweep, space, facts))
    if not found:
        raise SweepError("no point of the grid meets the space's requirements")
    random.Random(sweep.seed).shuffle(found)
    return found


def _walk(sweep: Sweep, space: SpaceFunction, facts: Facts) -> Iterator[Params]:
    values = {
        name: (
            _authors_values(name, each, facts)
            if sweep.sampler == "authors_grid"
            else _cut(each, sweep.grid_points)
        )
        for name, each in facts.distributions.items()
    }
    path: list[int] = []
    for count in itertools.count():
        if count >= MAX_GRID:
            raise SweepError(
                f"the grid has more than {MAX_GRID:,} points: search fewer parameters, lower grid_points, or "
                "use sampler tpe or random"
            )
        walk = _Walk(values, path)
        space(Space(walk))
        drawn = draw(space, sweep.train, fixed(walk.params))
        if drawn.unmet is None:
            yield drawn.params
        if not walk.advance():
            return
        path = walk.path


class _Walk:
    """Answers a space's questions with the next point of its grid, conditional parameters included."""

    def __init__(self, values: Mapping[str, Sequence[Any]], path: Sequence[int]) -> None:
        self.path = list(path)
        self.params: Params = {}
        self._values = values
        self._sizes: list[int] = []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self._next(name, (low, high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return self._next(name, (low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._next(name, choices)

    def _next(self, name: str, otherwise: Sequence[Any]) -> Any:
        if name in self.params:
            return self.params[name]
        values = self._values.get(name, otherwise)  # a branch that no probe took is tried at its ends
        place = len(self._sizes)
        self._sizes.append(len(values))
        if place == len(self.path):
            self.path.append(0)
        self.params[name] = values[self.path[place]]
        return self.params[name]

    def advance(self) -> bool:
        """Move to the next point; returns False after the last one."""
        self.path = self.path[: len(self._sizes)]
        while self.path:
            self.path[-1] += 1
            if self.path[-1] < self._sizes[len(self.path) - 1]:
                return True
            self.path.pop()
        return False


def _cut(distribution: BaseDistribution, count: int) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution), "a space has no other kind"
    low, high = distribution.low, distribution.high
    shares = [i / (count - 1) for i in range(count)]
    if distribution.log:
        numbers = [math.exp(math.log(low) + share * math.log(high / low)) for share in shares]
    else:
        numbers = [low + share * (high - low) for share in shares]
    numbers[0], numbers[-1] = low, high  # a rounding error must not leave the range
    if isinstance(distribution, IntDistribution):
        return list(dict.fromkeys(round(number) for number in numbers))
    return list(dict.fromkeys(numbers))


def _authors_values(name: str, distribution: BaseDistribution, facts: Facts) -> list[Any]:
    """The values that a parameter has in the authors' masked presets and may take in the space."""
    values = []
    for config in (preset(*key) for key in PRESETS):
        with suppress(SweepError):  # the preset's model does not have the setting
            if config.teacher.kind != "none":
                values.append(value_at(config, name))
    within = [value for value in dict.fromkeys(values) if holds(distribution, value)]
    if not within:
        within = [facts.base_params[name]] if name in facts.base_params else _cut(distribution, 2)[:1]
    return within
