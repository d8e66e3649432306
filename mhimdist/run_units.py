"""Units on the cluster: one Ray task each, or one after the other by several workers.

A unit that fails leaves its reason and keeps no other from being run.
"""

import logging
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ray
from rich import get_console

from mhimdist import atomic, cluster
from mhimdist.data.loader import open_bags
from mhimdist.data.remote import Location
from mhimdist.errors import MhimdistError, PreemptedError
from mhimdist.experiment import Execution
from mhimdist.nodes import Share
from mhimdist.report import formats
from mhimdist.report.comparison import Result
from mhimdist.run_folder import Saving
from mhimdist.train import Group, train
from mhimdist.unit import Unit, run_unit

ERROR_FILE = "error.txt"
"""In a unit's folder: the traceback of why it failed."""


def run_units(
    execution: Execution, units: Mapping[str, Unit], data: Location, share: Share | None = None
) -> dict[str, Result | str]:
    """The result of every unit, or the last line of why it failed.

    Args:
        execution: what each run takes of the cluster.
        units: by digest.
        data: folder of shards, on storage that every node sees, or its URL.
        share: what a run was measured to take; None: what the execution says.
    """
    if not units:
        return {}
    cluster.connect()
    if execution.workers > 1:
        return _run_with_workers(execution, units, data)
    logging.getLogger("ray").setLevel(logging.ERROR)  # a failed unit is named in its line
    share = share or cluster.share_of(execution.cpus_per_run, execution.gpus_per_run)
    task = ray.remote(_task).options(**share.options)
    cache, num_threads = execution.first_stages, execution.num_threads
    queue, progress = Queue(units), Progress(len(units))
    outcomes: dict[str, Result | str] = {}
    running: dict[ray.ObjectRef, str] = {}
    while len(outcomes) < len(units):
        for digest in queue.ready():
            running[task.remote(units[digest], data, cache, num_threads)] = digest
        (done,), _ = ray.wait(list(running), num_returns=1)
        digest = running.pop(done)
        outcomes[digest] = outcome = _outcome(done, units[digest])
        queue.done(digest)
        progress.line(units[digest], outcome)
    return outcomes


def _outcome(task: ray.ObjectRef, unit: Unit) -> Result | str:
    """What a process that ran a unit gives, or why it gives nothing."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        unit.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(unit.folder / ERROR_FILE, str(error))
        return why_lost(error)


def why_lost(error: ray.exceptions.RayError) -> str:
    """Why a process of Ray's gave nothing, in a line."""
    lines = str(error).strip().splitlines()
    if isinstance(error, ray.exceptions.RayTaskError):  # such as an import that fails there
        return f"its process could not run it: {lines[-1]}"
    return f"its process was lost: {lines[0]}"


def worker_group(execution: Execution) -> Group:
    """The workers that train one run together."""
    return Group(
        num_workers=(execution.min_workers or execution.workers, execution.workers),
        cpus=execution.cpus_per_run,
        gpus=1.0 if execution.gpus_per_run != 0 and cluster.has_gpus() else 0.0,
        max_failures=execution.max_failures,
        timeout_s=execution.worker_timeout_s,
        saving=Saving(execution.keep_last, execution.keep_best, execution.save_every_s),
    )


def _run_with_workers(
    execution: Execution, units: Mapping[str, Unit], data: Location
) -> dict[str, Result | str]:
    """One unit after the other, each trained by several workers and judged on such a device as theirs."""
    group, cache = worker_group(execution), execution.first_stages
    judge = ray.remote(_task).options(num_cpus=group.cpus, num_gpus=group.gpus)
    progress, outcomes = Progress(len(units)), dict[str, Result | str]()
    queue = Queue(units)
    while len(outcomes) < len(units):
        for digest in queue.ready():
            unit = units[digest]
            try:
                train(
                    unit.config,
                    data,
                    unit.split,
                    unit.folder,
                    cache,
                    group,
                    only_first_stage=unit.is_plain,
                    label=unit.label,
                )
                outcome = _outcome(judge.remote(unit, data, cache, execution.num_threads), unit)
            except PreemptedError:
                raise
            except MhimdistError as error:
                outcome = f"{type(error).__name__}: {' '.join(str(error).split())}"
            outcomes[digest] = outcome
            queue.done(digest)
            progress.line(unit, outcome)
    return outcomes


def _task(unit: Unit, data: Location, cache: Path, num_threads: int) -> Result | str:
    """Run a unit in a process of Ray's; a failure is a result too, its traceback a file."""
    if (left := unit.result()) is not None:
        return left  # another command has finished it meanwhile
    try:
        result = run_unit(unit, open_bags(data, unit.config.loading), cache, num_threads)
    except Exception as error:
        unit.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(unit.folder / ERROR_FILE, traceback.format_exc())
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    (unit.folder / ERROR_FILE).unlink(missing_ok=True)
    return result


@dataclass
class Queue:
    """The units in an order in which none has to wait for a first stage that another is training."""

    units: Mapping[str, Unit]
    _waiting: dict[str, list[str]] = field(default_factory=dict)
    _ready: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        makers = {unit.first_stage_digest: digest for digest, unit in self.units.items() if unit.is_plain}
        for digest, unit in self.units.items():
            maker = makers.get(unit.first_stage_digest)
            if maker is not None and not unit.is_plain:
                self._waiting.setdefault(maker, []).append(digest)
            else:
                self._ready.append(digest)
        # Those that others wait for come first.
        self._ready.sort(key=lambda digest: digest not in self._waiting)

    def ready(self) -> Iterator[str]:
        """Units that can start now, each given once."""
        while self._ready:
            yield self._ready.pop(0)

    def done(self, digest: str) -> None:
        """Note that a unit has ended, well or not: who needs a first stage that failed tries it again."""
        self._ready.extend(self._waiting.pop(digest, ()))


class Progress:
    """A line for every unit that ends."""

    def __init__(self, num_units: int) -> None:
        self.num_units, self._done, self._failed = num_units, 0, 0
        self._started = time.monotonic()

    def line(self, unit: Unit, outcome: Result | str) -> None:
        """Print what the unit reached, or why it failed."""
        self._done += 1
        elapsed = time.monotonic() - self._started
        left = elapsed / self._done * (self.num_units - self._done)
        if isinstance(outcome, Result):
            epochs = formats.count(outcome.num_epochs, "epoch")
            text = f"test AUC {formats.auc(outcome.test['auc'])} after {epochs}"
        else:
            self._failed += 1
            text = f"FAILED {outcome}"
        failed = f"{self._failed} failed | " if self._failed else ""
        width = len(str(self.num_units))
        get_console().print(
            f"[{self._done:>{width}}/{self.num_units}] {unit.label}: {text} | {failed}"
            f"{elapsed:.0f} s, about {left:.0f} s left",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
