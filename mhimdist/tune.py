"""Sweeps: Ray Tune runs the trials, Optuna proposes them, validation AUC judges them.

A trial is one process on a share of a machine and steps through the same engine as a single run. When all
are done the best configuration is trained again with several seeds, and only then are test cases looked at.
"""

import importlib.metadata
import json
import logging
import platform
import shutil
import statistics
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import ray
import torch
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, model_validator
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from rich import get_console

from mhimdist import atomic, cluster, study
from mhimdist.config import TrainConfig
from mhimdist.data.loader import BagShards, open_bags
from mhimdist.data.remote import Location, absolute
from mhimdist.data.splits import Split, holdout
from mhimdist.errors import SweepError
from mhimdist.evaluation import evaluate
from mhimdist.first_stage import first_stage, open_trainer
from mhimdist.home import home
from mhimdist.options import Options
from mhimdist.report import summary as report
from mhimdist.report.sweep import write_sweep_report
from mhimdist.report.table import print_summary
from mhimdist.space import SpaceFunction

OBJECTIVE = "validation_auc"
ERROR_FILE = "error.txt"


class Sweep(Options):
    """A search for a better configuration."""

    home: Path = Field(
        default_factory=home,
        description="folder of data/, runs/ and cache/, on storage that every node sees "
        "(default: MHIMDIST_HOME, else ~/mhimdist)",
    )
    name: str = Field("sweep", description="of the sweep's folder under runs/", pattern=r"^[\w.-]+$")
    data: str = Field(
        "digits-c16",
        description="an embedded data set's name, a folder of shards, or its URL (s3, gs, https, ...)",
    )
    num_trials: int = Field(24, ge=1, description="configurations to try, the base itself first")
    objective: str = Field(OBJECTIVE, description="what a trial is judged by; never a test metric")
    test_share: float = Field(0.35, gt=0, lt=1, description="share of the cases that the sweep never sees")
    validation_share: float = Field(0.2, gt=0, lt=1, description="share of the cases that judge a trial")
    split_seed: int = Field(0, ge=0, description="of the draw of test and validation cases")
    seed: int = Field(0, ge=0, description="of the proposals")
    num_startup: int = Field(8, ge=1, description="trials drawn at random before the sampler models them")
    grace_epochs: int = Field(5, ge=1, description="epochs before which no trial is stopped")
    reduction_factor: float = Field(
        3.0, gt=1, description="at every rung one in so many trials goes on (ASHA)"
    )
    final_seeds: int = Field(3, ge=1, description="seeds with which the best configuration is trained again")
    cpus_per_trial: float = Field(1.0, gt=0, description="CPU cores, and compute threads, of a trial")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="share of a GPU of a trial; by default a quarter where the cluster has GPUs"
    )
    fresh: bool = Field(False, description="delete an earlier sweep of this name first")
    train: TrainConfig = Field(TrainConfig(), description="the base configuration, which is the first trial")

    @model_validator(mode="after")
    def _objective_is_validation(self) -> Self:
        if "test" in self.objective:
            raise ValueError(
                f"objective {self.objective}: a sweep that picks its best trial by a test metric makes that "
                f"metric worthless as a test; use {OBJECTIVE}"
            )
        if self.objective != OBJECTIVE:
            raise ValueError(f"objective {self.objective} is unknown; use {OBJECTIVE}")
        return self


