"""Who proposes a sweep's configurations.

A proposal is a pure function of the sweep's seed, the trial's number and the study's trials so far: every
trial has a sampler of its own, seeded by both, so that a sweep that was killed proposes what it would have.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

MAX_DRAWS = 500
"""Draws that requirements, or earlier trials of the same configuration, may refuse before a space is given
up."""


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
    with warnings.catch_warnings():
        # Of `group` and `consider_pruned_trials`.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sweep.sampler == "tpe" and attempt < MAX_MODEL_DRAWS:
            # One model over all parameters that occur together, and distance to the trials still running.
            return optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=sweep.num_startup,
            )
        if sweep.sampler == "cmaes" and attempt < MAX_MODEL_DRAWS:
            # A generation is of trials that have a value: without the pruned ones it would take three times
            # as many, all of them survivors.
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=1, warn_independent_sampling=False, consider_pruned_trials=True
            )
    return optuna.samplers.RandomSampler(seed=seed)


@dataclass(frozen=True)
class Sampled:
    """What a sampler came to.

    Attributes:
        draw: new and as the space requires; None where so many draws were refused that there is none.
        attributes: what the sampler wants to find with that trial later.
        refused: how many draws were refused for each reason.
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
    """What the sweep's sampler proposes next that is new and meets the space's requirements.

    Draws are made in `drafts`, so that refused ones leave no trace in the record. What a draw costs is
    Optuna's own: TPE weighs every trial that has ended, about .03 ms for each (8 ms at 100 trials, 324 ms at
    10,000). To hide old trials from it would make that constant and change what it proposes.

    Args:
        sweep: which sampler, its seed, and the base configuration.
        space: what is searched.
        trials: all of the study, by number.
        directions: of its objectives.
        is_tried: whether a trial has these parameters.
        on_impossible: is told of each draw that makes no valid configuration.
    """
    number, study, refused = len(trials), drafts(trials, directions), Counter[str]()
    for attempt in range(MAX_DRAWS):
        study.sampler = make(sweep, number, attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = study.ask()
            try:
                drawn = draw(space, sweep.train, trial)
            except ImpossibleDrawError as error:
                on_impossible(error)
                refused["impossible"] += 1
            else:
                if drawn.unmet is None and not is_tried(drawn.params):
                    attributes = study.get_trials(deepcopy=False)[trial.number].system_attrs
                    return Sampled(drawn, attributes, refused)
                refused["tried before" if drawn.unmet is None else f"not to {drawn.unmet}"] += 1
        study.tell(trial, state=TrialState.FAIL)
    return Sampled(None, {}, refused)
