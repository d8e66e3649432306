"""Runs a sweep: Ray Tune runs the trials, Optuna proposes and prunes them, their validation score ranks them.

Ray Tune starts trials where there is room, notices when their process or node is lost, keeps processes for
the next trial, stops trials, and feeds loggers. It decides nothing and remembers nothing: its searcher and
its scheduler are two thin classes of `ray_hooks` that pass everything to `study.SweepStudy`, and the study
writes it to a database before anyone acts on it. So there is one record, and one way to resume after a kill:
open the study, run its unfinished trials, which find the checkpoints of their folds, then propose the rest.
`Tuner.restore` would be a second record, some seconds older than the first.

When all trials have ended, the best configurations are trained again on all folds with new seeds. Only these
runs look at the test cases.
"""

import hashlib
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from mhimdist import files, terminal
from mhimdist.cluster.connect import connect, refuse_open_cluster
from mhimdist.cluster.nodes import Share
from mhimdist.data.opening import open_bags, with_features
from mhimdist.data.remote import Location, absolute
from mhimdist.data.sampler import warn_of_larger_bags
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.data.sub_bags import trained_on
from mhimdist.distributed.worker_group import worker_group
from mhimdist.errors import DiskFullError, MhimdistError, SweepError
from mhimdist.process import Stopping
from mhimdist.report import formats
from mhimdist.search import first_trials, proposals, samplers
from mhimdist.search.options import Sweep
from mhimdist.search.space import SpaceFunction
from mhimdist.search.storage import hidden, network_filesystem
from mhimdist.search.study import SweepStudy
from mhimdist.sweep.calibration import Planning
from mhimdist.sweep.driver import SHARE, Driver, one_line
from mhimdist.sweep.finals import Finished, finish
from mhimdist.sweep.folder import SweepFolder
from mhimdist.sweep.live_trials import Capacity
from mhimdist.sweep.memory import TrialShares
from mhimdist.sweep.nested import run_nested
from mhimdist.sweep.ray_hooks import (
    DriverCallback,
    StopOnceSaved,
    StudyScheduler,
    StudySearcher,
    guard_callback,
    surviving_the_memory_monitor,
)
from mhimdist.sweep.repeat import write_repeat
from mhimdist.sweep.silence import Silence
from mhimdist.sweep.task import Task
from mhimdist.sweep.trackers import trackers
from mhimdist.sweep.trainable import SweepTrial, make_first_stage
from mhimdist.sweep.watch import Watch, print_line, warn
from mhimdist.tasks import task_of
from mhimdist.training.folds import ERROR_FILE
from mhimdist.training.requirements import check_runs, describe_left_out, notes_on_classes

__all__ = ["Sweep", "run_sweep"]


MAX_STARTS = 4
"""Starts of a sweep in a row, killed while a trial ran without progress, after which the trial counts as the
cause."""


def run_sweep(sweep: Sweep, space: SpaceFunction, *, data: Location) -> Path:
    """Run the trials, train the best configuration again, test it, and write the report.

    It writes study.db, a folder per trial, result.json and report.html under `<sweep.home>/runs/<name>`.
    Called again with the same arguments, it resumes a sweep that was cut off, and changes nothing in a
    finished one. Under the protocols nested and all it runs a sweep inside each outer fold, see `nested`.

    Args:
        sweep: the settings of the search.
        space: the search space over `sweep.train`.
        data: folder of shards on storage that every node sees, or its URL.

    Returns:
        The sweep's folder.

    Raises:
        SweepError: the folder holds another sweep, the space is impossible, no trial was completed, or the
            sweep could not continue, for example without its database or after failures in a row.
        RunLockedError: another process drives this sweep.
        ClusterError: Ray's authentication is turned off, and `sweep.insecure` does not allow that.
        DataError: the data set cannot be read, or cannot be split as requested.
        PreemptedError: the sweep was asked to stop; the same command resumes it.
    """
    refuse_open_cluster(insecure=sweep.insecure)
    bags = open_bags(data, sweep.train.loading, sweep.train.features, bag_of=sweep.bag_of)
    warn_of_larger_bags(trained_on(bags, sweep.train), sweep.train.max_instances)
    if sweep.final_protocol != "nested":
        return _run(sweep, space, bags, data, sweep.splits(bags)).folder

    def search(inside: Sweep, splits: list[Split], number: int, finals: Path) -> Finished:
        if number == 1:
            write_repeat(sweep, space, proposals.examine(space, sweep.train))
        return _run(inside, space, bags, data, splits, number, finals)

    return run_nested(sweep, bags, search, data)


