"""A run whose files were damaged resumes from what is whole, to the same bits, or says what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from memory_bags import MemoryBags, gaussian_bags

from mhimdist.config.execution import Saving
from mhimdist.config.train import TrainConfig, load_config
from mhimdist.errors import CheckpointError
from mhimdist.training import checkpoint
from mhimdist.training.history import HISTORY, read_history
from mhimdist.training.result import read_result
from mhimdist.training.run_folder import CheckpointWarning
from mhimdist.training.trainer import Trainer

BAGS = gaussian_bags()
DEEP = pytest.param("[" * 100_000, id="deep")


def config(seed: int = 1, width: int = 16) -> TrainConfig:
    return load_config(
        {
            "model": {"name": "abmil", "hidden_dim": width, "attention_dim": 8},
            "masking": {"random": 0.3},
            "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
            "epochs": 4,
            "seed": seed,
            "device": "cpu",
        }
    )


def train(
    folder: Path, *, epochs: int = 4, seed: int = 1, width: int = 16, bags: MemoryBags = BAGS
) -> Trainer:
    trainer = Trainer(config(seed, width), bags, bags.holdout(), folder, saving=Saving(3, 0))
    if len(trainer.history) < epochs:
        for record in trainer.epochs():
            if record.epoch + 1 == epochs:
                break
    if trainer.folder is not None:
        trainer.folder.unlock()
    return trainer


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A run of four epochs after its third."""
    folder = tmp_path_factory.mktemp("half") / "run"
    train(folder, epochs=3)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, torch.Tensor]:
    return dict(train(tmp_path_factory.mktemp("whole") / "run").student.state_dict())


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "run"))


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def edited(run: Path, old: str, new: str) -> None:
    file = newest(run) / "state.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def replaced(run: Path, content: str) -> None:
    (newest(run) / "state.json").write_text(content)


def without_hash(run: Path, **changes: object) -> None:
    """Write the newest state as an earlier release did, with other entries."""
    file = newest(run) / "state.json"
    body = json.loads(file.read_text())
    del body["state_sha256"]
    body["state"] |= changes
    for name in ("run", "data"):
        del body["state"][name]
    file.write_text(json.dumps(body))


def of_another(run: Path, **options: int) -> None:
    """Put the checkpoint of another run in the place of the newest."""
    other = run.with_name("other")
    train(other, epochs=3, **options)
    place = newest(run)
    shutil.rmtree(place)
    shutil.copytree(newest(other), place)


def of_another_and_old(run: Path) -> None:
    of_another(run, width=24)
    without_hash(run)


DAMAGE = {
    "a digit of the step": lambda run: edited(run, '"step": 0', '"step": 1'),
    "a digit of a loss": lambda run: edited(run, '"loss": 0.', '"loss": 1.'),
    "a digit of the version": lambda run: edited(run, '"schema_version": 1', '"schema_version": 2'),
    "a letter of the hash's name": lambda run: edited(run, "state_sha256", "state_sha257"),
    "empty": lambda run: replaced(run, ""),
    "a list": lambda run: replaced(run, "[]"),
    "a number": lambda run: replaced(run, "1"),
    "deep": lambda run: replaced(run, "[" * 100_000),
    "no text": lambda run: (newest(run) / "state.json").write_bytes(b"\xff\xfe"),
    "another seed's": lambda run: of_another(run, seed=2),
    "another width's": lambda run: of_another(run, width=24),
    "another width's, old": of_another_and_old,
    "old, no epochs": lambda run: without_hash(run, history=[]),
    "old, no totals": lambda run: without_hash(run, totals=[]),
    "old, text as totals": lambda run: without_hash(run, totals=[["x"] * 9]),
    "old, a step of text": lambda run: without_hash(run, step="0"),
    "old, numbers as epochs": lambda run: without_hash(run, history=[1, 2, 3]),
    "a missing file": lambda run: (newest(run) / "student.safetensors").unlink(),
}


@pytest.mark.faults(26, 28, 42)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_and_the_run_ends_with_the_same_bits(damage, run, weights):
    DAMAGE[damage](run)
    with pytest.warns(CheckpointWarning, match="skipped for an older checkpoint"):
        trainer = train(run)
    for name, value in trainer.student.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_copies_by_hand_beside_the_checkpoints_are_no_checkpoints(run, weights):
    place = newest(run)
    shutil.copytree(place, place.with_name(place.name + ".bak"))
    shutil.copytree(place, place.with_name("epoch-99999-step-copy"))
    place.with_name("epoch-99999-step-000000").write_text("a file")
    shutil.copytree(place, place.with_name("epoch-000003-step-000000"))
    trainer = train(run)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.student.state_dict().items())


def test_a_checkpoint_of_an_earlier_release_is_read(run, weights):
    for place in (run / "checkpoints").iterdir():
        body = json.loads((place / "state.json").read_text())
        old = {"schema_version": 1, "sha256": body["sha256"], "state": body["state"]}
        for name in ("run", "data"):
            del old["state"][name]
        (place / "state.json").write_text(json.dumps(old, indent=1))
    trainer = train(run)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.student.state_dict().items())


@pytest.mark.faults(40)
@pytest.mark.parametrize("name", ["../../../secret.safetensors", "/etc/passwd"])
def test_a_checkpoint_names_no_file_outside_its_folder(tmp_path, name):
    checkpoint.save(tmp_path / "c", {"student": {"w": torch.zeros(1)}}, {})
    body = json.loads((tmp_path / "c/state.json").read_text())
    del body["state_sha256"]
    body["sha256"] = {name: "0" * 64}
    (tmp_path / "c/state.json").write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match="expected a name that stays below"):
        checkpoint.load(tmp_path / "c")


def test_a_run_does_not_go_on_with_other_data(run):
    other = gaussian_bags()
    other.digest = "another"
    with pytest.raises(CheckpointError, match="was trained on the data set memory, expected another"):
        train(run, bags=other)


@pytest.mark.faults(42)
@pytest.mark.parametrize("text", ["", '{"epoch": 0', DEEP, "[1]\n"])
def test_a_torn_history_of_an_unfinished_run_is_written_again(run, weights, text):
    (run / HISTORY).write_text(text)
    trainer = train(run)
    assert read_history(run) == trainer.history
    assert len(trainer.history) == 4
    assert all(torch.equal(value, weights[name]) for name, value in trainer.student.state_dict().items())


@pytest.mark.parametrize("text", ['{"epoch": 0', DEEP, "[1]\n", "1\n"])
def test_a_torn_history_is_named(tmp_path, text):
    (tmp_path / HISTORY).write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        read_history(tmp_path)


def test_a_history_holds_numbers(run):
    rows = [json.loads(line) for line in (run / HISTORY).read_text().splitlines()]
    (run / HISTORY).write_text(json.dumps(rows[0] | {"loss": "low"}) + "\n")
    with pytest.raises(CheckpointError, match="expected a number for loss, got 'low'"):
        read_history(run)


@pytest.mark.faults(42)
@pytest.mark.parametrize("text", ["", "[]", "null", "{", DEEP, "{}"])
def test_a_torn_result_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json is not a result of this release"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize("name", ["config.json", "split.json"])
def test_a_torn_file_that_identifies_the_run_is_called_damaged(run, name):
    (run / name).write_text("")
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        train(run)
