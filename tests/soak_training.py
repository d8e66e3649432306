"""The training part of a soak: one run after the other, each disturbed until it ends."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from feature_folders import shards_of
from memory_bags import gaussian_bags
from soak_checks import Broken, bags_of_epochs, history, is_flat
from soak_processes import Clock, free_bytes
from soak_run import EPOCHS, split

from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards

PROGRAM = Path(__file__).with_name("soak_run.py")
DISK_BYTES = 64 * 2**20
PART = {"MHIMDIST_SOAK_PART": "training"}
PATIENCE_S = 600.0


class TrainingSoak:
    """Runs on a disk of their own, which can be filled."""

    def __init__(self, soak, same: Callable) -> None:
        self.soak, self.same, self.chance = soak, same, soak.chance("training")
        self.clock = Clock(soak, "training")
        self.disk = soak.work / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.disk)]
        self.is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
        if not self.is_mounted:
            soak.keeper.skipped.append(
                "a disk that is full: no disk may be mounted; files are limited instead"
            )
        self.data = shards_of(gaussian_bags(num_bags=134), soak.work / "bags")
        bags = BagShards(self.data)
        self.train_keys = set(split(bags).train)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)

    def run(self) -> None:
        """Disturb one run after the other until the time is up."""
        number = 0
        while not self.soak.is_over:
            self.one(number)
            number += 1

    def one(self, seed: int) -> None:
        """Train a run without and with faults, and compare."""
        reference, folder = self.soak.work / f"whole-{seed}", self.disk / f"run-{seed}"
        started = time.monotonic()
        self._require(self._start(reference, seed), {0})
        duration_s = time.monotonic() - started
        bags_of_epochs(reference, self.train_keys)
        is_flat(reference)
        for _ in range(1000):
            process = self._start(folder, seed)
            fault = None if self.soak.is_over else self.chance.choice(FAULTS)
            name = "none" if fault is None else fault.__name__.strip("_")
            self.soak.count(f"start of training, {'' if fault is None else 'then '}{name}")
            statuses = {0} if fault is None else fault(self, process, folder, duration_s)
            status = self._require(process, statuses)
            if status != 0 and fault is not None:
                self.soak.count(f"fault {name} in training")
            self.soak.keeper.gone(60, holding="training")
            self._check(folder, reference, is_finished=status == 0)
            if status == 0:
                break
            self._between(folder, seed)
        self.soak.count("finished training runs")
        shutil.rmtree(folder)
        shutil.rmtree(reference)

    def _check(self, folder: Path, reference: Path, *, is_finished: bool) -> None:
        if not folder.exists() or not (folder / "config.json").exists():
            return  # it was killed before its start
        self.same(folder, reference, is_finished=is_finished)
        bags_of_epochs(folder, self.train_keys)
        is_flat(folder)
        if is_finished and len(history(folder)) != EPOCHS:
            raise Broken(f"{folder}: it ended after {len(history(folder))} epochs")

    def _start(self, folder: Path, seed: int) -> subprocess.Popen:
        more = dict(PART)
        if folder.parent == self.disk:
            more |= self.clock.environment()
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), str(self.data), str(seed)],
            env=self.soak.keeper.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _require(self, process: subprocess.Popen, statuses: set[int], said: str = "") -> int:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Broken(f"training hung for {PATIENCE_S:.0f} s") from None
        if process.returncode not in statuses or said not in err or "Traceback" in err:
            raise Broken(
                f"training ended with {process.returncode}, expected {sorted(statuses)}: {out} {err[-2000:]}"
            )
        return process.returncode

    def _between(self, folder: Path, seed: int) -> None:
        """Sometimes damage a file of the run or of the data before it starts again."""
        damage = self.chance.choice([None, None, *DAMAGE])
        if damage is not None and folder.exists() and damage(self, folder, seed):
            self.soak.count(f"fault {damage.__name__.strip('_')}")


def _wait_within(soak: TrainingSoak, process: subprocess.Popen, duration_s: float) -> None:
    """Wait for a random moment of a run, or its end; on the way its clock jumps."""
    started, wait_s = time.monotonic(), soak.chance.uniform(0, 0.7) * duration_s
    for moment, act in ((soak.clock.moment(), soak.clock.jump), (1.0, lambda: None)):
        while time.monotonic() < started + moment * wait_s and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            act()


def _sigkill(soak: TrainingSoak, process: subprocess.Popen, folder: Path, duration_s: float) -> set[int]:
    _wait_within(soak, process, duration_s)
    process.kill()
    return {-signal.SIGKILL, 0}


def _sigterm(soak: TrainingSoak, process: subprocess.Popen, folder: Path, duration_s: float) -> set[int]:
    _wait_within(soak, process, duration_s)
    process.terminate()
    return {os.EX_TEMPFAIL, -signal.SIGTERM, 0}  # before its handler is set, the signal ends it


def _sigstop(soak: TrainingSoak, process: subprocess.Popen, folder: Path, duration_s: float) -> set[int]:
    _wait_within(soak, process, duration_s)
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(soak.chance.uniform(0.5, 5))
        process.send_signal(soak.chance.choice([signal.SIGCONT, signal.SIGKILL]))
    return {-signal.SIGKILL, 0}


def _full_disk(soak: TrainingSoak, process: subprocess.Popen, folder: Path, duration_s: float) -> set[int]:
    _wait_within(soak, process, duration_s)
    filler = soak.disk / "filler"
    if not soak.is_mounted:
        if process.poll() is None:
            psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (400, 400))
        return {1, 0}
    try:
        with filler.open("wb", buffering=0) as file:
            while process.poll() is None:
                try:
                    file.write(bytes(min(2**16, max(1, free_bytes(soak.disk)))))
                except OSError:
                    time.sleep(0.005)  # what the run removes is filled, too
        status = process.poll()
    finally:
        filler.unlink()
    return {1, 0} if status in (0, 1) else {1}


FAULTS = [_sigkill, _sigkill, _sigterm, _sigstop, _full_disk]


def _newest(folder: Path) -> Path | None:
    found = sorted(folder.glob("checkpoints/epoch-*"))
    return found[-1] if len(found) > 1 else None


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _flipped_checkpoint(soak: TrainingSoak, folder: Path, seed: int) -> bool:
    if (newest := _newest(folder)) is None:
        return False
    _flip(soak.chance.choice(sorted(newest.glob("*.safetensors"))), soak.chance)
    return True


def _cut_state(soak: TrainingSoak, folder: Path, seed: int) -> bool:
    if (newest := _newest(folder)) is None:
        return False
    file = newest / "state.json"
    os.truncate(file, soak.chance.randrange(file.stat().st_size))
    return True


def _torn_history(soak: TrainingSoak, folder: Path, seed: int) -> bool:
    file = folder / "history.jsonl"
    if not file.exists() or _newest(folder) is None:
        return False
    os.truncate(file, soak.chance.randrange(file.stat().st_size))
    return True


def _flipped_shard(soak: TrainingSoak, folder: Path, seed: int) -> bool:
    """Flip a bit in every bag that trains: the next start must refuse the first one that it reads."""
    if len(history(folder)) > EPOCHS - 3:
        return False
    kept = {path: path.read_bytes() for path in sorted(soak.data.glob("*.tar"))}
    changed = {path: bytearray(content) for path, content in kept.items()}
    for row in Manifest.read(soak.data).rows.to_pylist():
        at = row["features_data_offset"] + soak.chance.randrange(64)
        changed[soak.data / row["shard"]][at] ^= 1 << soak.chance.randrange(8)
    try:
        for path, content in changed.items():
            path.write_bytes(content)
        soak._require(soak._start(folder, seed), {1}, "error: ")
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    return True


DAMAGE = [_flipped_checkpoint, _cut_state, _torn_history, _flipped_shard]