def _run(
    sweep: Sweep,
    space: SpaceFunction,
    bags: StoredBags,
    data: Location,
    splits: list[Split],
    outer: int = 1,
    finals: Path | None = None,
) -> Finished:
    """Run a sweep on its splits, see `run_sweep`.

    Args:
        sweep, space, data: as in `run_sweep`.
        bags: the data set.
        splits: one per fold, all with the same test bags.
        outer: number of the outer fold that the sweep is inside.
        finals: receives the final runs; None: the sweep's own folder.
    """
    check_runs(((f"fold {number}", sweep.train, split) for number, split in enumerate(splits, 1)), bags)
    facts = proposals.examine(space, sweep.train)
    searched = _feature_sets(facts, bags)
    samplers.check(sweep.sampler, facts)
    folder = SweepFolder(sweep, finals)
    first, notes = folder.first_params, list[str]()
    if first is None:
        case_of = dict(zip(bags.keys, bags.cases, strict=True))
        earlier = first_trials.best_of_earlier(sweep, splits, case_of) if sweep.warm_from else []
        first, notes = first_trials.first_params(sweep, space, facts, earlier)
    trackers(sweep)  # a tracker that is not installed is refused before anything is written
    with (
        sweep.driving(),
        Stopping(f"{sweep.name} was stopped; the same command resumes it") as stopping,
    ):
        for left in (folder.stop_file, folder.path / ERROR_FILE):
            left.unlink(missing_ok=True)
        is_found = folder.claim(
            {
                "space": facts.digest,
                "bags": _digest(bags, searched),
                "splits": [split.digest() for split in splits],
            },
            first,
        )
        if finals is None:
            write_repeat(sweep, space, facts)
        study = SweepStudy(sweep, space, facts, folder.url, first, folder.owner)
        folder.check_study(len(study.trials))
        for number, split in enumerate(splits, 1):
            split.save(folder.path / f"split-{number}.json")
        # Trials never open the study, so its password stays in this process.
        task = Task(
            sweep.model_copy(update={"storage": None}),
            splits,
            absolute(data),
            folder.path / "trials",
            folder.stop_file,
            data_digest=bags.digest,
            outer=outer,
            feature_sets={name: with_features(bags, name).digest for name in searched},
        )
        _announce(bags, splits, study, folder, notes, is_found)
        connect(dashboard=sweep.workers > 1)  # within `stopping`, so that Ray leaves signals to it
        if sweep.workers > 1:
            task = replace(task, group=worker_group(sweep))
        planning = Planning(task)
        _run_trials(study, task, folder, bags, stopping, planning)
        return finish(study, task, folder, bags, planning, stopping)


def _feature_sets(facts: proposals.Facts, bags: StoredBags) -> tuple[str, ...]:
    """The feature sets that a space chooses among, the widest first; empty if it does not choose.

    Raises:
        ConfigError: the data set lacks one of them.
        DataError: sets that are to be side by side differ in their instances.
    """
    chosen = getattr(facts.distributions.get("features"), "choices", ())
    cost = {name: _row_values(with_features(bags, name)) for name in chosen}
    return tuple(sorted(cost, key=lambda name: (-cost[name], name)))


