"""The end of a sweep: its best configurations trained again, tested once, and the report."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import ray

from mhimdist import files, terminal
from mhimdist.config.presets import PRESETS, preset
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.folds import FoldSet
from mhimdist.cross_validation.options import Candidate
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.distributed.fold_tasks import run_folds
from mhimdist.errors import SweepError
from mhimdist.process import Stopping
from mhimdist.report import formats
from mhimdist.report import summary as report
from mhimdist.report.sweep_page import write_sweep_report
from mhimdist.report.sweep_tables import print_summary
from mhimdist.search.options import COSTS, Sweep
from mhimdist.search.storage import hidden
from mhimdist.search.study import SweepStudy
from mhimdist.sweep.calibration import Planning
from mhimdist.sweep.encoders import told_apart
from mhimdist.sweep.folder import SweepFolder
from mhimdist.sweep.memory import is_out_of_memory
from mhimdist.sweep.task import Task
from mhimdist.sweep.watch import print_line
from mhimdist.tasks import Task as Meaning
from mhimdist.tasks import task_of
from mhimdist.training.environment import environment
from mhimdist.training.folds import RESULT_FILE, Fold
from mhimdist.training.model_card import read_trained, write_card
from mhimdist.training.requirements import notes_on_classes
from mhimdist.training.result import Result, note_on

PLAIN = "without masking"
"""The name of the best configuration's network without masking among the final runs."""
MAX_REASONS = 5
"""Most different reasons that an error names if no trial was completed."""


@dataclass(frozen=True)
class Finished:
    """A sweep that has ended.

    Attributes:
        folder: the sweep's folder.
        best: its best trial.
        tuned: the final runs of that trial's configuration.
        plain: those of its network without masking; empty if it is itself without.
        of_features: those of the best trial of each feature set; empty if the sweep did not choose among any.
    """

    folder: Path
    best: report.Trial
    tuned: Sequence[Result]
    plain: Sequence[Result]
    of_features: Mapping[str, Sequence[Result]] = field(default_factory=dict)

    @property
    def task(self) -> Meaning:
        """What it predicts."""
        return self.tuned[0].meaning

    @property
    def test_score(self) -> float | None:
        """Mean test score of the configuration over the final seeds; None if it is undefined."""
        selection = self.task.selection
        found = [value for result in self.tuned if (value := result.test[selection]) is not None]
        return mean(found) if found else None


def finish(
    study: SweepStudy,
    task: Task,
    folder: SweepFolder,
    bags: StoredBags,
    planning: Planning,
    stopping: Stopping,
) -> Finished:
    """Train the best configurations again, test them once, and write report and result.

    Args:
        study, task, folder: of the sweep.
        bags: the data set.
        planning: knows the share of the cluster that a run takes.
        stopping: asks the runs to stop.

    Returns:
        What it found.

    Raises:
        SweepError: no trial was completed.
    """
    sweep, splits, console = study.sweep, list(task.splits), terminal.console()
    trials = [folder.summarise(trial, study.config(trial.number), splits) for trial in study.records]
    complete = sorted((t for t in trials if t.state == "complete"), key=report.rank)
    if not complete:
        raise SweepError(_why_none_completed(sweep, trials))
    front = study.pareto_front()
    # The best trial is first with one objective or two; the others of the front follow.
    chosen = sorted(complete, key=lambda trial: bool(front) and trial.number not in front)[: sweep.final_top]
    chosen += _best_of_other_features(complete, chosen, study, task)
    runs = sweep.final_seeds * len(splits)
    runs = runs if sweep.protocol == "strict" else sweep.final_seeds
    what = "configuration" if len(chosen) == 1 else f"{len(chosen)} configurations"
    print_line(f"training the best {what} again, {formats.count(runs, 'run')} each, then testing")
    configs = [(trial.number, study.config(trial.number)) for trial in chosen]
    of_set = {number: f", {config.features}" if task.feature_sets else "" for number, config in configs}
    best, *others = [(f"trial {number}{of_set[number]}", config) for number, config in configs]
    plain = best[1].first_stage()
    candidates = [Candidate(*best), *(Candidate(*other) for other in others)]
    if best[1].teacher.kind != "none":
        candidates.append(Candidate(PLAIN, plain))
    planned = _train_finals(task.sweep, candidates, task, folder, bags, planning, stopping)
    finals = _final_runs(planned, len(splits) > 1 and sweep.protocol == "strict")
    compares = task.feature_sets and sweep.protocol != "nested"  # nested does so over all outer folds
    told = told_apart(folder.path, [config for _, config in configs]) if compares else []
    summary = _summary(study, trials, best, finals, folder, bags, splits, told, task.outer)
    write_sweep_report(summary, folder.path / "report.html")
    print_summary(summary, console)
    score = summary.selection
    test = report.Spread.of([final.test for final in summary.final_runs], score)
    result: dict[str, Any] = {
        f"test_{score}": test.median if test is not None else None,
        f"validation_{score}": complete[0].value,
        "num_trials": len(trials),
        "sweep_s": round(summary.sweep_s, 1),
        "report": str(folder.path / "report.html"),
    }
    if notes := [*notes_on_classes(bags, splits), *filter(None, [note_on(best[1], bags)])]:
        result["notes"] = notes
    files.write_text(folder.path / "result.json", json.dumps(result) + "\n")
    trial = next(trial for trial in trials if trial.number == chosen[0].number)
    tested = {
        name: [planned.folds[digest].ended_result() for digest in digests]
        for (name, _), digests in planned.members.items()
    }
    # Of several trials of a set the best, which comes first, is taken last.
    several = (*others[::-1], best) if task.feature_sets else ()
    of_features = {config.features or "": tested[name] for name, config in several}
    return Finished(folder.path, trial, tested[best[0]], tested.get(PLAIN, ()), of_features)


