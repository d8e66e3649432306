"""Gives each Python process of a soak a clock that jumps: Python imports this file when it starts.

`MHIMDIST_SOAK_CLOCK` names a file with how far the wall clock is off, in seconds; when the file changes, the
clock of all these processes jumps within a fifth of a second. The monotonic clock goes on, as it does when a
machine's clock is set.
"""

import os
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import time_machine

LOOK_EVERY_S = 0.2


def _offset_s(file: Path, before: float) -> float:
    with suppress(OSError, ValueError):  # it is being written, or the soak has ended
        return float(file.read_text())
    return before


def _jump(file: Path) -> None:
    offset_s = _offset_s(file, 0.0)
    traveller = time_machine.travel(time.time() + offset_s, tick=True).start()

    def follow() -> None:
        known = offset_s
        while True:
            time.sleep(LOOK_EVERY_S)
            now = _offset_s(file, known)
            if now != known:
                traveller.shift(timedelta(seconds=now - known))
                known = now

    threading.Thread(target=follow, daemon=True, name="clock of the soak").start()


if "MHIMDIST_SOAK_CLOCK" in os.environ:
    _jump(Path(os.environ["MHIMDIST_SOAK_CLOCK"]))
