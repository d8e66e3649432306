"""Answers to a search space's questions at random, and what a range or a list of choices holds."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)


class RandomAnswers:
    """Answers a space's questions at random, the same on every machine and by every version of Optuna.

    A question that comes again with another range or other choices raises a ValueError.

    Attributes:
        params: the answers so far.
        distributions: what was asked for.
    """

    def __init__(
        self, rng: random.Random, *, given: Mapping[str, Any] | None = None, is_at_ends: bool = False
    ) -> None:
        """Begin.

        Args:
            rng: draws the answers.
            given: answers that are not drawn.
            is_at_ends: whether ranges are answered by one of their ends.
        """
        self._rng, self._given, self._is_at_ends = rng, given or {}, is_at_ends
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high]."""
        return self._answer(name, FloatDistribution(low, high, log=log))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number in [low, high]."""
        return self._answer(name, IntDistribution(low, high, log=log))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        return self._answer(name, CategoricalDistribution(choices))

    def _answer(self, name: str, distribution: BaseDistribution) -> Any:
        if self.distributions.setdefault(name, distribution) != distribution:
            raise ValueError(f"{name} is asked for twice, as {self.distributions[name]} and {distribution}")
        if name not in self.params:
            is_given = name in self._given and holds(distribution, self._given[name])
            self.params[name] = self._given[name] if is_given else self._drawn(distribution)
        return self.params[name]

    def _drawn(self, distribution: BaseDistribution) -> Any:
        if self._is_at_ends or isinstance(distribution, CategoricalDistribution):
            return self._rng.choice(ends(distribution))
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high = distribution.low, distribution.high
        if distribution.log:
            value = math.exp(self._rng.uniform(math.log(low), math.log(high)))
        else:
            value = self._rng.uniform(low, high)
        value = min(max(value, low), high)  # not a rounding error outside
        return round(value) if isinstance(distribution, IntDistribution) else value


def ends(distribution: BaseDistribution) -> list[Any]:
    """The ends of a range, or all choices."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return list(dict.fromkeys([distribution.low, distribution.high]))


def holds(distribution: BaseDistribution | None, value: Any) -> bool:
    """Whether a range or a list of choices has a value."""
    if distribution is None:
        return False
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high