def _row_values(bags: StoredBags) -> int:
    """Numbers in the features of all bags: a wide set has the larger steps."""
    return int(bags.sizes_N.sum()) * bags.num_features


def _digest(bags: StoredBags, searched: Sequence[str]) -> str:
    """What identifies the data of a sweep: all features that its trials may train on."""
    if not searched:
        return bags.digest
    digests = "+".join(sorted(with_features(bags, name).digest for name in searched))
    return hashlib.sha256(digests.encode()).hexdigest()


def _announce(
    bags: StoredBags,
    splits: list[Split],
    study: SweepStudy,
    folder: SweepFolder,
    notes: list[str],
    is_found: bool,
) -> None:
    sweep = study.sweep
    runs = f" x {formats.count(sweep.folds_per_trial, 'run')}" if sweep.folds_per_trial > 1 else ""
    sizes = " / ".join(dict.fromkeys(f"{len(s.train)} train, {len(s.validation)} validate" for s in splits))
    print_line(
        f"{sweep.name}: {formats.count(study.num_trials, 'trial')}{runs} on {bags.name}, {sizes}, "
        f"{len(splits[0].test)} bags test; results in {folder.path}"
    )
    records = study.records
    if is_found and records:
        done = sum(trial.has_ended for trial in records)
        print_line(f"resumed: {done} of {len(records)} trials have ended")
    if study.facts.feasible_share < 0.5:
        print_line(
            f"{formats.share(study.facts.feasible_share)} of random draws meet the space's requirements"
        )
    for note in [*notes, *study.notes(), *notes_on_classes(bags, splits), describe_left_out(bags, splits)]:
        if note:
            warn(note)
    if sweep.storage is None and (kind := network_filesystem(folder.path)):
        warn(
            f"study.db is on {kind}, where SQLite's locks are unreliable: open it from this machine only, "
            "or give a database by --storage"
        )
    print_line(f"watch: optuna-dashboard {hidden(folder.url)}")
    print_line(f"       tensorboard --logdir {folder.path / 'ray'}")


def _run_trials(
    study: SweepStudy,
    task: Task,
    folder: SweepFolder,
    bags: StoredBags,
    stopping: Stopping,
    planning: Planning,
) -> None:
    """Run the trials that are left; their results are in the study and in their folders."""
    sweep, clock = study.sweep, folder.clock()
    unfinished = study.unfinished(MAX_STARTS, folder.num_epochs)
    if sweep.retry_failed:
        study.retry_failed()
    num_left = len(unfinished) + study.num_trials - len(study.records)
    if not num_left:
        return
    planned = planning.plan(num_left)
    print_line(planned.text(sweep))
    stages = _begin_first_stages(task, planned.share)  # not earlier: they would slow down the calibration
    driver = Driver(
        study,
        folder,
        _watch(study, task, folder, task_of(bags, sweep.train.task).title),
        clock,
        unfinished,
        capacity=Capacity(planning.num_fitting),
        shares=TrialShares(planned.share, planning.largest_share()),
        sizes_N=bags.sizes_N[bags.rows_of(sorted({key for split in task.splits for key in split.train}))],
        silence=Silence(planning.calibration.epoch_s * planned.slowed, sweep.trial_timeout_s),
        is_asked_to_stop=lambda: stopping.is_asked,
    )
    _mute_failed_trials()
    _set_environment_of_ray_tune(num_left)
    _fit(_tuner(driver, task, planned.share), driver, stopping)
    if driver.error is not None:
        raise _why_it_stopped(sweep, folder, driver.error) from driver.error
    if stopping.is_asked:
        print_line(f"stopped with {formats.count(driver.num_live, 'trial')} to resume")
        raise KeyboardInterrupt  # after a SIGTERM, `stopping` turns it into a PreemptedError
    del stages  # kept until now, so that Ray did not cancel them


