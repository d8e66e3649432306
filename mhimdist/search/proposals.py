"""What a space makes of parameters, and what is known of it before any trial runs."""

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
NUM_HASHED = 256

Params = dict[str, Any]
Key = frozenset[tuple[str, Any]]
"""What two equal sets of parameters share."""


class ImpossibleDrawError(SweepError):
    """A draw makes no valid configuration.

    Attributes:
        reason: why, without the draw's own numbers where possible.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Chooser(Proposer, Protocol):
    """Who chooses the values and remembers them, as Optuna's trials do."""

    @property
    def params(self) -> Params:
        """What was chosen, by name."""

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """From what, by name."""


@dataclass(frozen=True)
class Draw:
    """What a space makes of one set of parameters.

    Attributes:
        params: what was chosen, by name.
        distributions: from what, by name.
        changes: of the base configuration.
        config: the base with them.
        requirements: what the space asks of it, in words.
        unmet: what it fails to meet of the space's requirements; None where it may be tried.
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
        distributions: of every parameter that was met, by name.
        conditional: names of those that only some draws have.
        feasible_share: of the draws, those that meet every requirement.
        base_params: the parameters with which the space gives the base configuration.
        digest: a hash, 16 hex digits, of all ranges and choices, and of what the space made of some draws:
            what it fixes, requires and depends on.
    """

    distributions: dict[str, BaseDistribution]
    conditional: frozenset[str]
    feasible_share: float
    base_params: Params
    digest: str


def draw(space: SpaceFunction, base: TrainConfig, trial: Chooser) -> Draw:
    """One configuration of a space.

    Args:
        space: what is searched.
        base: the configuration that it changes.
        trial: chooses the values.

    Raises:
        ImpossibleDrawError: the space makes an invalid configuration, asks for a parameter in two ways, or
            raises an error of its own.
    """
    collected = Space(trial)
    try:
        space(collected)
    except Exception as error:
        # Of Optuna a ValueError: other choices for a name, an empty range.
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ImpossibleDrawError(f"the space is impossible: {reason}", reason) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)  # said of the base, if it is so there
            config = base.override(collected.changes)
    except ConfigError as error:
        raise ImpossibleDrawError(
            f"the space makes an impossible configuration, {collected.changes}: {error}", str(error)
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
    """Draw from a space before anything runs, so that an impossible one is refused at once.

    Raises:
        SweepError: the space does not hold the base, makes an invalid configuration, gives a parameter
            several ranges, or its requirements are met by no draw or not by the base.
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
        raise SweepError("the space searches nothing")
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


def _collect(distributions: dict[str, BaseDistribution], draws: Sequence[Draw]) -> None:
    """Add the distributions of draws to those that are known.

    Raises:
        SweepError: a parameter has another one than before.
    """
    for each in draws:
        for name, distribution in each.distributions.items():
            if distributions.setdefault(name, distribution) != distribution:
                raise SweepError(
                    f"{name} is searched in two ways, {distributions[name]} and {distribution}: give it one "
                    "range, and exclude what does not go together with require"
                )


def _draw_at_ends(
    space: SpaceFunction, base: TrainConfig, base_params: Params, distributions: dict[str, BaseDistribution]
) -> list[Draw]:
    """Draws in which each parameter takes each of its choices or ends; what they find is added to
    `distributions`.

    The other parameters take the base's values once, and then ends too: what is impossible is there more
    often than within, and a choice of many is met by few random draws.
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
        # To 9 digits: the last ones of a logarithm are another machine's own.
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
    """Each set of parameters once, the first of its kind."""
    found: dict[Key, Params] = {}
    for params in many:
        found.setdefault(key(params), params)
    return list(found.values())


def key(params: Params) -> Key:
    """What two equal sets of parameters share; choices are plain values, which can be hashed."""
    return frozenset(params.items())
