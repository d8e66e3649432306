"""Random answers to a search space's questions, and the values that a range or a list of choices allows."""

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
    """Answers a space's questions at random, equally on every machine and with every version of Optuna.

    Attributes:
        params: the answers so far, by name.
        distributions: the range or the choices of each question, by name.
    """

    def __init__(
        self, rng: random.Random, *, given: Mapping[str, Any] | None = None, is_at_ends: bool = False
    ) -> None:
        """Prepare to answer.

        Args:
            rng: draws the answers.
            given: answers that are not drawn, by name.
            is_at_ends: whether a range is answered with one of its ends.
        """
        self._rng, self._given, self._is_at_ends = rng, given or {}, is_at_ends
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """See `Proposer.suggest_float`.

        Raises:
            ValueError: the question was asked before, with another range.
        """
        return self._answer(name, FloatDistribution(low, high, log=log))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """See `Proposer.suggest_int`.

        Raises:
            ValueError: the question was asked before, with another range.
        """
        return self._answer(name, IntDistribution(low, high, log=log))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """See `Proposer.suggest_categorical`.

        Raises:
            ValueError: the question was asked before, with other choices.
        """
        return self._answer(name, CategoricalDistribution(choices))

    def _answer(self, name: str, distribution: BaseDistribution) -> Any:
        if self.distributions.setdefault(name, distribution) != distribution:
            raise ValueError(f"{name} is searched in two ways, {self.distributions[name]} and {distribution}")
        if name not in self.params:
            is_given = name in self._given and holds(distribution, self._given[name])
            self.params[name] = self._given[name] if is_given else self._drawn(distribution)
        return self.params[name]

    def _drawn(self, distribution: BaseDistribution) -> Any:
        if self._is_at_ends or isinstance(distribution, CategoricalDistribution):
            return self._rng.choice(ends(distribution))
        assert isinstance(distribution, FloatDistribution | IntDistribution), "a space has no other kind"
        low, high = distribution.low, distribution.high
        if distribution.log:
            value = math.exp(self._rng.uniform(math.log(low), math.log(high)))
        else:
            value = self._rng.uniform(low, high)
        value = min(max(value, low), high)  # a rounding error must not leave the range
        return round(value) if isinstance(distribution, IntDistribution) else value


def ends(distribution: BaseDistribution) -> list[Any]:
    """Both ends of a range, or all choices."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution), "a space has no other kind"
    return list(dict.fromkeys([distribution.low, distribution.high]))


def holds(distribution: BaseDistribution | None, value: Any) -> bool:
    """Whether a range or a list of choices allows a value; False if there is neither."""
    if distribution is None:
        return False
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution), "a space has no other kind"
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high
