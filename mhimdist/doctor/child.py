"""Questions that a process of its own answers, because a library that crashes or hangs must not end us."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mhimdist.errors import MhimdistError


class NoAnswerError(MhimdistError):
    """The process crashed, hung, or said something else than an answer; the message says which."""


def ask(
    question: str, *arguments: str, timeout_s: float, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Have a new process answer a question of `probes`.

    Args:
        question: name of a function in `probes`.
        arguments: its arguments.
        timeout_s: seconds after which the process and its children are killed.
        env: variables to set or replace in its environment.

    Returns:
        What the function returned.

    Raises:
        NoAnswerError: there was no answer.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "mhimdist.doctor.probes", question, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"no answer within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    last = (out.strip().splitlines() or [""])[-1]
    with suppress(ValueError):
        answer = json.loads(last)
        if isinstance(answer, dict):
            return answer
    said = (err.strip().splitlines() or ["no message"])[-1]
    raise NoAnswerError(f"{_ended(process.returncode)}: {said[:300]}")


def _ended(status: int) -> str:
    if status >= 0:
        return f"the process that looked ended with status {status}"
    with suppress(ValueError):
        return f"the process that looked was ended by {signal.Signals(-status).name}"
    return f"the process that looked was ended by signal {-status}"
