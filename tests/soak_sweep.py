"""The sweep's part of a soak: the same sweep again and again, each time disturbed until it ends."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from soak_checks import Broken
from soak_processes import Clock

from data_prep import digits

PROGRAM = Path(__file__).with_name("sweep_once.py")
OPTIONS = [
    *(
        "--num-trials",
        "3",
        "--scheduler",
        "none",
        "--no-between-folds",
        "--at-once",
        "1",
        "--sampler",
        "random",
    ),
    *("--train.epochs", "5", "--max-failures", "1000", "--save-every-s", "0.5"),
]
PART = {"MHIMDIST_SOAK_PART": "sweep"}
PATIENCE_S = 900.0
SLOW_START = "error: Ray did not start ("
"""Ray's processes give each other 15 s to start, fixed in its code; our message says to start again."""
MOST_SLOW_STARTS = 30


class SweepSoak:
    """A sweep of small trials, one at a time, so that the same seed gives the same sweep."""

    def __init__(self, soak, same: Callable) -> None:
        self.soak, self.same, self.chance = soak, same, soak.chance("sweep")
        self.clock = Clock(soak, "sweep")
        self.slow_starts = 0
        self.reference = soak.work / "sweep-whole"

    def run(self) -> None:
        """Run the sweep once undisturbed, then again and again with faults."""
        self.data = digits.build("digits-c16", self.soak.work / "digits", scale=0.01)
        log = self.soak.work / "sweep.log"
        while self._end(self._start(self.reference, log), {0}, log) != 0:
            pass
        self.soak.keeper.gone(120, holding="sweep")
        self.soak.begin()
        number = 0
        while not self.soak.is_over:
            self._one(self.soak.work / f"sweep-{number}", log)
            number += 1

    def _one(self, home: Path, log: Path) -> None:
        folder = home / "runs" / "sweep"
        for _ in range(1000):
            process, before = self._start(home, log), self._progress(folder)
            fault = None if self.soak.is_over else self.chance.choice(FAULTS)
            name = "none" if fault is None else fault.__name__.strip("_")
            self.soak.count(f"start of sweep, {'' if fault is None else 'then '}{name}")
            statuses = {0}
            if fault is not None:
                self._wait_for_progress(process, folder, before)
                if process.poll() is None:
                    statuses = fault(process, self.chance)
                    self.soak.count(f"fault {name} in sweep")
            status = self._end(process, statuses, log)
            self.soak.keeper.gone(120, holding="sweep")
            if self._progress(folder) < before:
                raise Broken(f"{folder}: it had {before} epochs, and has {self._progress(folder)}")
            if status == 0:
                break
        self.same(folder, self.reference / "runs" / "sweep")
        self.soak.count("finished sweeps")
        shutil.rmtree(home)

    def _start(self, home: Path, log: Path) -> subprocess.Popen:
        clock = {} if home == self.reference else self.clock.environment()
        with log.open("w") as file:
            return subprocess.Popen(
                [sys.executable, str(PROGRAM), str(self.data), str(home), *OPTIONS],
                env=self.soak.keeper.environment(**PART, **clock),
                stdout=file,
                stderr=file,
                start_new_session=True,  # where Linux shares the cores among sessions, Ray gets a share
            )

    def _end(self, process: subprocess.Popen, statuses: set[int], log: Path) -> int:
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Broken(f"the sweep hung for {PATIENCE_S:.0f} s: {log.read_text()[-2000:]}") from None
        said = log.read_text()
        if process.returncode == 1 and SLOW_START in said:
            self.soak.count("start of sweep, when Ray did not start in time")
            self.slow_starts += 1
            if self.slow_starts <= MOST_SLOW_STARTS:
                return 1
        if process.returncode not in statuses:
            raise Broken(
                f"the sweep ended with {process.returncode}, expected {sorted(statuses)}: {said[-2000:]}"
            )
        return process.returncode

    def _progress(self, folder: Path) -> int:
        """Number of epochs that trials and final runs have recorded."""
        found = 0
        for path in (
            *folder.glob("trials/*/fold-*/history.jsonl"),
            *folder.glob("final/fold-*/history.jsonl"),
        ):
            found += path.read_text().count("\n")
        return found

    def _wait_for_progress(self, process: subprocess.Popen, folder: Path, before: int) -> None:
        """Wait until this start has trained some epochs, or has ended; on the way its clock jumps.

        A start without any epoch would count, too: then the sweep might never end.
        """
        wanted = self.chance.randint(1, 25)
        deadline = time.monotonic() + PATIENCE_S
        for moment, act in ((self.clock.moment(), self.clock.jump), (1.0, lambda: None)):
            while process.poll() is None and time.monotonic() < deadline:
                if self._progress(folder) >= before + moment * wanted:
                    break
                time.sleep(0.05)
            if process.poll() is None:
                act()


def _sigkill_driver(process: subprocess.Popen, chance: random.Random) -> set[int]:
    process.kill()
    return {-signal.SIGKILL}


def _sigterm_driver(process: subprocess.Popen, chance: random.Random) -> set[int]:
    process.terminate()
    return {os.EX_TEMPFAIL, 0}


def _workers(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                title = " ".join(child.cmdline())
                # With one of Ray's own agents, the node would end.
                if title.startswith("ray::") and not any(each in title for each in ("IDLE", "Agent")):
                    found.append(child)
    return found


def _sigkill_worker(process: subprocess.Popen, chance: random.Random) -> set[int]:
    for worker in _workers(process)[:1]:
        with suppress(psutil.Error):
            worker.kill()
    return {0}


def _sigstop_worker(process: subprocess.Popen, chance: random.Random) -> set[int]:
    workers = _workers(process)
    for worker in workers:
        with suppress(psutil.Error):
            worker.suspend()
    time.sleep(chance.uniform(1, 8))
    for worker in workers:
        with suppress(psutil.Error):
            worker.resume()
    return {0}


FAULTS = [_sigkill_driver, _sigterm_driver, _sigkill_worker, _sigstop_worker]
