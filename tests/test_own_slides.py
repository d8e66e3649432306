"""The commands of docs/own_slides.md, copied from the page, on what each tool leaves on disk."""

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from job_scripts import ROOT, run_here
from page_folders import write_whole_run
from tool_folders import CLASSES, NUM_SLIDES, WRITERS, drawn_slides, write_clam

from data_prep.readers.members import describe_bag
from mhimdist.config.train import load_config
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import k_folds
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold, fold_folder

PAGE = (ROOT / "docs" / "own_slides.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SHARDS = [command for command in COMMANDS if "data_prep.shard" in command]
AFTER = [command for command in COMMANDS if command not in SHARDS]
"""How each tool's features are described: encoder, patch size and unit of the coordinates."""
DESCRIBED = {
    "clam/": {"encoder": "resnet50", "patch_size": 256, "level": 0},
    "trident/": {"encoder": "uni_v1", "patch_size": 256, "magnification": 20.0},
    "stamp/": {"encoder": "virchow2", "patch_size": 224, "coords_unit": "um"},
}


def tool_of(command: str) -> str:
    return re.search(r"--features (\S+)", command)[1]


def run_module(command: str, folder: Path) -> None:
    _, _, module, *arguments = shlex.split(command)
    with contextlib.chdir(folder):
        importlib.import_module(module).main(arguments)


def test_the_page_has_a_command_for_each_tool_and_step():
    assert [tool_of(command) for command in SHARDS] == list(WRITERS)
    steps = [re.search(r"(?:-m data_prep\.|jobs/)(\w+)", command)[1] for command in AFTER]
    assert steps == ["verify", "inspect", "train_c16", "predict", "heatmap", "report"]


@pytest.mark.parametrize("command", SHARDS, ids=tool_of)
def test_what_each_tool_leaves_becomes_the_same_shards(command, tmp_path, capsys):
    WRITERS[tool_of(command)](tmp_path)
    run_module(command, tmp_path)
    for check in AFTER[:2]:
        run_module(check, tmp_path)
    assert f"{NUM_SLIDES} bags" in capsys.readouterr().out
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


def test_the_trained_model_predicts_and_is_drawn(tmp_path):
    write_clam(tmp_path)
    run_module(SHARDS[0], tmp_path)
    train(tmp_path)
    predict, heatmap = (shlex.split(command)[1:] for command in AFTER[3:5])
    with contextlib.chdir(tmp_path):
        done = run_here(predict[0].removeprefix("jobs/"), *predict[1:], home=tmp_path)
        assert done.returncode == 0, done.stderr
        drawn = run_here(heatmap[0].removeprefix("jobs/"), *heatmap[1:], home=tmp_path)
        assert drawn.returncode == 0, drawn.stderr
    lines = (tmp_path / "predictions" / "predictions.csv").read_text().splitlines()
    assert lines[0].startswith("slide,case,label,probability_normal,probability_tumor")
    assert len(lines) == 1 + NUM_SLIDES
    pictures = sorted(path.parent.name for path in tmp_path.glob("predictions/heatmaps/*/heatmap.png"))
    assert pictures == [slide for slide, *_ in drawn_slides()]


def test_the_report_command_writes_what_the_page_says(tmp_path):
    write_whole_run(tmp_path / "runs" / "mine")
    report = shlex.split(AFTER[5])[1:]
    with contextlib.chdir(tmp_path):
        done = run_here(report[0].removeprefix("jobs/"), *report[1:], home=tmp_path)
    written = Path(re.search(r"report: (.*?\.html)", done.stdout.splitlines()[-1])[1])
    assert "<h2>Results</h2>" in written.expanduser().read_text()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_clam_to_a_report_by_the_page_alone(tmp_path):
    write_clam(tmp_path)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    environment = os.environ | {
        "MHIMDIST_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for command in [SHARDS[0], *AFTER]:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert "AUC" in (tmp_path / "runs" / "mine" / "table.md").read_text()
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    assert len(list(tmp_path.glob("predictions/heatmaps/*/heatmap.png"))) == NUM_SLIDES
