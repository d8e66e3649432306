"""Runs in real processes that are killed and resumed end as if nothing had happened."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mhimdist.config.execution import Saving
from mhimdist.training.run_folder import RunFolder

pytestmark = pytest.mark.numeric
PROGRAM = Path(__file__).parents[1] / "train_once.py"
STEPS_OF_EPOCH = 56  # one bag per step


def _start(folder: Path, world_size: int, *signal_of_last: int) -> list[subprocess.Popen]:
    """Start the processes of a run; the last one may send itself a signal after a number of steps."""
    meeting_place = folder.with_name(f"meet-{time.time_ns()}")
    return [
        subprocess.Popen(
            [
                sys.executable,
                str(PROGRAM),
                *(str(folder), str(rank), str(world_size)),
                *(str(each) for each in signal_of_last if rank == world_size - 1),
            ],
            env=os.environ | {"MEETING_PLACE": str(meeting_place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def _finish(processes: list[subprocess.Popen]) -> list[int]:
    errors = [process.communicate()[1] for process in processes]
    print(*errors, sep="\n")  # pytest shows it if a test fails
    return [process.returncode for process in processes]


def _end_state(folder: Path) -> tuple[str, list[dict]]:
    """A hash of all tensors of the last checkpoint, and the history without its times."""
    tensors, state = RunFolder(folder, {}, Saving()).latest()
    assert state["step"] == 0
    assert len(state["history"]) == 12
    digest = hashlib.sha256()
    for name, group in sorted(tensors.items()):
        for key, value in sorted(group.items()):
            digest.update(f"{name}/{key}".encode() + value.numpy().tobytes())
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for row in rows:
        del row["train_s"], row["epoch_s"]
    return digest.hexdigest(), rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Per number of workers, how the run ends and how long it trains."""
    found = {}

    def get(world_size: int) -> tuple[tuple[str, list[dict]], float]:
        if world_size not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            processes = _start(folder, world_size)
            processes[0].stdout.readline()
            started = time.monotonic()
            assert _finish(processes) == [0] * world_size
            found[world_size] = _end_state(folder), time.monotonic() - started
        return found[world_size]

    return get


def _kill_and_start_again(tmp_path: Path, world_size: int, delay_s: float, victim: int) -> None:
    """Kill one worker after a delay, unless it has ended by then, and let the run end."""
    folder = tmp_path / "run"
    processes = _start(folder, world_size)
    processes[0].stdout.readline()
    time.sleep(delay_s)
    processes[victim].kill()
    codes = _finish(processes)
    assert codes[victim] in (-signal.SIGKILL, 0)
    assert _finish(_start(folder, world_size)) == [0] * world_size


@pytest.mark.long
@pytest.mark.faults(18)
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_run_ends_bit_identically(tmp_path, undisturbed, world_size):
    expected, _ = undisturbed(world_size)
    folder = tmp_path / "run"
    killed = _finish(_start(folder, world_size, signal.SIGKILL, 5 * STEPS_OF_EPOCH + 23))
    assert killed[-1] == -signal.SIGKILL
    assert 0 not in killed
    assert _finish(_start(folder, world_size)) == [0] * world_size
    assert _end_state(folder) == expected


@pytest.mark.faults(18)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "point"), [(1, point) for point in range(20)] + [(2, point) for point in range(10)]
)
def test_thirty_random_kill_points(tmp_path, undisturbed, world_size, point):
    expected, duration_s = undisturbed(world_size)
    chance = random.Random(100 * world_size + point)
    _kill_and_start_again(
        tmp_path, world_size, duration_s * chance.uniform(0, 0.95), victim=chance.randrange(world_size)
    )
    assert _end_state(tmp_path / "run") == expected


@pytest.mark.faults(20)
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_sigterm_saves_within_16_steps_and_exits_with_75(tmp_path, undisturbed, world_size):
    expected, _ = undisturbed(world_size)
    folder = tmp_path / "run"
    processes = _start(folder, world_size, signal.SIGTERM, 3 * STEPS_OF_EPOCH + 17)  # one is enough
    assert _finish(processes) == [os.EX_TEMPFAIL] * world_size
    _, state = RunFolder(folder, {}, Saving()).latest()
    assert (len(state["history"]), state["step"]) == (3, 32)
    assert _finish(_start(folder, world_size)) == [0] * world_size
    assert _end_state(folder) == expected
