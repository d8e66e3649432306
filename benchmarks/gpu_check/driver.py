"""Runs the parts one after the other, each within its time, and keeps what they find in one JSON file.

It imports only the standard library, so that it also reports on a machine where nothing else can be
imported.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUDGET_S = 345.0
"""Seconds for all parts; with what the driver itself needs, less than 6 minutes."""
LEAST_S = 10.0
"""A part is not begun with fewer seconds left."""

FINE = ("passed", "left out", "needs a GPU")
"""How a part may end in a check that has passed."""


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: its name in the report, and for `--only`.
        module: module with its `check`.
        limit_s: seconds that it may take, if the budget is `BUDGET_S` or less; a larger one stretches them.
        argument: `Setting.argument`.
        needs_gpu: whether it says nothing without a GPU.
        beside: whether it may run at the same time as the parts next to it; it then measures no times.
    """

    name: str
    module: str
    limit_s: float
    argument: str = ""
    needs_gpu: bool = False
    beside: bool = False


@dataclass(frozen=True)
class _Running:
    part: Part
    process: subprocess.Popen[bytes]
    notes: Path
    output: Path
    started: float
    limit_s: float


class Driver:
    """A run of the check.

    Attributes:
        result: all that is known; `OUT/gpu_check.json` once `save` has written it.
    """

    def __init__(self, parts: Sequence[Part], *, device: str, out: Path, budget_s: float = BUDGET_S) -> None:
        """Begin the clock.

        Args:
            parts: what to run, in this order.
            device: "cuda" or "cpu".
            out: folder for `gpu_check.json` and `gpu_check.log`; made if it does not exist.
            budget_s: seconds for all parts together.
        """
        self._parts, self._device, self._out, self._budget_s = parts, device, out, budget_s
        self._started = time.monotonic()
        self._running: list[_Running] = []
        out.mkdir(parents=True, exist_ok=True)
        self._log = out / "gpu_check.log"
        self._log.write_bytes(b"")
        self.result: dict[str, Any] = {
            "device": device,
            "commit": _commit(),
            "budget_s": budget_s,
            "parts": {part.name: {"status": "not begun"} for part in parts},
        }
        self.save()

    def save(self) -> None:
        """Write the result so far; the file is complete at every moment."""
        self.result["wall_s"] = round(time.monotonic() - self._started, 1)
        draft = self._out / "gpu_check.json.draft"
        draft.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        draft.replace(self._out / "gpu_check.json")

    def run(self) -> bool:
        """Run all parts; returns whether each that could run has passed, and at least one has."""
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder, _sigterm_raises():
            try:
                for group in _groups(self._parts):
                    self._run(group, Path(folder))
            finally:
                for running in self._running:
                    _kill(running.process)
        statuses = [part["status"] for part in self.result["parts"].values()]
        self.result["passed"] = "passed" in statuses and all(status in FINE for status in statuses)
        self.save()
        return self.result["passed"]

    def _left_s(self) -> float:
        return self._budget_s - (time.monotonic() - self._started)

    def _run(self, group: Sequence[Part], folder: Path) -> None:
        """Run parts at the same time, to their end."""
        for part in group:
            if part.needs_gpu and self._device != "cuda":
                self._end(part, {"status": "needs a GPU"})
            elif self._left_s() < LEAST_S:
                self._end(part, {"status": "no time left"})
            else:
                self._running.append(self._start(part, folder))
        while self._running:
            for running in tuple(self._running):
                seconds = time.monotonic() - running.started
                if running.process.poll() is None and seconds < running.limit_s:
                    self._take_notes(running)
                else:
                    self._running.remove(running)
                    self._finish(running, seconds)
            if self._running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._running[0].process.wait(0.5)

    def _start(self, part: Part, folder: Path) -> _Running:
        limit_s = min(part.limit_s * max(self._budget_s / BUDGET_S, 1), self._left_s())
        notes, output = folder / f"{part.name}.json", folder / f"{part.name}.log"
        command = [sys.executable, "-m", "benchmarks.gpu_check.part", part.module, "--notes", str(notes)]
        command += ["--device", self._device, "--limit-s", f"{limit_s:.1f}", "--argument", part.argument]
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        variables |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        self.result["parts"][part.name]["status"] = "running"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # whatever it starts is killed with it
            )
        return _Running(part, process, notes, output, time.monotonic(), limit_s)

    def _take_notes(self, running: _Running) -> None:
        """Keep what a part has found so far, whatever happens to it or to this process later."""
        entry = self.result["parts"][running.part.name]
        with contextlib.suppress(FileNotFoundError):
            notes = json.loads(running.notes.read_text(encoding="utf-8"))
            if any(entry.get(name) != value for name, value in notes.items()):
                entry.update(notes)
                self.save()

    def _finish(self, running: _Running, seconds: float) -> None:
        timed_out = running.process.poll() is None
        _kill(running.process)
        self._take_notes(running)
        entry = self.result["parts"][running.part.name]
        if timed_out:
            status = "timed out"
        elif running.process.returncode:
            status = "crashed"
        elif entry.get("failed"):
            status = "failed"
        else:
            status = "left out" if "part" in entry.get("left_out", {}) else "passed"
        with self._log.open("ab") as log:
            log.write(f"\n==== {running.part.name}: {status}\n".encode() + running.output.read_bytes())
        ended = {"status": status, "exit_status": running.process.returncode, "wall_s": round(seconds, 1)}
        self._end(running.part, ended)

    def _end(self, part: Part, ended: dict[str, Any]) -> None:
        self.result["parts"][part.name].update(ended)
        self.save()
        took = f", {ended['wall_s']:.0f} s" if "wall_s" in ended else ""
        print(f"{part.name}: {ended['status']}{took}; {max(self._left_s(), 0):.0f} s left", flush=True)


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts in their order; neighbours that may run beside each other are one group."""
    group: list[Part] = []
    for part in parts:
        if group and not (part.beside and group[-1].beside):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a part and all that it has started, even if it has ended itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end this process the way Ctrl-C does, so that it takes the parts along."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _commit() -> str | None:
    """The commit that is checked out, with a plus sign if files differ from it; None if git cannot say."""
    try:
        name, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.strip() + ("+" if changes.strip() else "")
