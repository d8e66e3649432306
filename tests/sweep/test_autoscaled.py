"""A sweep that begins on a head without cores; the autoscaler adds nodes for its trials."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from autoscaled import autoscaled

from data_prep import digits

pytestmark = pytest.mark.ray
WORKER = {"CPU": 1, "GPU": 1, "memory": 3 * 2**30}


@pytest.fixture
def short_folder():
    folder = Path(tempfile.mkdtemp(prefix="as-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_trials_bring_the_nodes_they_need_and_run_on_all_of_them(short_folder, tmp_path):
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    home = tmp_path / "home"
    script = Path(__file__).parents[1] / "sweep_once.py"
    options = ["--name", "grown", "--num-trials", "4", "--scheduler", "none", "--gpus-per-run", "1"]
    options += ["--train.epochs", "60"]  # a trial lasts longer than a node takes to come
    with autoscaled(short_folder, WORKER, most=2) as env:
        done = subprocess.run(
            [sys.executable, str(script), str(data), str(home), *options],
            env=env,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no node is up that fits a run: the autoscaler is asked for one" in done.stdout
    assert (
        "plan: 2 trials at once (limited by CPU cores), 1 on the nodes that are up and the others on up "
        "to 1 node that the autoscaler adds; each 1 CPU, 1 GPU and "
    ) in done.stdout
    folder = home / "runs" / "grown"
    assert json.loads((folder / "result.json").read_text())["num_trials"] == 4
    nodes = Counter(json.loads(file.read_text())["node"] for file in folder.glob("trials/*/environment.json"))
    assert sum(nodes.values()) == 4
    assert len(nodes) == 2
