"""One trial of a sweep's study as plain data, for packages that do not import Optuna."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from mhimdist.search.proposals import Params

FOLDS = "folds"
"""A trial's attribute in the study: the value of each finished fold, by name."""

REASON = "reason"
"""A trial's attribute in the study: why it was pruned or failed."""

_STATES: dict[TrialState, Literal["complete", "pruned", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class TrialRecord:
    """What the study holds of one trial.

    Attributes:
        number: the trial's number, in the order of starting.
        state: "unfinished" while it runs or waits.
        value: the objective of a complete trial; the last report of a pruned one, if it made one; otherwise
            None.
        cost: the second objective of a complete trial; None where there is none.
        params: the values that were chosen for it, by name.
        folds: the value of each finished fold, by name.
        reason: why it was pruned or failed; otherwise empty.
    """

    number: int
    state: Literal["unfinished", "complete", "pruned", "failed"]
    value: float | None
    cost: float | None
    params: Params
    folds: Mapping[str, float]
    reason: str

    @property
    def has_ended(self) -> bool:
        """Whether the study holds the trial's end."""
        return self.state != "unfinished"


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """The plain data of a trial of Optuna."""
    values = list(trial.values) if trial.state == TrialState.COMPLETE else []
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        values = [trial.intermediate_values[max(trial.intermediate_values)]]
    return TrialRecord(
        number=trial.number,
        state=_STATES.get(trial.state, "unfinished"),
        value=values[0] if values else None,
        cost=values[1] if len(values) > 1 else None,
        params=trial.params,
        folds=trial.user_attrs.get(FOLDS, {}),
        reason=trial.user_attrs.get(REASON, ""),
    )