def run_sweep(sweep: Sweep, space: SpaceFunction, *, data: Location) -> Path:
    """Run the trials, train the best configuration again, test it, and write the report.

    Under `<sweep.home>/runs/<name>` it leaves study.db, a folder a trial, result.json and report.html.

    Args:
        sweep: how much to search, on what.
        space: what a trial changes of `sweep.train`.
        data: folder of shards, on storage that every node sees, or its URL.

    Returns:
        The sweep's folder.

    Raises:
        SweepError: the folder is taken, the space is impossible, or no trial was completed.
    """
    started, console = time.monotonic(), get_console()
    bags = BagShards(data)
    split = holdout(
        bags.keys,
        bags.cases,
        bags.labels_N,
        test_share=sweep.test_share,
        validation_share=sweep.validation_share,
        seed=sweep.split_seed,
    )
    first_trial = study.check(space, sweep.train)
    folder = _claim(sweep.home / "runs" / sweep.name, fresh=sweep.fresh)
    split.save(folder / "split.json")
    atomic.write_text(folder / "sweep.json", sweep.model_dump_json(indent=1))
    runner = Runner(absolute(data), split, folder.resolve(), (sweep.home / "cache" / "first_stage").resolve())
    searcher = study.search(
        space,
        first_trial,
        metric=OBJECTIVE,
        seed=sweep.seed,
        num_startup=sweep.num_startup,
        path=folder / "study.db",
    )
    console.print(
        f"[bold]{sweep.name}[/]: {sweep.num_trials} trials on {bags.name}, {len(split.train)} bags train, "
        f"{len(split.validation)} validate, {len(split.test)} test; results in {folder}",
        soft_wrap=True,
    )

    cluster.connect()
    resources = cluster.resources(sweep.cpus_per_trial, sweep.gpus_per_trial)
    _run_trials(sweep, searcher, runner, resources)
    trials = [_trial(trial, runner) for trial in study.read(folder / "study.db")]
    sweep_s = time.monotonic() - started
    best = max((trial for trial in trials if trial.state == "complete"), key=report.value_of, default=None)
    if best is None:
        reasons = "; ".join(f"trial {t.number}: {t.reason}" for t in trials if t.state == "failed")
        raise SweepError(f"no trial of {sweep.name} was completed. {reasons}")

    best_config = runner.config(best.number).model_copy(update={"loading": sweep.train.loading})
    console.print(f"training the best configuration again, {sweep.final_seeds} seeds, then testing it")
    finals = _train_finals(sweep, best_config, runner, resources)
    summary = report.SweepSummary(
        name=sweep.name,
        dataset=bags.name,
        synthetic=bags.synthetic,
        objective="validation AUC",
        protocol="strict",
        trials=trials,
        best_config=best_config.model_dump(mode="json"),
        sweep_s=sweep_s,
        preset_number=0,
        preset_config=sweep.train.model_dump(mode="json"),
        importances=study.importances(folder / "study.db"),
        final_runs=[final for final, _ in finals],
        baselines={"without masking": [baseline for _, baseline in finals]},
        split_sizes=_split_sizes(bags, split),
        environment=_environment(),
    )
    write_sweep_report(summary, folder / "report.html")
    print_summary(summary, console)
    result = {
        "test_auc": statistics.median(_test_auc(final) for final, _ in finals),
        "validation_auc": best.value,
        "num_trials": len(trials),
        "sweep_s": round(sweep_s, 1),
        "report": str(folder / "report.html"),
    }
    atomic.write_text(folder / "result.json", json.dumps(result) + "\n")
    return folder


class Runner:
    """Makes the runs of a sweep, on whichever node it is sent to."""

    def __init__(self, data: Location, split: Split, folder: Path, cache: Path) -> None:
        self.data, self.split, self.folder, self.cache = data, split, folder, cache

    def trial_folder(self, number: int) -> Path:
        """Where trial `number` leaves its configuration, history and checkpoints."""
        return self.folder / "trials" / f"{number:04d}"

    def config(self, number: int) -> TrainConfig:
        """The full configuration of trial `number`, as it ran."""
        return TrainConfig.model_validate_json((self.trial_folder(number) / "config.json").read_text())

    def run_trial(self, config: Mapping[str, Any], *, base: TrainConfig, num_threads: int) -> None:
        """Ray Tune's trainable: one trial, reported epoch by epoch."""
        torch.set_num_threads(num_threads)
        folder = self.trial_folder(config["number"])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            settings = base.override(config["changes"])
            trainer = open_trainer(
                settings, open_bags(self.data, settings.loading), self.split, folder, self.cache
            )
            for record in trainer.epochs():
                tune.report(
                    {
                        OBJECTIVE: record.best_validation_auc,
                        "epoch": record.epoch + 1,
                        "is_finished": trainer.is_finished,
                    }
                )
        except Exception:
            atomic.write_text(folder / ERROR_FILE, traceback.format_exc())
            raise

    def error(self, number: int) -> str:
        """Why trial `number` failed: the traceback it left, or that it left none."""
        file = self.trial_folder(number) / ERROR_FILE
        if file.exists():
            return file.read_text(encoding="utf-8")
        return "its process ended without a word: killed, or out of memory"

    def run_final(self, config: TrainConfig, num_threads: int) -> tuple[report.FinalRun, report.FinalRun]:
        """Train and test a configuration, and the same network without masking beside it."""
        torch.set_num_threads(num_threads)
        bags = open_bags(self.data, config.loading)
        trainer = open_trainer(
            config, bags, self.split, self.folder / "final" / f"seed-{config.seed}", self.cache
        )
        for _ in trainer.epochs():
            pass
        tested = evaluate(trainer.best_student(), bags, self.split)
        history = [asdict(record) for record in trainer.history]
        final = report.FinalRun(
            config.seed, trainer.best.epoch, tested["validation"], tested["test"], history
        )
        plain = first_stage(config, bags, self.split, self.cache)
        tested = evaluate(plain.network, bags, self.split)
        return final, report.FinalRun(config.seed, plain.best_epoch, tested["validation"], tested["test"], ())


