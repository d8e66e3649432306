"""Questions that a process of its own answers, because a library that crashes or hangs must not end us."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import suppress
from typing import Any

from mhimdist.doctor.findings import Finding
from mhimdist.doctor.options import Doctor
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


def asked(
    job: Doctor, question: str, *arguments: str, silent: Finding, env: Mapping[str, str] | None = None
) -> Generator[Finding, None, dict[str, Any] | None]:
    """The answer to a question, for checks; if there is none, None, and a finding that says why.

    Args:
        job: how long to wait.
        question, arguments, env: as in `ask`.
        silent: the finding that there is no answer; the reason is added to what was found.
    """
    try:
        return ask(question, *arguments, timeout_s=job.timeout_s, env=env)
    except NoAnswerError as error:
        yield silent.model_copy(update={"found": f"{silent.found}: {error}"})
        return None


def _ended(status: int) -> str:
    if status >= 0:
        return f"the process that looked ended with status {status}"
    with suppress(ValueError):
        return f"the process that looked was ended by {signal.Signals(-status).name}"
    return f"the process that looked was ended by signal {-status}"