def _best_of_other_features(
    complete: Sequence[report.Trial], chosen: Sequence[report.Trial], study: SweepStudy, task: Task
) -> list[report.Trial]:
    """The best trial of each feature set that the sweep chose among and that no chosen trial has.

    Only their final runs say, by paired tests, how much the choice of the encoder matters.
    """
    features_of = {trial.number: study.config(trial.number).features for trial in complete}
    seen = {features_of[trial.number] for trial in chosen}
    found = []
    for trial in complete:
        if task.feature_sets and features_of[trial.number] not in seen:
            seen.add(features_of[trial.number])
            found.append(trial)
    return found


def _why_none_completed(sweep: Sweep, trials: Sequence[report.Trial]) -> str:
    states = Counter(trial.state for trial in trials)
    counts = ", ".join(f"{number} {state}" for state, number in states.items()) or "none"
    reasons = {
        formats.last_line(trial.reason) or "no reason was recorded": trial.number
        for trial in reversed(trials)
    }
    named = [f"trial {number}: {reason}" for reason, number in reversed(reasons.items())]
    more = f"; and {len(named) - MAX_REASONS} other reasons" if len(named) > MAX_REASONS else ""
    return (
        f"no trial of {sweep.name} was completed ({formats.count(len(trials), 'trial')}: {counts}), so there "
        f"is nothing to train again and test; run more trials, or failed ones again by --retry-failed. "
        f"{'; '.join(named[:MAX_REASONS])}{more}"
    )


def _summary(
    study: SweepStudy,
    trials: list[report.Trial],
    best: tuple[str, TrainConfig],
    finals: dict[str, list[report.FinalRun]],
    folder: SweepFolder,
    bags: StoredBags,
    splits: list[Split],
    told: Sequence[str],
    outer: int,
) -> report.SweepSummary:
    """The sweep as plain data; `best` names its best trial, `told` what tells its feature sets apart."""
    sweep, meaning = study.sweep, task_of(bags, best[1].task)
    return report.SweepSummary(
        name=sweep.name,
        dataset=bags.name,
        synthetic=bags.synthetic,
        objective=f"validation {meaning.title}",
        selection=meaning.selection,
        headings=meaning.headings,
        protocol=sweep.final_protocol,
        trials=trials,
        best_config=best[1].model_dump(mode="json"),
        sweep_s=folder.elapsed_s(),
        base_number=0,
        base_text=_text_of(sweep.train),
        base_config=sweep.train.model_dump(mode="json"),
        importances=study.importances(),
        final_runs=finals[best[0]],
        baselines={name: runs for name, runs in finals.items() if name != best[0]},
        split_sizes=_split_sizes(bags, splits),
        environment=_environment(sweep, folder),
        notes=[
            *study.notes(),
            *told,
            *notes_on_classes(bags, splits),
            *filter(None, [note_on(best[1], bags)]),
        ],
        num_tested=_num_tested(folder, f"fold-{outer}-*" if sweep.protocol == "nested" else "*"),
        front=study.pareto_front(),
        cost=COSTS[sweep.against].text if sweep.against in COSTS else "",
    )


def _train_finals(
    sweep: Sweep,
    candidates: list[Candidate],
    task: Task,
    folder: SweepFolder,
    bags: StoredBags,
    planning: Planning,
    stopping: Stopping,
) -> FoldSet:
    """Train and test every candidate with all final seeds; finished runs are only read."""
    planned = FoldSet(sweep, candidates, folder.finals)
    if sweep.protocol == "strict":
        for seed in final_seeds(sweep):
            for number, split in enumerate(task.splits, 1):
                planned.add(split, number, seed, "strict", bags)
    else:
        _add_refits(planned, candidates, task, folder, bags)
    missing = planned.missing()
    outcomes = run_folds(sweep, missing, task.data, stopping, planning.share) if missing else {}
    for digest, outcome in list(outcomes.items()):
        if isinstance(outcome, str) and is_out_of_memory(outcome):
            print_line(
                f"{missing[digest].name} ran out of memory: it runs again alone, with all that a node has"
            )
            share = planning.largest_share()
            outcomes |= run_folds(sweep, {digest: missing[digest]}, task.data, stopping, share)
    planned.raise_failures(outcomes)
    best = planned.members[candidates[0].name, sweep.final_protocol]
    trained = [read_trained(planned.folds[digest].folder) for digest in best]
    write_card(folder.path, trained, f"{sweep.name}, {candidates[0].name}")
    return planned


