"""Draws from a search space, and the facts about it that are known before any trial runs."""

import hashlib
import json
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution

from mhimdist.config.train import ConfigWarning, TrainConfig
from mhimdist.errors import ConfigError, SweepError
from mhimdist.search.random_answers import RandomAnswers, ends
from mhimdist.search.space import BaseValues, Proposer, Space, SpaceFunction

NUM_PROBES = 1024
"""Random draws from a space before its sweep starts."""

NUM_HASHED = 256
"""How many of them enter the space's digest."""

Params = dict[str, Any]
Key = frozenset[tuple[str, Any]]
"""A hashable key; equal sets of parameters have equal keys."""


class ImpossibleDrawError(SweepError):
    """A draw makes no valid configuration.

    Attributes:
        reason: why, without the draw's own numbers if possible.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Chooser(Proposer, Protocol):
    """Chooses the values and remembers them, as Optuna's trials do."""

    @property
    def params(self) -> Params:
        """The chosen values, by name."""

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The ranges and choices that they were chosen from, by name."""


@dataclass(frozen=True)
class Draw:
    """One set of parameters, and the configuration that a space makes of it.

    Attributes:
        params: the chosen values, by name.
        distributions: the ranges and choices that they were chosen from, by name.
        changes: the settings that the space sets, as dotted path to value.
        config: the base configuration with these changes.
        requirements: all requirements of the space, in words.
        unmet: the first requirement that the configuration fails, in words; None if it may be tried.
    """

    params: Params
    distributions: dict[str, BaseDistribution]
    changes: dict[str, Any]
    config: TrainConfig
    requirements: tuple[str, ...]
    unmet: str | None


@dataclass(frozen=True)
class Facts:
    """What is known of a space before any trial runs.

    Attributes:
        distributions: the range or the choices of every parameter that a draw asked for, by name.
        conditional: names of the parameters that only some draws have.
        feasible_share: share of the random draws that meet every requirement, in [0, 1].
        base_params: the parameters from which the space makes the base configuration.
        digest: 16 hex digits: a hash of all ranges and choices, and of the space's results for some draws,
            which show what it fixes, requires and depends on.
    """

    distributions: dict[str, BaseDistribution]
    conditional: frozenset[str]
    feasible_share: float
    base_params: Params
    digest: str


def draw(space: SpaceFunction, base: TrainConfig, trial: Chooser) -> Draw:
    """One configuration of a space.

    Args:
        space: the search space.
        base: the configuration that it changes.
        trial: chooses the values.

    Raises:
        ImpossibleDrawError: the space makes an invalid configuration, asks for a parameter in two ways, or
            raises any other error.
    """
    collected = Space(trial)
    try:
        space(collected)
    except Exception as error:
        # Optuna raises a ValueError for an empty range, and for a name that comes again with other choices.
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ImpossibleDrawError(f"the space cannot be drawn from: {reason}", reason) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)  # the base has had its own warnings
            config = base.override(collected.changes)
    except ConfigError as error:
        raise ImpossibleDrawError(
            f"the space makes an invalid configuration, {collected.changes}: {error}", str(error)
        ) from None
    return Draw(
        dict(trial.params),
        dict(trial.distributions),
        collected.changes,
        config,
        tuple(requirement.text for requirement in collected.requirements),
        collected.unmet(config),
    )


def fixed(params: Mapping[str, Any]) -> optuna.trial.FixedTrial:
    """A trial that answers with given parameters."""
    return optuna.trial.FixedTrial(dict(params))


def examine(space: SpaceFunction, base: TrainConfig) -> Facts:
    """Draw from a space before anything runs, so that an impossible space is refused at once.

    Raises:
        SweepError: the space does not contain the base, makes an invalid configuration, or searches a
            parameter in two ways; or no draw, or not the base, meets its requirements.
    """
    values = BaseValues(base)
    space(Space(values))
    first = draw(space, base, fixed(values.params))
    if first.unmet is not None:
        raise SweepError(f"the base configuration, which is the first trial, does not {first.unmet}")
    rng = random.Random(0)
    draws = [draw(space, base, RandomAnswers(rng)) for _ in range(NUM_PROBES)]
    distributions: dict[str, BaseDistribution] = {}
    _collect(distributions, [first, *draws])
    if not distributions:
        raise SweepError(
            "the space searches nothing: let it call uniform, integer, choice, schedule or branch"
        )
    feasible = [each for each in draws if each.unmet is None]
    if not feasible:
        reasons = dict.fromkeys(each.unmet for each in draws)
        raise SweepError(
            f"none of {NUM_PROBES} draws from the space meets its requirements: "
            f"{'; '.join(map(str, reasons))}"
        )
    ends = _draw_at_ends(space, base, values.params, distributions)
    return Facts(
        distributions=distributions,
        conditional=frozenset(
            name
            for name in distributions
            if any(name not in each.distributions for each in [first, *draws, *ends])
        ),
        feasible_share=len(feasible) / NUM_PROBES,
        base_params=values.params,
        digest=_digest(distributions, draws[:NUM_HASHED]),
    )


def draws_alike(space: SpaceFunction, base: TrainConfig, facts: Facts) -> bool:
    """Whether the draws of a space are those of the space that was examined, as its digest tells.

    It is quicker than to `examine` the space, because it takes the ranges and choices for granted.
    """
    rng = random.Random(0)
    draws = [draw(space, base, RandomAnswers(rng)) for _ in range(NUM_HASHED)]
    return _digest(facts.distributions, draws) == facts.digest


def _collect(distributions: dict[str, BaseDistribution], draws: Sequence[Draw]) -> None:
    """Add the distributions of draws to the known ones.

    Raises:
        SweepError: a parameter's distribution differs from the known one.
    """
    for each in draws:
        for name, distribution in each.distributions.items():
            if distributions.setdefault(name, distribution) != distribution:
                raise SweepError(
                    f"{name} is searched in two ways, {distributions[name]} and {distribution}: give it one "
                    "range, and exclude values that do not fit together with require"
                )


def _draw_at_ends(
    space: SpaceFunction, base: TrainConfig, base_params: Params, distributions: dict[str, BaseDistribution]
) -> list[Draw]:
    """Draws in which each parameter takes each of its choices, or both ends of its range.

    New parameters that these draws meet are added to `distributions`. The other parameters take the base's
    values once, and then ends too: impossible draws are more frequent at the ends than inside the ranges,
    and few random draws meet one choice of many.
    """
    rng = random.Random(0)
    found: list[Draw] = []
    seen: set[str] = set()
    while new := [name for name in distributions if name not in seen]:
        for name in new:
            seen.add(name)
            distribution = distributions[name]
            for value in ends(distribution):
                for given in (base_params | {name: value}, {name: value}, {name: value}):
                    found.append(draw(space, base, RandomAnswers(rng, given=given, is_at_ends=True)))
                    _collect(distributions, found[-1:])
    return found


def _digest(distributions: Mapping[str, BaseDistribution], draws: Sequence[Draw]) -> str:
    made_of = {
        "distributions": sorted((name, repr(each)) for name, each in distributions.items()),
        # To 9 digits: a logarithm's last digits differ between machines.
        "draws": [
            [
                {
                    path: float(f"{value:.9g}") if isinstance(value, float) else value
                    for path, value in each.changes.items()
                },
                each.requirements,
                each.unmet,
            ]
            for each in draws
        ],
    }
    text = json.dumps(made_of, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def distinct(many: Iterable[Params]) -> list[Params]:
    """Each set of parameters once, in the order of first appearance."""
    found: dict[Key, Params] = {}
    for params in many:
        found.setdefault(key(params), params)
    return list(found.values())


def key(params: Params) -> Key:
    """The key of a set of parameters; choices are plain values, which can be hashed."""
    return frozenset(params.items())
