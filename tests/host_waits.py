"""Where the host waits for the GPU, as torch's own debug mode finds it."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
WAIT = "called a synchronizing CUDA operation"
PROTOTYPE = "Synchronization debug mode is a prototype"


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """Count the operations for which the host waits, by the line of this repository that asks for them.

    torch warns of each of them, and with the first use of the debug mode of the mode itself. The tests make
    errors of warnings, so both kinds are kept from the filters; all other warnings meet them afterwards. The
    waits of a backward pass count for the line that starts it. Work that the GPU has not finished before is
    waited for first.

    Yields:
        Counts by "PATH:LINE", complete when the context ends.
    """
    waits: Counter[str] = Counter()
    others: list[tuple[Any, ...]] = []

    def note(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if WAIT in str(message):
            waits[_line_of_ours()] += 1
        elif PROTOTYPE not in str(message):
            others.append((message, category, filename, lineno))

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for message, category, filename, lineno in others:
        warnings.warn_explicit(message, category, filename, lineno)


def _line_of_ours() -> str:
    """The innermost line of this repository that is being run, except for this file's."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and path.is_relative_to(ROOT) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