def _claim(folder: Path, *, fresh: bool) -> Path:
    if folder.exists():
        if not fresh:
            raise SweepError(
                f"{folder} holds an earlier sweep: give another --name, or --fresh to delete that one"
            )
        if not (folder / "sweep.json").exists():
            raise SweepError(f"{folder} is no sweep's folder (it has no sweep.json): not deleting it")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _run_trials(
    sweep: Sweep,
    searcher: study.StudySearch,
    runner: Runner,
    resources: dict[str, float],
) -> None:
    """Run all trials; what they leave is in the study and in their folders."""
    # Ray logs the traceback of a trial that fails; it is in the trial's folder and in the report.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    num_threads = max(1, int(sweep.cpus_per_trial))
    trainable = tune.with_parameters(_run_trial, runner=runner, base=sweep.train, num_threads=num_threads)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            search_alg=searcher,
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=sweep.train.epochs,
                grace_period=min(sweep.grace_epochs, sweep.train.epochs),
                reduction_factor=sweep.reduction_factor,
            ),
            num_samples=sweep.num_trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=str(runner.folder / "ray"),
            name="tune",
            verbose=0,
            callbacks=[Progress(sweep.num_trials, runner)],
        ),
    )
    tuner.fit()


def _run_trial(config: dict[str, Any], runner: Runner, base: TrainConfig, num_threads: int) -> None:
    runner.run_trial(config, base=base, num_threads=num_threads)


class Progress(tune.Callback):
    """A line for every trial that ends."""

    def __init__(self, num_trials: int, runner: Runner) -> None:
        self.num_trials, self.runner = num_trials, runner
        self._started = time.monotonic()
        self._done = 0
        self._best: tuple[float, int] | None = None

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Print what the trial reached."""
        result, number = trial.last_result, trial.config["number"]
        value, finished = result[OBJECTIVE], result["is_finished"]
        if finished and (self._best is None or value > self._best[0]):
            self._best = (value, number)
        state = "complete" if finished else "pruned  "
        self._line(number, f"{state} validation AUC {value:.3f} after {result['epoch']:>3} epochs")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Print why the trial failed."""
        number = trial.config["number"]
        self._line(number, f"failed   {self.runner.error(number).splitlines()[-1]}")

    def _line(self, number: int, text: str) -> None:
        self._done += 1
        elapsed = time.monotonic() - self._started
        left = elapsed / self._done * (self.num_trials - self._done)
        best = f"best {self._best[0]:.3f} (trial {self._best[1]})" if self._best else "none complete"
        get_console().print(
            f"[{self._done:>3}/{self.num_trials}] trial {number:>3} {text} | {best} | "
            f"{elapsed:.0f} s, about {left:.0f} s left",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _trial(trial: FrozenTrial, runner: Runner) -> report.Trial:
    history_file = runner.trial_folder(trial.number) / "history.jsonl"
    lines = history_file.read_text().splitlines() if history_file.exists() else []
    state: report.State
    match trial.state:
        case TrialState.COMPLETE:
            state, reason = "complete", ""
        case TrialState.PRUNED:
            state, reason = "pruned", f"stopped after {len(lines)} epochs by ASHA"
        case _:
            state, reason = "failed", runner.error(trial.number)
    return report.Trial(
        number=trial.number,
        state=state,
        value=trial.value,
        params=trial.params,
        history=[json.loads(line) for line in lines],
        duration_s=trial.duration.total_seconds() if trial.duration else 0.0,
        reason=reason,
    )


def _train_finals(
    sweep: Sweep, config: TrainConfig, runner: Runner, resources: dict[str, float]
) -> list[tuple[report.FinalRun, report.FinalRun]]:
    num_threads = max(1, int(sweep.cpus_per_trial))
    task = ray.remote(Runner.run_final).options(num_cpus=resources["cpu"], num_gpus=resources["gpu"])
    configs = [config.override({"seed": config.seed + i}) for i in range(sweep.final_seeds)]
    return ray.get([task.remote(runner, each, num_threads) for each in configs])


def _test_auc(run: report.FinalRun) -> float:
    value = run.test["auc"]
    assert value is not None, "a split's test bags are of several classes"
    return value


def _split_sizes(bags: BagShards, split: Split) -> dict[str, dict[str, int]]:
    case_of = dict(zip(bags.keys, bags.cases, strict=True))
    return {
        name: {"cases": len({case_of[key] for key in keys}), "bags": len(keys)}
        for name, keys in split.sets.items()
    }


def _environment() -> dict[str, str]:
    packages = ("mhimdist", "torch", "ray", "optuna", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    resources = ray.cluster_resources()
    return {
        "python": platform.python_version(),
        **versions,
        "nodes": str(len([node for node in ray.nodes() if node["Alive"]])),
        "CPU cores": f"{resources.get('CPU', 0):g}",
        "GPUs": f"{resources.get('GPU', 0):g}",
    }
