"""Full disks and folders without write permission: an error before training, or with the old files intact."""

import os
import resource
from pathlib import Path

import pytest
from forked import fork, give_up_override, status_of
from memory_bags import MemoryBags

from data_prep import digits
from mhimdist import process
from mhimdist.config.execution import Saving
from mhimdist.config.train import load_config
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep.run import run_sweep
from mhimdist.training.run_folder import RunFolder
from mhimdist.training.trainer import Trainer

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
    """A training run as a command; after `limit_after` epochs its files may not grow any more."""
    trainer = Trainer(CONFIG, bags, bags.holdout(), folder, saving=Saving(keep_last=4))
    for epoch in trainer.epochs():
        if epoch.epoch + 1 == limit_after:
            trainer.folder.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


@pytest.mark.faults(29)
def test_a_disk_that_fills_up_ends_a_run_with_its_checkpoint_intact_and_it_goes_on(bags, tmp_path):
    folder, said = tmp_path / "a run, of \u00b5", tmp_path / "said"
    with said.open("w") as file:
        file.write(" " * 4000)  # the output of the child must not be the file that does not fit
    child = fork(lambda: process.run(lambda: _run(bags, folder, limit_after=1)), tmp_path / "said")
    assert status_of(child) == 1
    assert (tmp_path / "said").read_text().startswith(f"error: disk full: {folder / 'checkpoints'}")
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert os.listdir(folder / "checkpoints") == ["epoch-00001-step-000000"]  # and no partial one
    assert not list(folder.glob(".*.part"))
    assert RunFolder(folder, {}, Saving()).latest()[1]["step"] == 0
    assert status_of(fork(lambda: _run(bags, folder))) == 0
    assert len((folder / "history.jsonl").read_text().splitlines()) == 4


@pytest.fixture
def closed(tmp_path):
    """A folder that a test closes to writers; at the end it is opened again, so that it can be removed."""
    folder = tmp_path / "closed"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


class Reached(Exception):
    """The run has passed its checks."""


def _reach(*_: object, **__: object) -> None:
    raise Reached


def _bound(main) -> None:
    """Run a command under file permissions, even if this process belongs to root."""
    give_up_override()
    process.run(main)


@pytest.mark.faults(30)
def test_a_run_that_cannot_write_says_so_before_it_trains(bags, closed, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_run_epoch", _reach)
    # This shows that the failure below comes from the folder. It also imports everything now: without its
    # override, root cannot read a checkout that another user owns.
    with pytest.raises(Reached):
        _run(bags, tmp_path / "open")
    closed.chmod(0o555)
    child = fork(lambda: _bound(lambda: _run(bags, closed / "run")), tmp_path / "said")
    assert status_of(child) == 1
    assert (tmp_path / "said").read_text() == f"error: Permission denied: {closed / 'run'}\n"


@pytest.mark.faults(30)
def test_a_name_that_is_too_long_is_said_before_training(bags, tmp_path):
    folder = tmp_path / ("x" * 256)
    child = fork(lambda: process.run(lambda: _run(bags, folder)), tmp_path / "said")
    assert status_of(child) == 1
    assert (tmp_path / "said").read_text() == f"error: File name too long: {folder}\n"


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.01, 1.0, log=True)


@pytest.mark.faults(29, 30)
@pytest.mark.parametrize("kind", ["read-only", "full"])
def test_a_sweep_that_cannot_write_says_so_before_it_trains(closed, tmp_path, monkeypatch, kind):
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    monkeypatch.setattr("mhimdist.sweep.run.connect", _reach)

    def main(home: Path = closed) -> None:
        run_sweep(Sweep(home=home, train=CONFIG), space, data=data)

    with pytest.raises(Reached):  # as above
        main(tmp_path / "open")
    size = (tmp_path / "open" / "runs" / "sweep" / "sweep.json").stat().st_size

    def limited() -> None:
        if kind == "full":  # one byte short; the output of the child is shorter
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))
        main()

    closed.chmod(0o755 if kind == "full" else 0o555)
    child = fork(lambda: _bound(limited), tmp_path / "said")
    status, said = status_of(child), (tmp_path / "said").read_text()
    expected = {
        "read-only": f"error: Permission denied: {closed / 'runs'}\n",
        "full": f"error: disk full: {closed / 'runs' / 'sweep' / 'sweep.json'} cannot be written",
    }
    assert status == 1, said
    assert said.startswith(expected[kind]), said
