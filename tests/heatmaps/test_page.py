"""The commands of docs/heatmaps.md run as they are, in a folder such as a reader may have."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from job_scripts import ROOT
from score_files import write_scores, write_slide

import mhimdist as mh
from data_prep import digits
from mhimdist.commands.main import call

pytestmark = pytest.mark.long

PAGE = ROOT / "docs" / "heatmaps.md"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    digits.build("digits-c16", folder / "data" / "digits-c16", scale=0.01)
    bags = mh.open_bags(folder / "data" / "digits-c16")
    split = mh.holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.35, validation_share=0.2, seed=0)
    config = mh.preset("c16", "abmil").override(
        {"model.hidden_dim": 8, "epochs": 2, "teacher.kind": "momentum"}
    )
    for _ in mh.open_trainer(config, bags, split, folder / "runs" / "first", folder / "cache").epochs():
        pass
    size = len(bags.load([0]).features_TD)
    coords_N2 = np.stack([np.arange(size) % 9, np.arange(size) // 9], axis=1) * 32
    for name in ("abmil", "mhim"):
        scores_N = np.arange(1.0, size + 1)
        write_scores(
            folder / "predictions" / name,
            bags.keys[0],
            coords_N2=coords_N2,
            attention_N=scores_N / scores_N.sum(),
            tumor_N=scores_N / (size + 1),
        )
    height, width = coords_N2[:, ::-1].max(0) + 32
    write_slide(folder / "slides" / f"{bags.keys[0]}.tif", np.zeros((height, width, 3), np.uint8))
    (folder / "annotations").mkdir()
    ring = [[0, 0], [64, 0], [64, 64], [0, 0]]
    text = json.dumps({"type": "Polygon", "coordinates": [ring]})
    (folder / "annotations" / f"{bags.keys[0]}.geojson").write_text(text)
    return folder, bags.keys[0]


def test_every_command_makes_what_the_page_promises(workplace, monkeypatch, capsys):
    monkeypatch.setenv("MHIMDIST_HOME", str(workplace[0]))
    folder, slide = workplace
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    commands = [line.split() for block in blocks for line in block.splitlines()]
    assert len(commands) == 3
    made = set()
    for command, *arguments in commands:
        assert (command, arguments[0]) == ("mhimdist", "heatmap")
        with contextlib.chdir(folder):
            call(arguments)
        assert capsys.readouterr().err == "", arguments
        out = folder / (arguments[-1] if "--out" in arguments else "predictions/mhim/heatmaps")
        names = {path.name for path in (out / slide).iterdir()}
        assert "heatmap.png" in names
        made |= names
        shutil.rmtree(out)
    promised = re.findall(r"^\| `(\S+)` \|", PAGE.read_text(), flags=re.MULTILINE)
    assert made == {*promised, "patches-AB-MIL.geojson", "patches-MHIM.geojson"}


def test_the_pictures_are_small():
    for name in ("heatmap.png", "masks.png"):
        assert Path(PAGE.with_name(name)).stat().st_size < 300_000
