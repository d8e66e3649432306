"""docs/export.md: its commands and Python blocks run, in order, on a small cross-validation."""

import contextlib
import re
import sys
from pathlib import Path

import pytest
from job_scripts import run_here

from data_prep import digits
from data_prep.readers.stated import Stated
from data_prep.shard import shard
from mhimdist.commands.main import call
from mhimdist.config.presets import preset
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import k_folds
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold, fold_folder

pytestmark = pytest.mark.long

TEXT = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
CONFIG = preset("c16", "abmil").override({"model.hidden_dim": 16, "epochs": 1})


def _blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a cross-validation of digits, as `runs/train_c16`."""
    folder = tmp_path_factory.mktemp("workplace")
    digits.write_features("digits-c16", folder / "source", scale=0.01)
    stated = Stated(encoder="pixels", patch_size=8)
    shard(folder / "source" / "features", folder / "source" / "labels.csv", folder / "data", stated=stated)
    bags = BagShards(folder / "data")
    splits = k_folds(bags.keys, bags.cases, bags.labels_N, num_folds=2, validation_share=0.2, seed=0)
    for number, split in enumerate(splits, 1):
        place = fold_folder(folder / "runs" / "train_c16" / "folds", number, 2021, "0f3c")
        run_fold(Fold("it", CONFIG, split, number, place, is_tested=True), bags, folder / "cache", 1)
    return folder


def test_the_commands_and_blocks_of_the_page_run(workplace, capsys, monkeypatch):
    commands = [line.partition("  #")[0].split() for block in _blocks("bash") for line in block.splitlines()]
    assert [words[:2] for words in commands] == [["mhimdist", "export"]] * 2
    monkeypatch.setenv("MHIMDIST_HOME", str(workplace))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with contextlib.chdir(workplace):
        for words in commands:
            call(words[1:])
        printed = capsys.readouterr().out.splitlines(keepends=True)
        exec("\n".join(_blocks("python")), {"__name__": "__main__"})
    assert "fold-1-seed-2021-0f3c.onnx, fold-1-seed-2021-0f3c.safetensors, fold-2" in "".join(printed[:-1])
    assert printed[-1] == "exported: load_model.py, model.safetensors, model_card.md in exported\n"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "['load_model.py', 'model.onnx', 'model.safetensors', 'model_card.md']"
    assert lines[1].endswith("torch.Size([500, 1])")
    assert '"format": "mhimdist-export"' in lines[2]
    assert '"encoder": "pixels", "patch_size": 8' in lines[2]
    assert lines[3:] == ["True", "AttentionMIL"]
    assert (workplace / "runs" / "train_c16" / "model_card.md").exists()
    sys.modules.pop("load_model")


def test_a_wrong_run_is_one_line(workplace):
    done = run_here("export.py", "--run", str(workplace / "data"), home=workplace)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "holds no trained model" in done.stderr
    assert len(done.stderr.splitlines()) == 1
