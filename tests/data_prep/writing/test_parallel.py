import os
import signal
from pathlib import Path

import pytest

from data_prep.writing import parallel
from data_prep.writing.parallel import num_cores


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 6), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 6), (None, 6)],
)
def test_cores_are_those_that_this_process_may_use(
    limit: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(parallel, "_CPU_MAX", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert num_cores() == expected


def test_what_a_command_does_at_sigterm_survives_the_cluster_that_it_joins() -> None:
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with parallel._own_sigterm():
            signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does when a process joins it
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
