"""The processes of a soak: marked by their environment, watched for what they hold, ended at the end."""

import importlib.util
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from soak_checks import Broken

MARK = "MHIMDIST_SOAK"
CLOCK = Path(__file__).with_name("soak_clock")
MAX_PROCESSES = 80
DAY_S = 86_400.0


class Clock:
    """The wall clock of a part's processes, which jumps by days when it is told to."""

    def __init__(self, soak, part: str) -> None:
        self.soak, self.part, self.chance = soak, part, soak.chance(f"clock of {part}")
        self.file = soak.work / f"{part}.clock"
        self.file.write_text("0")

    def environment(self) -> dict[str, str]:
        """What makes a Python process follow this clock; nothing if the clock cannot jump."""
        if importlib.util.find_spec("time_machine") is None:
            return {}
        path = os.pathsep.join(filter(None, [str(CLOCK), os.environ.get("PYTHONPATH")]))
        return {"MHIMDIST_SOAK_CLOCK": str(self.file), "PYTHONPATH": path}

    def jump(self) -> None:
        """Set the clock of the processes that run to up to three years ago, or to come."""
        if self.environment():
            self.file.write_text(str(DAY_S * self.chance.randint(-1000, 1000)))
            self.soak.count(f"fault clock_jump in {self.part}")

    def moment(self) -> float:
        """A random share of a wait, after which the clock jumps."""
        return self.chance.random()


class Keeper:
    """Looks at the marked processes every two seconds."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        is_there = importlib.util.find_spec("time_machine") is not None
        self.skipped = [] if is_there else ["clock jumps: the package time-machine is not installed"]
        self._shared: set[str] = set()
        self._most = {"processes": 0, "open files of one": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.agents = 0

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a marked process."""
        return os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"} | more

    def marked(self) -> list[psutil.Process]:
        """The marked processes that are alive."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_ours = process.environ().get(MARK) == self.mark
                if is_ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _watch(self) -> None:
        while not self._ended.wait(2):
            found = self.marked()
            self._most["processes"] = max(self._most["processes"], len(found))
            for process in found:
                with suppress(psutil.Error, OSError):
                    self._most["open files of one"] = max(self._most["open files of one"], process.num_fds())
                    maps = Path(f"/proc/{process.pid}/maps").read_text()
                    self._shared |= {line.split()[5] for line in maps.splitlines() if " /dev/shm/" in line}

    def gone(self, wait_s: float, *, holding: str) -> None:
        """Require that a part's processes end by themselves.

        Raises:
            Broken: some are left.
        """
        deadline = time.monotonic() + wait_s
        while left := [p for p in self.marked() if _names(p, holding)]:
            # Ray 2.60 leaves its idle agents behind a driver that was killed; they hold nothing of ours.
            agents = [process for process in left if "agent" in _title(process).lower()]
            if time.monotonic() > deadline:
                if len(agents) < len(left):
                    raise Broken(f"processes are left: {[_title(p)[:200] for p in left if p not in agents]}")
                for process in agents:
                    self.agents += 1
                    with suppress(psutil.Error):
                        process.kill()
                return
            if len(agents) == len(left):
                deadline = min(deadline, time.monotonic() + 5)
            time.sleep(0.2)

    def settle(self, wait_s: float) -> None:
        """Require that no process and nothing in /dev/shm is left of the whole soak.

        Raises:
            Broken: something is left.
        """
        self.gone(wait_s, holding="")
        left = [name for name in self._shared if os.path.exists(name)]
        if left:
            raise Broken(f"shared memory is left: {left}")
        if self._most["processes"] > MAX_PROCESSES:
            raise Broken(f"{self._most['processes']} processes at once")

    def report(self) -> dict[str, int]:
        """What the processes held at most."""
        most = {f"most {name}": value for name, value in self._most.items()}
        return most | {"files in /dev/shm": len(self._shared), "agents of Ray that were left": self.agents}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for process in self.marked():
            with suppress(psutil.Error):
                process.kill()


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()) or process.name()
    return ""


def _names(process: psutil.Process, text: str) -> bool:
    with suppress(psutil.Error, OSError):
        return text in process.environ().get("MHIMDIST_SOAK_PART", "")
    return False


def free_bytes(folder: Path) -> int:
    """Room on a folder's disk."""
    return shutil.disk_usage(folder).free
