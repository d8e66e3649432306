"""Folds on the cluster: each as a Ray task, or one after the other on several workers.

A failed fold leaves its reason, and the other folds run all the same. When the command is asked to stop,
every running fold is saved within 16 steps, before the command ends.
"""

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ray

from mhimdist import files, terminal
from mhimdist.cluster.connect import connect, share_of
from mhimdist.cluster.nodes import Share
from mhimdist.config.execution import Execution
from mhimdist.config.sub_bags import evaluation_text
from mhimdist.data.opening import open_bags
from mhimdist.data.remote import Location
from mhimdist.distributed.shared_gpu import within_share
from mhimdist.distributed.worker_group import train, worker_group
from mhimdist.errors import MhimdistError, PreemptedError
from mhimdist.process import Stopping
from mhimdist.report import formats
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import ERROR_FILE, STOP_FILE, Fold
from mhimdist.training.result import Result

Outcome = Result | str
"""The result of a fold, or the last line of the reason for its failure."""


@contextmanager
def stoppable(execution: Execution) -> Iterator[Stopping]:
    """Let a SIGTERM, as from `ray job stop`, end a command with a `PreemptedError`; Ray would abort it."""
    with Stopping(f"{execution.name} was stopped; run the same command again to resume it") as stopping:
        connect()  # within, so that Ray leaves signals to it
        yield stopping


def run_folds(
    execution: Execution,
    folds: Mapping[str, Fold],
    data: Location,
    stopping: Stopping,
    share: Share | None = None,
) -> dict[str, Outcome]:
    """Run every fold and return the outcomes by digest; finished folds are only read.

    Args:
        execution: the resources of each run.
        folds: the folds, by digest.
        data: folder of shards, on storage that every node sees, or its URL.
        stopping: says whether the command is asked to stop; the caller has entered it.
        share: the measured resources of a run; None takes those of the execution.

    Raises:
        KeyboardInterrupt: a signal asked the command to stop; every fold is saved. `stopping` turns it into a
            `PreemptedError` if the signal was a SIGTERM.
        PreemptedError: somebody created the file `stop` in the command's folder; every fold is saved.
    """
    if not folds:
        return {}
    connect()
    stop_file = execution.folder / STOP_FILE
    stop_file.unlink(missing_ok=True)

    def is_stopped() -> bool:
        if stopping.is_asked:
            stop_file.touch()
        return stop_file.exists()

    with stopping.gently():
        if execution.workers > 1:
            outcomes = _by_worker_groups(execution, folds, data, is_stopped)
        else:
            outcomes = _as_tasks(execution, folds, data, is_stopped, stop_file, share)
    if stopping.is_asked:
        raise KeyboardInterrupt
    if len(outcomes) < len(folds):
        raise PreemptedError(f"{execution.name} was stopped by {stop_file}; the same command resumes it")
    return outcomes


def _as_tasks(
    execution: Execution,
    folds: Mapping[str, Fold],
    data: Location,
    is_stopped: Callable[[], bool],
    stop_file: Path,
    share: Share | None,
) -> dict[str, Outcome]:
    """One Ray task per fold."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # the line of a failed fold names the reason
    share = share or share_of(execution.cpus_per_run, execution.gpus_per_run)
    task = ray.remote(_task).options(**share.options)
    queue, progress = Queue(folds), Progress(len(folds))
    outcomes: dict[str, Outcome] = {}
    running: dict[ray.ObjectRef, str] = {}
    while len(outcomes) < len(folds):
        if not is_stopped():
            for digest in queue.ready():
                running[task.remote(folds[digest], data, execution, stop_file)] = digest
        if not running:
            break
        done, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
        for ref in done:
            fold = folds[digest := running.pop(ref)]
            outcome = _outcome(ref, fold)
            if outcome is None or (isinstance(outcome, str) and is_stopped()):
                continue  # the fold or its process was stopped
            outcomes[digest] = outcome
            queue.done(digest)
            progress.line(fold, outcome)
    return outcomes


def _outcome(task: ray.ObjectRef, fold: Fold) -> Outcome | None:
    """The outcome of a fold's task; if its process was lost, the reason."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        fold.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(fold.folder / ERROR_FILE, str(error))
        return why_lost(error)


def why_lost(error: ray.exceptions.RayError) -> str:
    """The reason why a Ray process returned nothing, in a line."""
    lines = str(error).strip().splitlines()
    if isinstance(error, ray.exceptions.RayTaskError):  # such as an import that fails there
        return f"its process could not run it: {lines[-1]}"
    return f"its process was lost: {lines[0]}"


