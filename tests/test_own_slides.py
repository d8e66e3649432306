"""The commands of docs/own_slides.md, copied from the page, on what each tool leaves on disk."""

import contextlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from own_slides_page import AFTER, SHARDS
from page_folders import write_whole_run
from tool_folders import CLASSES, NUM_SLIDES, WRITERS, drawn_slides, write_clam

from data_prep.readers.members import describe_bag
from mhimdist.commands.main import call
from mhimdist.config.train import load_config
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import k_folds
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold, fold_folder

"""How each tool's features are described: encoder, patch size and unit of the coordinates."""
DESCRIBED = {
    "clam/": {"encoder": "resnet50", "patch_size": 256, "level": 0},
    "trident/": {"encoder": "uni_v1", "patch_size": 256, "magnification": 20.0},
    "stamp/": {"encoder": "virchow2", "patch_size": 224, "coords_unit": "um"},
}


def tool_of(command: str) -> str:
    return re.search(r"--features (\S+)", command)[1]


def do(command: str, folder: Path) -> None:
    """Do a command of the page in this process, because imports take seconds."""
    with contextlib.chdir(folder):
        call(shlex.split(command)[1:])


def test_the_page_has_a_command_for_each_tool_and_step():
    assert [tool_of(command) for command in SHARDS] == list(WRITERS)
    assert [command.split()[:2] for command in AFTER] == [
        ["mhimdist", name] for name in ("verify", "inspect", "cross-validate", "predict", "heatmap", "report")
    ]


@pytest.mark.parametrize("command", SHARDS, ids=tool_of)
def test_what_each_tool_leaves_becomes_the_same_shards(command, tmp_path, capsys):
    WRITERS[tool_of(command)](tmp_path)
    for each in (command, *AFTER[:2]):
        do(each, tmp_path)
    said = capsys.readouterr().out
    assert f"{NUM_SLIDES} bags" in said
    if tool_of(command) == "clam/":
        assert re.search(r"^ +level +0 *$", said, re.MULTILINE)  # as it was stated, and not unknown
    assert (tmp_path / "shards.png").exists()
    bags, manifest = BagShards(tmp_path / "shards"), Manifest.read(tmp_path / "shards")
    assert bags.classes == CLASSES
    for row in manifest.rows.to_pylist():
        described = describe_bag(tmp_path / "shards", row)
        assert described.items() >= DESCRIBED[tool_of(command)].items()
    for number, (slide, label, features_ND, coords_N2) in enumerate(drawn_slides(), 1):
        row = bags.slides.index(slide)
        assert (bags.cases[row], CLASSES[bags.labels_N[row]]) == (f"patient-{number}", label)
        assert np.array_equal(bags.load([row]).features_TD.numpy(), features_ND.astype(np.float16))
        scale = 2 if tool_of(command) == "stamp/" else 1
        assert np.array_equal(bags.coords(row), coords_N2 // scale)


def train(folder: Path) -> None:
    """Train two small folds into the run's folder, in place of the page's command, which starts Ray."""
    bags = BagShards(folder / "shards")
    model = {"name": "abmil", "hidden_dim": 8, "attention_dim": 4}
    config = load_config({"model": model, "teacher": {"kind": "none"}, "loss": {"alpha": 0}, "epochs": 2})
    splits = k_folds(
        bags.keys,
        bags.cases,
        bags.labels_N,
        num_folds=2,
        validation_share=0.0,
        selects_on_test=True,
        seed=0,
    )
    for number, split in enumerate(splits, 1):
        place = fold_folder(folder / "runs" / "mine" / "folds", number, config.seed, "0a")
        run_fold(Fold("it", config, split, number, place, is_tested=True), bags, folder / "cache", 1)


def test_the_trained_model_predicts_and_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("MHIMDIST_HOME", str(tmp_path))
    write_clam(tmp_path)
    do(SHARDS[0], tmp_path)
    train(tmp_path)
    for command in AFTER[3:5]:
        do(command, tmp_path)
    lines = (tmp_path / "predictions" / "predictions.csv").read_text().splitlines()
    assert lines[0].startswith("slide,case,label,probability_normal,probability_tumor")
    assert len(lines) == 1 + NUM_SLIDES
    pictures = sorted(path.parent.name for path in tmp_path.glob("predictions/heatmaps/*/heatmap.png"))
    assert pictures == [slide for slide, *_ in drawn_slides()]


def test_the_report_command_writes_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MHIMDIST_HOME", str(tmp_path))
    write_whole_run(tmp_path / "runs" / "mine")
    do(AFTER[5], tmp_path)
    written = Path(re.search(r"report: (.*?\.html)", capsys.readouterr().out.splitlines()[-1])[1])
    assert "<h2>Results</h2>" in written.expanduser().read_text()
