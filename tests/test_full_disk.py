"""Disks that are full and folders that cannot be written: said before training, or with the old intact."""

import os
import resource
import tempfile
from pathlib import Path

import pytest
from forked import fork, status_of
from memory_bags import MemoryBags

from data_prep import digits
from mhimdist import command
from mhimdist.config import load_config
from mhimdist.engine import Trainer
from mhimdist.run_folder import RunFolder, Saving
from mhimdist.space import Space
from mhimdist.sweep import Sweep
from mhimdist.tune import run_sweep

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 64, "attention_dim": 4},
        "masking": {"high": {"start": 0.1}},
        "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
        "epochs": 4,
        "device": "cpu",
    }
)


def _run(bags: MemoryBags, folder: Path, limit_after: int | None = None) -> None:
    """A training run as a command, whose files may not grow any more after so many epochs."""
    trainer = Trainer(CONFIG, bags, bags.holdout(), folder, saving=Saving(keep_last=4))
    for epoch in trainer.epochs():
        if epoch.epoch + 1 == limit_after:
            trainer.folder.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_disk_that_fills_up_ends_a_run_with_its_checkpoint_intact_and_it_goes_on(bags, tmp_path):
    folder, said = tmp_path / "a run, of \u00b5", tmp_path / "said"
    with said.open("w") as file:
        file.write(" " * 4000)  # what the child says must not be what does not fit
    child = fork(lambda: command.run(lambda: _run(bags, folder, limit_after=1)), tmp_path / "said")
    assert status_of(child) == 1
    assert (tmp_path / "said").read_text().startswith(f"error: disk full: {folder / 'checkpoints'}")
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert os.listdir(folder / "checkpoints") == ["epoch-00001-step-000000"]  # and no part of another
    assert not list(folder.glob(".*.part"))
    assert RunFolder(folder, {}, Saving()).latest()[1]["step"] == 0
    assert status_of(fork(lambda: _run(bags, folder))) == 0
    assert len((folder / "history.jsonl").read_text().splitlines()) == 4


@pytest.fixture
def read_only():
    """A folder that the children of a test, who are nobody, can read and not write."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def _as_nobody(main) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    command.run(main)


def test_a_run_that_cannot_write_says_so_before_it_trains(bags, read_only, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_run_epoch", lambda self: os._exit(99))
    Trainer(CONFIG, bags, bags.holdout())  # imports what nobody may not read
    read_only.chmod(0o555)
    child = fork(lambda: _as_nobody(lambda: _run(bags, read_only / "run")), tmp_path / "said")
    assert status_of(child) == 1
    assert (tmp_path / "said").read_text() == f"error: Permission denied: {read_only / 'run'}\n"


def test_a_name_that_is_too_long_is_said_before_training(bags, tmp_path):
    folder = tmp_path / ("x" * 256)
    child = fork(lambda: command.run(lambda: _run(bags, folder)), tmp_path / "said")
    assert status_of(child) == 1
    assert (tmp_path / "said").read_text() == f"error: File name too long: {folder}\n"


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.01, 1.0, log=True)


@pytest.mark.parametrize("kind", ["read-only", "full"])
def test_a_sweep_that_cannot_write_says_so_before_it_trains(read_only, tmp_path, monkeypatch, kind):
    data = digits.build("digits-c16", read_only / "digits-c16", scale=0.01)
    monkeypatch.setattr("mhimdist.cluster.connect", lambda: os._exit(99))
    home = read_only / "home"
    home.mkdir()

    def main() -> None:
        if kind == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        run_sweep(Sweep(home=home, train=CONFIG), space, data=data)

    home.chmod(0o777 if kind == "full" else 0o555)
    for each in (data, *data.rglob("*")):
        each.chmod(0o755)
    child = fork(lambda: _as_nobody(main), tmp_path / "said")
    said = (tmp_path / "said").read_text() if status_of(child) == 1 else None
    expected = {
        "read-only": f"error: Permission denied: {home / 'runs'}\n",
        "full": f"error: disk full: {home / 'runs' / 'sweep' / 'sweep.json'} cannot be written",
    }
    assert said is not None
    assert said.startswith(expected[kind]), said
