"""What a newcomer does with `mhimdist`: make data, train a network, and use it."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_network_is_trained_and_used(tmp_path):
    environment = os.environ | {"MHIMDIST_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def said(*words):
        command = [sys.executable, "-m", "mhimdist", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "digits-c16: " in said("data", "digits-c16", "--bags", "60", "--scale", "0.01", "--out", "shards")
    assert "60 bags" in said("verify", "shards")
    small = ["train.epochs=2", "--train.model.hidden-dim", "16", "--train.teacher.weights", "none"]
    printed = said("-q", "train", "--data", "shards", "--name", "first", *small)
    assert printed.startswith("first: test figures")  # -q leaves out what begins, and progress
    assert "MHIM (abmil)" in printed
    assert re.search(r"^\[ *\d+/\d+\]", printed, re.MULTILINE) is None
    assert (tmp_path / "runs" / "first" / "table.md").exists()
    assert "slides by " in said("predict", "--models", "runs/first", "--data", "shards", "--out", "predicted")
    assert "report: " in said("report", "first")
    assert "exported: " in said("export", "--run", "runs/first")
