"""Who proposes a sweep's configurations, and what is known of a space before any trial runs.

A proposal is a pure function of the sweep's seed, the trial's number and the trials told so far: every trial
has a sampler of its own, seeded by both, so that a sweep that was killed goes on with what it would have
proposed.
"""

import hashlib
import itertools
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mhimdist.config import ConfigWarning, TrainConfig
from mhimdist.errors import ConfigError, SweepError
from mhimdist.presets import PRESETS, preset
from mhimdist.space import BaseValues, Space, SpaceFunction, value_at
from mhimdist.sweep import SamplerName, Sweep

NUM_PROBES = 256
MAX_GRID = 100_000
MAX_INSISTENCE = 50

Params = dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """What a space makes of one set of parameters.

    Attributes:
        params: what was chosen, by name.
        distributions: from what, by name.
        changes: of the base configuration.
        config: the base with them.
        unmet: what it fails to meet of the space's requirements; None where it may be tried.
    """

    params: Params
    distributions: dict[str, BaseDistribution]
    changes: dict[str, Any]
    config: TrainConfig
    unmet: str | None


@dataclass(frozen=True)
class Facts:
    """What is known of a space before any trial runs.

    Attributes:
        distributions: of every parameter that was met, by name.
        conditional: names of those that only some draws have.
        feasible_share: of the draws, those that meet every requirement.
        base_params: the parameters with which the space gives the base configuration.
    """

    distributions: dict[str, BaseDistribution]
    conditional: frozenset[str]
    feasible_share: float
    base_params: Params

    @property
    def digest(self) -> str:
        """A hash of all ranges and choices, 16 hex digits."""
        text = repr(sorted((name, repr(each)) for name, each in self.distributions.items()))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def draw(space: SpaceFunction, base: TrainConfig, trial: optuna.trial.BaseTrial) -> Draw:
    """One configuration of a space.

    Raises:
        SweepError: the space makes an invalid configuration, or asks for a parameter in two ways.
    """
    collected = Space(trial)
    try:
        space(collected)
    except ValueError as error:  # of Optuna: other choices for a name, an empty range
        raise SweepError(f"the space is impossible: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)  # said of the base, if it is so there
            config = base.override(collected.changes)
    except ConfigError as error:
        raise SweepError(
            f"the space makes an impossible configuration, {collected.changes}: {error}"
        ) from None
    return Draw(
        dict(trial.params), dict(trial.distributions), collected.changes, config, collected.unmet(config)
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
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draws = [
        draw(space, base, fixed(values.params)),
        *(draw(space, base, probe.ask()) for _ in range(NUM_PROBES)),
    ]
    if (unmet := draws[0].unmet) is not None:
        raise SweepError(f"the base configuration, which is the first trial, does not {unmet}")
    distributions: dict[str, BaseDistribution] = {}
    for each in draws:
        for name, distribution in each.distributions.items():
            if distributions.setdefault(name, distribution) != distribution:
                raise SweepError(
                    f"{name} is searched in two ways, {distributions[name]} and {distribution}: give it one "
                    "range, and exclude what does not go together with require"
                )
    if not distributions:
        raise SweepError("the space searches nothing")
    feasible = [each for each in draws[1:] if each.unmet is None]
    if not feasible:
        reasons = dict.fromkeys(each.unmet for each in draws[1:])
        raise SweepError(
            f"none of {NUM_PROBES} draws from the space meets its requirements: "
            f"{'; '.join(map(str, reasons))}"
        )
    return Facts(
        distributions=distributions,
        conditional=frozenset(
            name for name in distributions if any(name not in each.distributions for each in draws)
        ),
        feasible_share=len(feasible) / NUM_PROBES,
        base_params=values.params,
    )


def check(sampler: SamplerName, facts: Facts) -> None:
    """Refuse a sampler that cannot search a space.

    Raises:
        SweepError: with the parameters that it cannot search, and why.
    """
    if sampler != "cmaes":
        return
    choices = [
        name for name, each in facts.distributions.items() if isinstance(each, CategoricalDistribution)
    ]
    if choices:
        raise SweepError(
            f"sampler cmaes adapts a normal distribution and cannot choose among values: "
            f"{', '.join(choices)}; fix these in the space, or use tpe"
        )
    if facts.conditional:
        raise SweepError(
            f"sampler cmaes needs every parameter in every trial, but {', '.join(sorted(facts.conditional))} "
            "is there only in some; use tpe"
        )
    if len(facts.distributions) < 2:
        raise SweepError("sampler cmaes needs at least two parameters; use tpe or grid")


def make(sweep: Sweep, number: int, attempt: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial.

    Args:
        sweep: which sampler, its seed and startup.
        number: of the trial.
        attempt: how often its draw has been refused. A model that insists on what cannot be tried, or was
            tried before, gives way to chance.
    """
    text = f"{sweep.seed} {number} {attempt}"
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
    if sweep.sampler == "tpe" and attempt < MAX_INSISTENCE:
        # One model over all parameters that occur together, and distance to the trials still running.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
            return optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=sweep.num_startup,
            )
    if sweep.sampler == "cmaes" and attempt < MAX_INSISTENCE:
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


def first_params(
    sweep: Sweep, space: SpaceFunction, facts: Facts, earlier: Sequence[Params] = ()
) -> tuple[list[Params], list[str]]:
    """The parameters of the trials that no sampler proposes, in their order, and what a user should know.

    They are the base, the authors' settings, the best of an earlier sweep and, for a grid, its points.

    Args:
        sweep: which of them are wanted.
        space: what is searched.
        facts: of the space.
        earlier: parameters of an earlier sweep's best trials.

    Raises:
        SweepError: a grid is too large to list, or has no point that meets the requirements.
    """
    found, notes = [facts.base_params], []
    if sweep.warm_presets:
        found += _authors_settings(space, sweep.train)
    for params in earlier:
        outside = [n for n, value in params.items() if not _holds(facts.distributions.get(n), value)]
        try:
            if outside:
                raise SweepError(f"{', '.join(outside)} outside of it")
            found.append(draw(space, sweep.train, fixed(params)).params)
        except SweepError as error:
            notes.append(f"a trial of {sweep.warm_from} does not lie in this space: {error}")
    found = [params for params in found if draw(space, sweep.train, fixed(params)).unmet is None]
    if sweep.sampler in ("grid", "authors_grid"):
        points = list(_grid(sweep, space, facts))
        if not points:
            raise SweepError("no point of the grid meets the space's requirements")
        room = sweep.num_trials - len(_distinct(found))
        rest = [point for point in _distinct(points) if point not in found]
        if len(rest) > room:
            notes.append(
                f"the grid has {len(points):,} points; num_trials {sweep.num_trials} tries "
                f"{max(0, room)} of them, drawn at random"
            )
            picked = sorted(random.Random(sweep.seed).sample(range(len(rest)), max(0, room)))
            rest = [rest[i] for i in picked]
        found += rest
    return _distinct(found), notes


def _authors_settings(space: SpaceFunction, base: TrainConfig) -> list[Params]:
    """The authors' presets of the base's model, as far as they lie in the space."""
    found = []
    for dataset, model in PRESETS:
        if model != base.model.name:
            continue
        values = BaseValues(preset(dataset, model))
        try:
            space(Space(values))
            found.append(draw(space, base, fixed(values.params)).params)
        except SweepError:
            continue  # that preset lies outside the space
    return found


def _distinct(many: Sequence[Params]) -> list[Params]:
    return [params for i, params in enumerate(many) if params not in many[:i]]


def _grid(sweep: Sweep, space: SpaceFunction, facts: Facts) -> Iterator[Params]:
    values = {
        name: (
            _authors_values(name, each, facts)
            if sweep.sampler == "authors_grid"
            else _points(each, sweep.grid_points)
        )
        for name, each in facts.distributions.items()
    }
    path: list[int] = []
    for count in itertools.count():
        if count >= MAX_GRID:
            raise SweepError(
                f"the grid has more than {MAX_GRID:,} points: search fewer parameters, lower grid_points, or "
                "use tpe or random"
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
    """Answers a space's questions with the next point of its grid, whatever is conditional in it."""

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
        values = self._values.get(name, otherwise)  # a branch that no probe took is walked at its ends
        place = len(self._sizes)
        self._sizes.append(len(values))
        if place == len(self.path):
            self.path.append(0)
        self.params[name] = values[self.path[place]]
        return self.params[name]

    def advance(self) -> bool:
        """Turn to the next point; false after the last."""
        self.path = self.path[: len(self._sizes)]
        while self.path:
            self.path[-1] += 1
            if self.path[-1] < self._sizes[len(self.path) - 1]:
                return True
            self.path.pop()
        return False


def _points(distribution: BaseDistribution, count: int) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    shares = [i / (count - 1) for i in range(count)]
    if distribution.log:
        numbers = [math.exp(math.log(low) + share * math.log(high / low)) for share in shares]
    else:
        numbers = [low + share * (high - low) for share in shares]
    numbers[0], numbers[-1] = low, high  # not a rounding error outside
    if isinstance(distribution, IntDistribution):
        return list(dict.fromkeys(round(number) for number in numbers))
    return list(dict.fromkeys(numbers))


def _authors_values(name: str, distribution: BaseDistribution, facts: Facts) -> list[Any]:
    """The values that the authors' masked presets give a parameter, as far as it may take them."""
    values = []
    for config in (preset(*key) for key in PRESETS):
        with suppress(SweepError):  # a setting of one model that another does not have
            if config.teacher.kind != "none":
                values.append(value_at(config, name))
    within = [value for value in dict.fromkeys(values) if _holds(distribution, value)]
    if not within:
        within = [facts.base_params[name]] if name in facts.base_params else _points(distribution, 2)[:1]
    return within


def _holds(distribution: BaseDistribution | None, value: Any) -> bool:
    if distribution is None:
        return False
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high
