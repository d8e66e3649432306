"""The results of a sweep as plain data: the input of the HTML report and of the terminal tables.

Nothing here knows Ray or Optuna, so a report can be made and tested from any record of a sweep.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from mhimdist.errors import SweepError
from mhimdist.tasks import classification

State = Literal["complete", "pruned", "failed"]
Metrics = Mapping[str, float | None]
History = Sequence[Metrics]


@dataclass(frozen=True)
class Trial:
    """One configuration that the sweep tried.

    Attributes:
        number: the trial's number, in the order of starting.
        state: only a complete trial can be the best; a pruned trial was stopped early, and its value is from
            that moment.
        value: the objective, higher is better; finite if complete, otherwise the last known value or None.
        params: the sampler's choices, by dotted configuration path; a conditional parameter is absent if it
            has no effect.
        history: a row per epoch, with `epoch`, the losses, the masking shares and the validation scores.
        duration_s: seconds of training, all folds together.
        reason: why it was pruned or failed, otherwise empty.
        num_epochs: epochs trained in all folds together; None if the history has all of them.
        folds: values of the folds that were trained to their end, by name; empty if there is only one fold.
        cost: the second objective, lower is better; None if there is only one objective.
        last_epoch: the `epoch` of the history's row at which it ended, if that is not the last row: the trial
            was stopped in a fold after another fold had trained for longer.
    """

    number: int
    state: State
    value: float | None
    params: Mapping[str, object]
    history: History = ()
    duration_s: float = 0.0
    reason: str = ""
    num_epochs: int | None = None
    folds: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    last_epoch: int | None = None

    @property
    def last_row(self) -> Metrics:
        """The history's row at which it ended; empty without a history."""
        rows = [row for row in self.history if self.last_epoch in (None, row.get("epoch"))]
        return rows[-1] if rows else {}

    @property
    def epochs_done(self) -> int:
        """The number of epochs trained, in all folds together."""
        return len(self.history) if self.num_epochs is None else self.num_epochs

    def __post_init__(self) -> None:
        if self.state == "complete" and (self.value is None or not math.isfinite(self.value)):
            raise SweepError(f"trial {self.number}: a complete trial needs a finite value, got {self.value}")


@dataclass(frozen=True)
class FinalRun:
    """A configuration trained again with one seed and tested once.

    Attributes:
        seed: the run's seed.
        fold: the fold's number, counted from 1; None if there is only one fold.
        best_epoch: the `epoch` of the history's row whose weights were tested.
        validation: the metrics of the task on the validation cases, such as `auc` and `threshold`.
        test: the same on the test cases; an undefined metric is None.
        by_case: the same of the test cases by each rule, see `Result.by_case`; empty if each has one bag.
        history: as in `Trial`.
    """

    seed: int
    best_epoch: int
    validation: Metrics
    test: Metrics
    history: History = ()
    fold: int | None = None
    by_case: Mapping[str, Metrics] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a metric over several runs."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, rows: Sequence[Metrics], name: str) -> "Spread | None":
        """The spread over the rows that define the metric; None if none does."""
        values = [value for row in rows if (value := row.get(name)) is not None and math.isfinite(value)]
        return cls(median(values), min(values), max(values)) if values else None


@dataclass(frozen=True)
class FieldChange:
    """A field in which two configurations differ; None if a configuration does not have the field."""

    path: str
    best: object
    base: object