def _by_worker_groups(
    execution: Execution, folds: Mapping[str, Fold], data: Location, is_stopped: Callable[[], bool]
) -> dict[str, Outcome]:
    """Run one fold after the other; several workers train and judge each."""
    group, cache = worker_group(execution), execution.first_stages
    queue, progress = Queue(folds), Progress(len(folds))
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(folds):
        for digest in queue.ready():
            fold = folds[digest]
            try:
                train(fold, data, cache, group, stop=is_stopped)
                outcome: Outcome = fold.ended_result()
            except PreemptedError:
                return outcomes
            except MhimdistError as error:
                outcome = _in_a_line(error)
            outcomes[digest] = outcome
            queue.done(digest)
            progress.line(fold, outcome)
            if is_stopped():
                return outcomes
    return outcomes


def _task(fold: Fold, data: Location, execution: Execution, stop_file: Path) -> Outcome | None:
    """Run a fold in a Ray process. A failure is an outcome, too; a stopped fold returns None."""
    try:
        if not fold.is_finished:  # another command may have finished it in the meantime
            with within_share(fold.config):
                run_fold(
                    fold,
                    open_bags(
                        data,
                        fold.config.loading,
                        fold.config.features,
                        bag_of=execution.bag_of,
                        digest=fold.data_digest,
                    ),
                    execution.first_stages,
                    execution.num_threads,
                    saving=execution.saving,
                    stop=stop_file.exists,
                )
        result = fold.result()
    except PreemptedError:
        return None
    except Exception as error:
        fold.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(fold.folder / ERROR_FILE, traceback.format_exc())
        return _in_a_line(error)
    (fold.folder / ERROR_FILE).unlink(missing_ok=True)
    return result


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass
class Queue:
    """The folds in an order in which none waits for a first stage or an inner fold that is in training."""

    folds: Mapping[str, Fold]
    _waits_for: dict[str, set[str]] = field(default_factory=dict)
    _ready: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        makers = {fold.first_stage_digest: digest for digest, fold in self.folds.items() if fold.is_plain}
        digests = {fold.folder: digest for digest, fold in self.folds.items()}
        for digest, fold in self.folds.items():
            needed = {digests[inner.folder] for inner in fold.inner if inner.folder in digests}
            if not fold.is_plain and (maker := makers.get(fold.first_stage_digest)) is not None:
                needed.add(maker)
            if needed:
                self._waits_for[digest] = needed
            else:
                self._ready.append(digest)
        # The folds that others wait for come first.
        awaited = set().union(*self._waits_for.values())
        self._ready.sort(key=lambda digest: digest not in awaited)

    def ready(self) -> Iterator[str]:
        """Yield the folds that can start now, each once."""
        while self._ready:
            yield self._ready.pop(0)

    def done(self, digest: str) -> None:
        """Note that a fold has ended, well or not; a fold that needs a failed first stage trains it again.

        One that needs a failed inner fold fails, and says so.
        """
        for waiting, needed in list(self._waits_for.items()):
            needed.discard(digest)
            if not needed:
                del self._waits_for[waiting]
                self._ready.append(waiting)


class Progress:
    """Prints a line for every fold that ends."""

    def __init__(self, num_folds: int) -> None:
        """Start the clock, with no fold ended."""
        self.num_folds, self._done, self._failed = num_folds, 0, 0
        self._started = time.monotonic()

    def line(self, fold: Fold, outcome: Outcome) -> None:
        """Print the fold's test score, or that of validation if it is not tested, or why it failed."""
        self._done += 1
        elapsed = time.monotonic() - self._started
        left = elapsed / self._done * (self.num_folds - self._done)
        if isinstance(outcome, Result):
            epochs = formats.count(outcome.num_epochs, "epoch")
            how = f", {evaluated}" if (evaluated := evaluation_text(fold.config)) else ""
            task = outcome.meaning
            which, metrics = ("test", outcome.test) if outcome.test else ("validation", outcome.validation)
            text = f"{which} {task.title} {formats.auc(metrics[task.selection])} after {epochs}{how}"
        else:
            self._failed += 1
            text = f"FAILED {outcome}"
        failed = f"{self._failed} failed | " if self._failed else ""
        width = len(str(self.num_folds))
        terminal.progress().print(
            f"[{self._done:>{width}}/{self.num_folds}] {fold.name}: {text} | {failed}"
            f"{elapsed:.0f} s, about {left:.0f} s left",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
