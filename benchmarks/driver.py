"""The driver of a sweep alone: thousands of trials on simulated workers that train nothing.

The trials are proposed, recorded, judged and ended by the sweep's own `Driver`, study and folder; only Ray
and the training are missing. Workers report as fast as the driver answers, so `reports_per_s` is what it can
bear, and `propose_ms` and `report_ms` show whether its work grows with the number of trials. These are times
of the clock on the wall, which other work on the machine stretches; those of `processor` are of this process
alone, and leave out what the disk takes. The peer is a plain loop over Optuna's `ask`, `report`,
`should_prune` and `tell` with as many trials at once.

    python benchmarks/driver.py --trials 10000 --workers 1000 --json
"""

import argparse
import heapq
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
import psutil
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.processor import cpu_name
from jobs.tune_c16 import BASE, space
from mhimdist.cluster.nodes import Share
from mhimdist.search import first_trials, proposals, samplers
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.search.storage import sqlite_url
from mhimdist.search.study import SweepStudy
from mhimdist.sweep.driver import Driver
from mhimdist.sweep.folder import SweepFolder
from mhimdist.sweep.live_trials import Capacity
from mhimdist.sweep.memory import TrialShares
from mhimdist.sweep.silence import Silence
from mhimdist.sweep.watch import Watch

SPANS = 10
"""Parts of the sweep, of equally many trials, whose medians are compared."""