def _add_refits(
    planned: FoldSet, candidates: Sequence[Candidate], task: Task, folder: SweepFolder, bags: StoredBags
) -> None:
    """Add every candidate on all cases that do not test.

    The folds of a trial, which have trained already, choose for its configuration. Those of the network
    without masking are added: mostly they are the first stages of the trial's folds.
    """
    sweep = task.sweep
    for candidate in candidates:
        if candidate.name == PLAIN:
            inner = [
                fold
                for seed in sweep.run_seeds
                for fold in planned.add_inner(candidate, task.splits, task.outer, seed, bags)
            ]
        else:
            # Named after its trial and, where the sweep chooses among them, its features.
            number = int(candidate.name.removeprefix("trial ").partition(",")[0])
            inner = folder.folds(number, candidate.config, task.splits)
        for seed in final_seeds(sweep):
            whole = task.splits[0].whole()
            planned.add_fold(candidate, whole, task.outer, seed, sweep.final_protocol, bags, inner)


def _final_runs(planned: FoldSet, with_fold: bool) -> dict[str, list[report.FinalRun]]:
    return {
        name: [_final_run(planned.folds[digest], name != PLAIN, with_fold) for digest in digests]
        for (name, _), digests in planned.members.items()
    }


def _final_run(fold: Fold, with_history: bool, with_fold: bool) -> report.FinalRun:
    result = fold.ended_result()
    history: report.History = [asdict(record) for record in fold.records()]
    if result.validation_curve:  # its own epochs have no validation
        history = [
            {"epoch": epoch, "student_validation_score": score}
            for epoch, score in enumerate(result.validation_curve)
        ]
    return report.FinalRun(
        seed=fold.config.seed,
        best_epoch=result.best_epoch,
        validation=result.validation,
        test=result.test,
        history=history if with_history else (),
        fold=fold.fold if with_fold else None,
        by_case=result.by_case,
    )


def final_seeds(sweep: Sweep) -> list[int]:
    """The seeds of the final runs: new ones, as the search chose its best run among its own seeds."""
    unused = (seed for seed in itertools.count(sweep.train.seed) if seed not in sweep.run_seeds)
    return list(itertools.islice(unused, sweep.final_seeds))


def _num_tested(folder: SweepFolder, pattern: str = "*") -> int:
    """How many configurations this sweep's final runs have tested so far; seeds do not count."""
    tested = set()
    for result in folder.finals.glob(f"{pattern}/{RESULT_FILE}"):
        try:
            config = TrainConfig.model_validate_json((result.parent / "config.json").read_text())
            tested.add(config.model_copy(update={"seed": 0}).digest())
        except (OSError, ValueError):  # lost, or of another release; it was tested all the same
            tested.add(result.parent.name)
    return len(tested)


def _text_of(config: TrainConfig) -> str:
    """The authors' preset that a configuration is, or is nearest to, and the settings that differ."""
    named = {
        f"the paper's preset of {model} for {dataset}": _changes(preset(dataset, model), config)
        for dataset, model in PRESETS
        if model == config.model.name
    }
    if not named:
        return f"no preset of the paper, which has none for {config.model.name}"
    name = min(named, key=lambda each: len(named[each]))
    return name + (f" with {', '.join(named[name])}" if named[name] else "")


def _changes(before: TrainConfig, after: TrainConfig) -> list[str]:
    """The settings that a configuration changes in another one, except seed and device."""
    old, new = (dict(report.leaves(config.recipe())) for config in (before, after))
    return [
        f"{path} {formats.setting(new.get(path))}"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path) and path not in ("seed", "device")
    ]


def _split_sizes(bags: StoredBags, splits: list[Split]) -> dict[str, dict[str, int]]:
    case_of = dict(zip(bags.keys, bags.cases, strict=True))
    sizes = {}
    for number, split in enumerate(splits, 1):
        for name, keys in split.sets.items():
            of = name if len(splits) == 1 or name == "test" else f"{name}, fold {number}"
            sizes[of] = {"cases": len({case_of[key] for key in keys}), "bags": len(keys)}
    return sizes


def _environment(sweep: Sweep, folder: SweepFolder) -> dict[str, str]:
    found: dict[str, str] = {"sampler": sweep.sampler, "scheduler": sweep.scheduler}
    if sweep.folds_per_trial > 1:
        found["folds x seeds"] = f"{sweep.folds} x {len(sweep.run_seeds)}"
    resources = ray.cluster_resources()
    return found | {
        **environment(sweep.num_threads),
        "nodes": str(len([node for node in ray.nodes() if node["Alive"]])),
        "CPU cores": f"{resources.get('CPU', 0):g}",
        "GPUs": f"{resources.get('GPU', 0):g}",
        "optuna-dashboard": hidden(folder.url),
    }