@dataclass(frozen=True)
class SweepSummary:
    """A finished sweep.

    Attributes:
        name: the sweep's name.
        dataset: the data set's name.
        synthetic: whether the bags are synthetic, not scanned; the report then says so at its top.
        objective: name of a trial's value, in words that fit an axis, such as "validation AUC".
        protocol: "strict"; "refit" or "nested" if the folds of a trial select; "paper" if the test fold
            selects, of which the report then warns at its top.
        trials: every trial, at least one of them complete.
        best_config: the full configuration of the best trial, nested.
        sweep_s: wall-clock seconds of the sweep, without the final runs.
        base_number: the trial that ran the base configuration, if one did.
        base_text: description of that configuration, such as the preset it takes and the changes to it.
        base_config: the full base configuration, nested, for a comparison with the best one.
        importances: a share per parameter, computed on the complete trials; empty if that was impossible.
        final_runs: the best configuration, trained again, a run per seed.
        baselines: other configurations by name, such as the same network without masking, a run per seed.
        split_sizes: `cases` and `bags` of each split by name.
        environment: versions, hardware and commands to show, by name.
        notes: remarks on the search, such as the number of impossible draws.
        num_tested: number of configurations that these test cases have tested so far, including those shown
            here; None if it was not counted.
        front: numbers of the trials that no other trial beats in both objectives; empty with one objective.
        cost: name of the second objective, in words; empty if there is only one objective.
        selection: the metric that selects.
        headings: the metrics of the final runs that are shown, and their headings.
    """

    name: str
    dataset: str
    synthetic: bool
    objective: str
    protocol: Literal["strict", "paper", "refit", "nested"]
    trials: Sequence[Trial]
    best_config: Mapping[str, object]
    sweep_s: float
    base_number: int | None = None
    base_text: str = ""
    base_config: Mapping[str, object] | None = None
    importances: Mapping[str, float] = field(default_factory=dict)
    final_runs: Sequence[FinalRun] = ()
    baselines: Mapping[str, Sequence[FinalRun]] = field(default_factory=dict)
    split_sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    num_tested: int | None = None
    front: Sequence[int] = ()
    cost: str = ""
    selection: str = "auc"
    headings: Mapping[str, str] = field(default_factory=lambda: classification(2).headings)

    @property
    def score(self) -> str:
        """The selecting metric in words, such as "AUC"."""
        return self.headings[self.selection]

    def __post_init__(self) -> None:
        if not self.in_state("complete"):
            raise SweepError(
                f"sweep {self.name}: expected at least one complete trial, got {len(self.trials)} trials, "
                f"of which {len(self.in_state('pruned'))} pruned and {len(self.in_state('failed'))} failed"
            )
        if self.base_number is not None and self.base is None:
            raise SweepError(
                f"sweep {self.name}: expected the number of a trial as base_number, got {self.base_number}"
            )

    def in_state(self, state: State) -> list[Trial]:
        """The trials in one state, in the given order."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def case_rules(self) -> list[str]:
        """The rules by which the final runs' slides make cases; empty if every case has one slide."""
        finals = [self.final_runs, *self.baselines.values()]
        return list(dict.fromkeys(rule for runs in finals for run in runs for rule in run.by_case))

    @property
    def has_threshold(self) -> bool:
        """Whether the runs decide between two classes at a threshold."""
        return any(run.test.get("threshold") is not None for run in self.final_runs)

    @property
    def ranked(self) -> list[Trial]:
        """The complete trials from the best to the worst, then the pruned ones, then the failed ones."""
        complete = sorted(self.in_state("complete"), key=rank)
        return [*complete, *self.in_state("pruned"), *self.in_state("failed")]

    @property
    def best(self) -> Trial:
        """The complete trial with the highest value; a pruned trial is never the best."""
        return self.ranked[0]

    @property
    def num_judged(self) -> int:
        """The number of trials that validation cases have judged, including those that they have stopped."""
        return sum(trial.state != "failed" and is_number(trial.value) for trial in self.trials)

    @property
    def num_tested_before(self) -> int:
        """The number of configurations that the test cases have tested in addition to those shown."""
        return max(0, (self.num_tested or 0) - 1 - len(self.baselines))

    @property
    def base(self) -> Trial | None:
        """The trial that ran the base configuration."""
        return next((trial for trial in self.trials if trial.number == self.base_number), None)

    @property
    def varied_params(self) -> list[str]:
        """The parameters that differ between trials, the most important first; absence is a difference."""
        paths = list(dict.fromkeys(path for trial in self.trials for path in trial.params))
        absent = object()
        # Compared as text: a parameter may be a list, which cannot be hashed.
        varied = [
            path for path in paths if len({repr(trial.params.get(path, absent)) for trial in self.trials}) > 1
        ]
        return sorted(varied, key=lambda path: -self.importances.get(path, 0.0))

    @property
    def changes(self) -> list[FieldChange]:
        """The fields in which the best configuration differs from the base; empty without a base."""
        if self.base_config is None:
            return []
        best, base = dict(leaves(self.best_config)), dict(leaves(self.base_config))
        return [
            FieldChange(path, best.get(path), base.get(path))
            for path in dict.fromkeys([*best, *base])
            if best.get(path) != base.get(path)
        ]


def rank(trial: Trial) -> tuple[float, float, int]:
    """Key that sorts complete trials: the highest value first, then the lowest cost, then the earliest trial.

    The first trial is always on the Pareto front.
    """
    return -value_of(trial), trial.cost or 0.0, trial.number


def value_of(trial: Trial) -> float:
    """The value of a trial known to have one."""
    assert trial.value is not None, f"a complete trial has a value: {trial}"
    return trial.value


def is_number(value: object) -> bool:
    """Whether a setting or a metric is a finite number; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def leaves(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted path and the value of every leaf of a nested configuration."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The shortest dotted ending of each path that no other path shares."""

    def ending(path: str, parts: int) -> str:
        return ".".join(path.split(".")[-parts:])

    names = {}
    for path in paths:
        depths = range(1, path.count(".") + 2)
        others = [other for other in paths if other != path]
        unique = (
            ending(path, n) for n in depths if all(ending(other, n) != ending(path, n) for other in others)
        )
        names[path] = next(unique, path)
    return names
