"""The rules that stop trials early: within a fold by epoch, and between folds.

Both decide from the study's data and keep nothing themselves, so a killed sweep resumes with the same
decisions.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median

import optuna

from mhimdist.search.options import Sweep

MIN_OTHERS = 4
"""Trials that must have finished the same folds before a trial is compared with their median."""


def within_folds(sweep: Sweep) -> optuna.pruners.BasePruner:
    """The pruner that stops a trial by its reports; their steps are epochs over all its folds."""
    num_steps = sweep.num_waves * sweep.train.epochs
    grace = min(sweep.grace_epochs, num_steps)
    if sweep.scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=grace, reduction_factor=sweep.reduction_factor
        )
    if sweep.scheduler == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=grace, max_resource=num_steps, reduction_factor=sweep.reduction_factor
        )
    if sweep.scheduler == "median":
        return BelowMedian(grace)
    return optuna.pruners.NopPruner()


class BelowMedian(optuna.pruners.BasePruner):
    """Stops a trial that is below the median of the complete trials' values after as many epochs.

    Optuna's own median pruner compares a trial's best report so far; a good first fold keeps that high
    through all later folds.
    """

    def __init__(self, grace: int) -> None:
        """Make the rule.

        Args:
            grace: epochs over all folds before which no trial is stopped.
        """
        self._grace = grace

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether to stop a trial after its last report."""
        step = trial.last_step
        if step is None or step < self._grace:
            return False
        complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        then = [value for each in complete if (value := _value_at(each, step)) is not None]
        return len(then) >= MIN_OTHERS and trial.intermediate_values[step] < median(then)


def _value_at(trial: optuna.trial.FrozenTrial, step: int) -> float | None:
    """The last report up to a step; a fold that ended early skips its other steps."""
    if step in trial.intermediate_values:
        return trial.intermediate_values[step]
    return trial.intermediate_values.get(max((s for s in trial.intermediate_values if s <= step), default=-1))


def between_folds(
    mine: Mapping[str, float], others: Sequence[Mapping[str, float]], folds_per_trial: int
) -> str | None:
    """Why a trial is hopeless after its first folds; None if it is not, or if its folds are all done.

    Args:
        mine: the value of each of its finished folds.
        others: the same of every other trial.
        folds_per_trial: folds of a complete trial.
    """
    if not 0 < len(mine) < folds_per_trial:
        return None
    value, done = mean(mine.values()), f"after {len(mine)} of {folds_per_trial} folds"
    same = [mean(each[name] for name in mine) for each in others if mine.keys() <= each.keys()]
    if len(same) >= MIN_OTHERS and value < median(same):
        return f"{value:.3f} {done}, below the median of {median(same):.3f}"
    complete = [mean(each.values()) for each in others if len(each) == folds_per_trial]
    bound = (sum(mine.values()) + folds_per_trial - len(mine)) / folds_per_trial
    if complete and bound < max(complete):
        return f"{done} it cannot reach the best trial's {max(complete):.3f}"
    return None