@dataclass
class Times:
    """What was measured.

    Attributes:
        propose_s, report_s: the number of trials that had begun at each call, and its seconds on the wall and
            of the processor.
        mib: memory of the process at the end of each span.
        begun: when the sweep began.
    """

    propose_s: list[tuple[int, float, float]] = field(default_factory=list)
    report_s: list[tuple[int, float, float]] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def summary(self, num_trials: int) -> dict[str, object]:
        """Milliseconds of the median call per span, and what the whole sweep bore."""
        seconds = time.perf_counter() - self.begun
        wall, processor = (self._by_clock(clock, num_trials) for clock in (1, 2))
        return {
            "trials": num_trials,
            "reports": len(self.report_s),
            "seconds": round(seconds, 1),
            **wall,
            "processor": processor,
            "mib": [round(each) for each in self.mib],
        }

    def note_span(self, begun: int, num_trials: int) -> None:
        """If a span has ended with this many trials begun, note the memory, and print a line on the span."""
        if begun * SPANS // num_trials > (begun - 1) * SPANS // num_trials:
            self.mib.append(psutil.Process().memory_info().rss / 2**20)
            print(self._of_span((begun - 1) * SPANS // num_trials, num_trials), file=sys.stderr, flush=True)

    def _of_span(self, span: int, num_trials: int) -> str:
        found = self.summary(num_trials)
        words = f"{(span + 1) * num_trials // SPANS} of {num_trials} trials have begun"
        for clock, each in (("wall", found), ("processor", found["processor"])):
            assert isinstance(each, dict)
            words += f"; {clock}: propose {each['propose_ms'][span]}, report {each['report_ms'][span]} ms"
            words += f" (mean {each['report_mean_ms'][span]}), {each['reports_per_s']} reports/s"
        return f"{words}; {self.mib[-1]:.0f} MiB"

    def _by_clock(self, clock: int, num_trials: int) -> dict[str, object]:
        reports_s, proposals_s = (
            sum(call[clock] for call in calls) for calls in (self.report_s, self.propose_s)
        )
        return {
            "reports_per_s": round(len(self.report_s) / reports_s, 1) if reports_s else None,
            "reports_per_s_with_proposals": round(len(self.report_s) / (reports_s + proposals_s), 1),
            "propose_ms": _per_span(self.propose_s, clock, num_trials),
            "report_ms": _per_span(self.report_s, clock, num_trials),
            "report_mean_ms": _per_span(self.report_s, clock, num_trials, statistics.fmean),
        }


def _per_span(
    calls: list[tuple[int, float, float]],
    clock: int,
    num_trials: int,
    middle: Callable[[list[float]], float] = statistics.median,
) -> list[float | None]:
    spans: list[list[float]] = [[] for _ in range(SPANS)]
    for call in calls:
        spans[min(SPANS - 1, call[0] * SPANS // num_trials)].append(call[clock])
    return [round(1000 * middle(each), 2) if each else None for each in spans]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(called: tuple[float, float]) -> tuple[float, float]:
    wall, processor = _now()
    return wall - called[0], processor - called[1]


class Worker:
    """A trial's process, simulated: an epoch takes about a second of its own clock."""

    def __init__(self, seed: int, started: float) -> None:
        """Begin the trial at a time of the simulated clock."""
        self._random = random.Random(seed)
        self.end, self.step, self.at = self._random.betavariate(6, 2), 0, started

    def epoch(self) -> float:
        """Train an epoch; returns the validation score."""
        self.step += 1
        self.at += self._random.uniform(0.5, 1.5)
        return max(0.0, min(1.0, self.end * (1 - 0.5**self.step) + self._random.gauss(0, 0.01)))


def ours(num_trials: int, num_workers: int, home: Path) -> Times:
    """Drive a sweep.

    Args:
        num_trials: of the sweep.
        num_workers: trials at once.
        home: an empty folder on a disk.
    """
    sweep = Sweep(home=home, name="driven", num_trials=num_trials, train=BASE)
    folder = SweepFolder(sweep)
    folder.path.mkdir(parents=True)
    facts = proposals.examine(space, BASE)
    samplers.check(sweep.sampler, facts)
    first, _ = first_trials.first_params(sweep, space, facts)
    study = SweepStudy(sweep, space, facts, sqlite_url(folder.path / "study.db"), first)
    driver = Driver(
        study,
        folder,
        Watch(Console(file=io.StringIO(), width=200), num_trials=num_trials),
        folder.clock(),
        [],
        capacity=Capacity(lambda: num_workers),
        shares=TrialShares(Share(1, 0, 100), Share(1, 0, 100)),
        sizes_N=np.full(100, 100),
        silence=Silence(1e9),
    )
    times, queue, workers, begun = Times(), [], {}, 0

    def begin(at: float) -> None:
        nonlocal begun
        called = _now()
        given = driver.suggest(str(begun))
        if isinstance(given, dict):
            times.propose_s.append((begun, *_since(called)))
            workers[str(begun)] = Worker(begun, at)
            heapq.heappush(queue, (at, str(begun)))
            begun += 1
            times.note_span(begun, num_trials)

    for _ in range(num_workers):
        begin(0.0)
    while queue:
        _, name = heapq.heappop(queue)
        worker = workers[name]
        value = worker.epoch()
        is_last = worker.step == BASE.epochs
        result = {
            "epoch": worker.step,
            "validation_score": value,
            "folds": json.dumps({"fold 1": value} if is_last else {}),
            "num_epochs": worker.step,
            "is_finished": is_last,
            "hostname": "node",
        }
        called = _now()
        if is_last:
            driver.ended(name, result, error=False)
            reason = "ended"
        elif reason := driver.decide(name, result):
            driver.ended(name, result, error=False)
        times.report_s.append((begun, *_since(called)))
        if reason:
            del workers[name]
            begin(worker.at)
        else:
            heapq.heappush(queue, (worker.at, name))
    return times


def peer(num_trials: int, num_workers: int, home: Path) -> Times:
    """The same trials by a plain loop over Optuna; the arguments are those of `ours`."""
    sampler = optuna.samplers.TPESampler(
        seed=0, multivariate=True, group=True, constant_liar=True, n_startup_trials=8
    )
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=5, reduction_factor=3)
    study = optuna.create_study(
        storage=sqlite_url(home / "peer.db"), direction="maximize", sampler=sampler, pruner=pruner
    )
    times, queue, workers, begun = Times(), [], {}, 0

    def begin(at: float) -> None:
        nonlocal begun
        called = _now()
        trial = study.ask()
        space(Space(trial))
        times.propose_s.append((begun, *_since(called)))
        workers[begun] = (trial, Worker(begun, at))
        heapq.heappush(queue, (at, begun))
        begun += 1

    for _ in range(min(num_workers, num_trials)):
        begin(0.0)
    while queue:
        _, number = heapq.heappop(queue)
        trial, worker = workers[number]
        value = worker.epoch()
        called = _now()
        trial.report(value, worker.step)
        ends = worker.step == BASE.epochs
        if ends:
            study.tell(trial, value)
        elif ends := trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        times.report_s.append((begun, *_since(called)))
        if not ends:
            heapq.heappush(queue, (worker.at, number))
        elif begun < num_trials:
            begin(worker.at)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000, help="of the sweep")
    parser.add_argument("--workers", type=int, default=1_000, help="trials at once")
    parser.add_argument("--peer-trials", type=int, default=200, help="of the plain loop; 0: leave it out")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        found = {"ours": ours(options.trials, options.workers, home).summary(options.trials)}
        if options.peer_trials:
            workers = min(options.workers, options.peer_trials // 2)
            found["peer"] = peer(options.peer_trials, workers, home).summary(options.peer_trials)
    if options.json:
        print(json.dumps({"cpu": cpu_name(), "load": round(os.getloadavg()[0], 1)} | found))
        return
    for name, each in found.items():
        print(name, *(f"{key} {value}" for key, value in each.items()), sep="\n  ")


if __name__ == "__main__":
    main()