def _watch(study: SweepStudy, task: Task, folder: SweepFolder, score: str) -> Watch:
    """The display of the sweep's trials; trials that ended in an earlier start are counted."""
    watch = Watch(terminal.progress(), num_trials=study.num_trials, score=score)
    for trial in study.records:
        if trial.has_ended:
            summary = folder.summarise(trial, study.config(trial.number), task.splits)
            watch.count_ended(trial.number, summary.state, summary.value)
    return watch


def _mute_failed_trials() -> None:
    """Have Ray log no traceback of a failed trial: the trial's folder and the report have it."""
    for name in ("execution.tune_controller", "tune", "analysis.experiment_analysis"):
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)


def _set_environment_of_ray_tune(num_left: int) -> None:
    """Have Ray Tune leave loggers, Ctrl-C and the number of trials that wait for nodes to us."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ray's handler would end trials for good
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(num_left)  # the driver limits how many wait for nodes


def _tuner(driver: Driver, task: Task, share: Share) -> tune.Tuner:
    """Ray Tune, set up to pass every question and every report to the driver."""
    sweep = task.sweep
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(SweepTrial, task=task), lambda config: _resources(sweep, share, config)
        ),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(driver),
            scheduler=StudyScheduler(driver),
            num_samples=-1,  # the searcher says when there are no more
            reuse_actors=True,
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            storage_path=str(driver.folder.path / "ray"),
            name=f"start-{time.time_ns()}",
            verbose=0,
            callbacks=[
                DriverCallback(driver),
                *(guard_callback(tracker, driver) for tracker in trackers(sweep)),
            ],
            stop=StopOnceSaved(driver),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs write their own
        ),
    )


def _fit(tuner: tune.Tuner, driver: Driver, stopping: Stopping) -> None:
    """Run trials until all have ended, or until all are saved after a signal or an error."""
    with driver.watch, stopping.gently(), surviving_the_memory_monitor():
        try:
            driver.guarded(tuner.fit)
        finally:  # after a second Ctrl-C too
            driver.guarded(driver.end_in_order)
            driver.guarded(driver.clock.save)


def _why_it_stopped(sweep: Sweep, folder: SweepFolder, error: Exception) -> SweepError:
    with suppress(OSError, DiskFullError):
        details = "".join(traceback.format_exception(error))
        files.write_text(folder.path / ERROR_FILE, details)
    what = str(error) if isinstance(error, MhimdistError) else one_line(error)
    return SweepError(
        f"{sweep.name} was stopped, and the same command resumes it: {what} (details in "
        f"{folder.path / ERROR_FILE})"
    )


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config['number']:04d}"


def _resources(sweep: Sweep, share: Share, config: Mapping[str, Any]) -> PlacementGroupFactory:
    """The resources that Ray reserves for a trial; a run's group of workers takes its own."""
    if sweep.workers > 1:
        return PlacementGroupFactory([{"CPU": 0.0, "memory": float(share.memory_bytes)}])
    taken = Share(**config[SHARE]) if SHARE in config else share
    return PlacementGroupFactory([taken.bundle] * sweep.parallel_folds)


def _begin_first_stages(task: Task, share: Share) -> list[ray.ObjectRef]:
    """Begin to train the first stage of every fold and seed, all at the same time.

    A trial that needs one of them waits for it. Trials with another network or optimiser than the base train
    their own first stages when they need them.
    """
    sweep = task.sweep
    teacher = sweep.train.teacher
    if not teacher.is_pretrained or teacher.weights is not None or task.group is not None:
        return []
    making = ray.remote(make_first_stage).options(**share.options, max_retries=sweep.max_failures)
    configs = [
        sweep.train.model_copy(update={"seed": seed, "features": features})
        for features in task.feature_sets or (sweep.train.features,)
        for seed in sweep.run_seeds
    ]
    print_line(
        f"first stages: {formats.count(len(configs) * len(task.splits), 'network')}, shared by all trials"
    )
    return [making.remote(config, task, split) for config in configs for split in task.splits]
