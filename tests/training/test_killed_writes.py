"""A checkpoint whose writing ends at any byte, whose disk fills up, or of which any bit is flipped."""

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from forked import fork, status_of

from mhimdist.errors import CheckpointError, DiskFullError
from mhimdist.training import checkpoint

PROGRAM = Path(__file__).parents[1] / "train_once.py"
TENSORS = {
    "student": {"w": torch.arange(600.0).reshape(2, 300)},
    "optimizer": {"step.w": torch.arange(300.0)},
}


def _killed_at(num_bytes: int, save: Callable[[], None]) -> Callable[[], None]:
    """Let the kernel kill the process at the write that makes a file longer than this."""

    def act() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        save()

    return act


@pytest.mark.faults(19)
@pytest.mark.parametrize("num_bytes", [0, 1, 100, 500, 1250, 2400])
def test_a_kill_within_a_write_leaves_the_old_checkpoint(tmp_path, num_bytes):
    checkpoint.save(tmp_path / "old", TENSORS, {"epoch": 1})
    sizes = sorted(file.stat().st_size for file in (tmp_path / "old").iterdir())
    assert sizes[-1] > 2400
    child = fork(_killed_at(num_bytes, lambda: checkpoint.save(tmp_path / "new", TENSORS, {"epoch": 2})))
    assert status_of(child) == -signal.SIGXFSZ
    assert not (tmp_path / "new").exists()
    assert checkpoint.load(tmp_path / "old")[1] == {"epoch": 1}
    torn = [file.stat().st_size for part in tmp_path.glob(".*.part") for file in part.iterdir()]
    assert torn
    assert max(torn) <= num_bytes
    checkpoint.save(tmp_path / "new", TENSORS, {"epoch": 2})
    assert checkpoint.load(tmp_path / "new")[1] == {"epoch": 2}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may mount no disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.faults(29)
def test_a_disk_that_is_full_keeps_what_was_there(small_disk):
    checkpoint.save(small_disk / "old", TENSORS, {"epoch": 1})
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(DiskFullError, match=rf"disk full: {small_disk}/new"):
        checkpoint.save(small_disk / "new", TENSORS, {"epoch": 2})
    assert sorted(os.listdir(small_disk)) == ["filler", "old"]
    assert checkpoint.load(small_disk / "old")[1] == {"epoch": 1}
    filler.unlink()
    checkpoint.save(small_disk / "new", TENSORS, {"epoch": 2})
    assert checkpoint.load(small_disk / "new")[1] == {"epoch": 2}


@pytest.mark.faults(26)
def test_no_flipped_bit_of_a_checkpoint_is_taken_for_another_value(tmp_path):
    checkpoint.save(tmp_path / "c", TENSORS, {"epoch": 1, "totals": [[0.5, 2.0]]})
    whole, state = checkpoint.load(tmp_path / "c")
    files, chance, num_caught = sorted((tmp_path / "c").iterdir()), random.Random(0), 0
    for _ in range(300):
        file = chance.choice(files)
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        try:
            found = checkpoint.load(tmp_path / "c")
        except CheckpointError:
            num_caught += 1
        else:  # a space of the JSON file may have become another one
            assert found[1] == state
            assert all(torch.equal(v, found[0][g][k]) for g, each in whole.items() for k, v in each.items())
        file.write_bytes(content)
    assert num_caught > 250


@pytest.mark.faults(31)
@pytest.mark.slow
def test_of_two_processes_that_train_in_one_folder_the_second_is_refused(tmp_path):
    command = [sys.executable, str(PROGRAM), str(tmp_path / "run"), "0", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "started\n"
        os.kill(first.pid, signal.SIGSTOP)  # it cannot end before the second one has looked
        try:
            second = subprocess.run(command, capture_output=True, text=True)
        finally:
            os.kill(first.pid, signal.SIGCONT)
        assert first.stdout.read() == "finished\n"
    assert first.returncode == 0
    assert second.returncode == 1
    assert second.stderr.startswith(
        f"error: {tmp_path / 'run'} is being trained by process {first.pid}; wait"
    )


@pytest.mark.faults(30)
@pytest.mark.parametrize(
    "name", ["a b\tc", "\u00e4\u00f6 \u6f22\u5b57 \U0001f9ea", "x" * 255, "%41?#&;$(touch y)"]
)
def test_a_checkpoint_may_be_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    checkpoint.save(folder / "c", TENSORS, {"epoch": 1})
    assert checkpoint.load(folder / "c")[1] == {"epoch": 1}
    assert os.listdir(tmp_path) == [name]
