"""The samplers that propose a sweep's configurations.

A proposal is a pure function of the sweep's seed, the trial's number and the study's trials so far. Each
trial has its own sampler, seeded by seed and number, so a killed sweep resumes with the same proposals.
"""

import hashlib
import heapq
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mhimdist.errors import SweepError
from mhimdist.search.drafts import drafts
from mhimdist.search.options import SamplerName, Sweep
from mhimdist.search.proposals import Draw, Facts, ImpossibleDrawError, Params, draw
from mhimdist.search.space import SpaceFunction

MAX_MODEL_DRAWS = 50
"""Draws for one trial that a model makes before random draws replace it."""

MAX_DRAWS = 500
"""Draws for one trial. If a requirement or an earlier trial refuses all of them, the space has no more."""


MAX_SHOWN = 1000
"""Ended trials that TPE is shown."""

MAX_BEST = 100
"""How many of those are the best of all; the others are the newest."""


def shown(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The trials of a study that TPE is shown: all of them, up to `MAX_SHOWN` that have ended.

    Of more it sees the best, from which its model of good parameters is made, and the newest, which have the
    largest weights in its model of the others. The trials that still run are always among them.

    Args:
        trials: all trials of the study, by number.
        directions: of the study's objectives.
    """
    going = TrialState.RUNNING, TrialState.WAITING
    ended = [number for number, trial in enumerate(trials) if trial.state not in going]
    num_hidden = len(ended) - MAX_SHOWN
    if num_hidden <= 0:
        return list(trials)
    complete = [number for number in ended if trials[number].state == TrialState.COMPLETE]
    kept: set[int] = set()
    for place, direction in enumerate(directions):
        choose = heapq.nlargest if direction == StudyDirection.MAXIMIZE else heapq.nsmallest
        values = {number: trials[number].values[place] for number in complete}
        kept.update(choose(MAX_BEST // len(directions), complete, key=values.__getitem__))
    hidden = set(islice((number for number in ended if number not in kept), num_hidden))
    return [trial for number, trial in enumerate(trials) if number not in hidden]


def check(sampler: SamplerName, facts: Facts) -> None:
    """Refuse a sampler that cannot search a space.

    Raises:
        SweepError: it names the parameters that the sampler cannot search, and says why.
    """
    if sampler != "cmaes":
        return
    choices = [
        name for name, each in facts.distributions.items() if isinstance(each, CategoricalDistribution)
    ]
    if choices:
        raise SweepError(
            f"sampler cmaes adapts a normal distribution and cannot choose among values: "
            f"{', '.join(choices)}; fix these in the space, or use sampler tpe"
        )
    if facts.conditional:
        raise SweepError(
            "sampler cmaes needs every parameter in every trial, but only some trials have "
            f"{', '.join(sorted(facts.conditional))}; use sampler tpe"
        )
    if len(facts.distributions) < 2:
        raise SweepError("sampler cmaes needs at least two parameters; use sampler tpe or grid")


def make(sweep: Sweep, number: int, attempt: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial.

    Args:
        sweep: says which sampler, with which seed and startup.
        number: of the trial.
        attempt: how many draws for the trial were refused. A model that keeps proposing what cannot be
            tried, or was tried before, is replaced by random draws.
    """
    text = f"{sweep.seed} {number} {attempt}"
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
    with warnings.catch_warnings():
        # `group` and `consider_pruned_trials` are experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sweep.sampler == "tpe" and attempt < MAX_MODEL_DRAWS:
            # One model for all parameters that occur together; it keeps away from the running trials.
            return optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=sweep.num_startup,
            )
        if sweep.sampler == "cmaes" and attempt < MAX_MODEL_DRAWS:
            # A generation consists of trials that have a value. Without the pruned ones it would take three
            # times as many trials, and only survivors would count.
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=1, warn_independent_sampling=False, consider_pruned_trials=True
            )
    return optuna.samplers.RandomSampler(seed=seed)


@dataclass(frozen=True)
class Sampled:
    """The outcome of sampling one trial.

    Attributes:
        draw: a new draw that meets the space's requirements; None if `MAX_DRAWS` draws were refused.
        attributes: the study must keep them with the trial, as the sampler reads them later.
        refused: number of refused draws per reason.
    """

    draw: Draw | None
    attributes: Mapping[str, Any]
    refused: Counter[str]


def sample(
    sweep: Sweep,
    space: SpaceFunction,
    trials: Sequence[FrozenTrial],
    directions: Sequence[StudyDirection],
    *,
    is_tried: Callable[[Params], bool],
    on_impossible: Callable[[ImpossibleDrawError], None],
) -> Sampled:
    """Have the sweep's sampler draw until a draw is new and meets the space's requirements.

    Draws are made in `drafts`, so refused ones leave no trace in the record. TPE weighs every trial that it
    sees, about .03 ms per trial: `shown` chooses those.

    Args:
        sweep: says which sampler, with which seed, and the base configuration.
        space: the search space.
        trials: all trials of the study, by number.
        directions: of the study's objectives.
        is_tried: whether a trial has these parameters.
        on_impossible: called with the error of each draw that makes no valid configuration.
    """
    number, refused = len(trials), Counter[str]()
    study = drafts(shown(trials, directions) if sweep.sampler == "tpe" else trials, directions, number)
    for attempt in range(MAX_DRAWS):
        study.sampler = make(sweep, number, attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = study.ask()
            try:
                drawn = draw(space, sweep.train, trial)
            except ImpossibleDrawError as error:
                on_impossible(error)
                refused["were impossible"] += 1
            else:
                if drawn.unmet is None and not is_tried(drawn.params):
                    attributes = study.get_trials(deepcopy=False)[-1].system_attrs
                    return Sampled(drawn, attributes, refused)
                refused["were tried before" if drawn.unmet is None else f"did not {drawn.unmet}"] += 1
        study.tell(trial, state=TrialState.FAIL)
    return Sampled(None, {}, refused)
