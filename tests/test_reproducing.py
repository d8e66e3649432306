"""The commands of docs/reproducing.md on small files in the layouts of public feature sets."""

import contextlib
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from job_scripts import ROOT
from public_sets import NAMES, NUM_POSITIVE, write_dsmil, write_kaczmarj, write_mhim_mil, write_torchmil
from tool_folders import drawn_slides

import mhimdist as mh
from data_prep import digits
from mhimdist.cross_validation import compare
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.models import build
from mhimdist.paper import ablation
from mhimdist.tasks import task_of

PAGE = (ROOT / "docs" / "reproducing.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
WRITERS = {
    "c16/pt": write_mhim_mil,
    "datasets/Camelyon16": write_dsmil,
    "torchmil/": write_torchmil,
    "camelyon16-uni/": write_kaczmarj,
}
SHARDS = {re.search(r"--features (\S+)", c)[1]: c for c in COMMANDS if "data_prep.shard" in c}
ENCODERS = dict(zip(WRITERS, ("resnet50", "dsmil-simclr", "UNI", "uni"), strict=True))


@pytest.mark.parametrize("features", WRITERS)
def test_each_public_layout_becomes_shards(features: str, tmp_path: Path) -> None:
    assert list(SHARDS) == list(WRITERS)
    WRITERS[features](tmp_path)
    _, _, module, *arguments = shlex.split(SHARDS[features])
    with contextlib.chdir(tmp_path):
        importlib.import_module(module).main(arguments)
    bags = BagShards(tmp_path / "shards")
    assert Manifest.read(tmp_path / "shards").info.classes == ("normal", "tumor")
    assert set(bags.slides) == set(NAMES.values())
    for slide, label, features_ND, coords_N2 in drawn_slides():
        row = bags.slides.index(NAMES[slide])
        assert bags.classes[bags.labels_N[row]] == label
        assert bags.details(row)["encoder"] == ENCODERS[features]
        found_ND = bags.load([row]).features_TD.numpy()
        assert np.allclose(found_ND, features_ND, atol=2e-3)
        has_coords = features in ("torchmil/", "camelyon16-uni/")
        assert (bags.coords(row) is not None) == has_coords
        assert not has_coords or np.array_equal(bags.coords(row), coords_N2)
        labels_N = bags.instance_labels(row)
        assert (labels_N is not None) == (features == "torchmil/")
        assert labels_N is None or labels_N.sum() == NUM_POSITIVE * (label == "tumor")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python jobs/")])
def test_the_jobs_of_the_page_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    for module, name in ((compare, "run_cross_validation"), (ablation, "run_ablation")):
        monkeypatch.setattr(module, name, lambda *given, data=None: started.append((given, data)))
    monkeypatch.setattr(digits, "ensure", lambda data, home: data)
    monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    ((given, data),) = started
    assert data == "shards/"
    if not isinstance(given[0], ablation.Ablation):
        assert given[0].protocol == "both"


@pytest.mark.parametrize(
    ("model", "gated", "num_parameters"),
    [("abmil", False, "591,490"), ("abmil", True, "657,026"), ("transmil", None, "2,672,146")],
)
def test_networks_have_the_sizes_on_the_page(
    model: str, gated: bool | None, num_parameters: str, tmp_path: Path
) -> None:
    write_kaczmarj(tmp_path)
    _, _, module, *arguments = shlex.split(SHARDS["camelyon16-uni/"])
    with contextlib.chdir(tmp_path):
        importlib.import_module(module).main(arguments)
    config = mh.preset("c16", model)
    if gated is not None:
        config = config.override({"model.gated": gated})
    task = task_of(BagShards(tmp_path / "shards"), config.task)
    network = build(config.model, num_features=1024, task=task, seed=0)
    assert f"{sum(p.numel() for p in network.parameters()):,}" == num_parameters
    assert num_parameters in PAGE
