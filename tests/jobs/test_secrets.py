"""Secrets that stand in the environment, in URLs and in options: in nothing that a command says or leaves."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from data_prep import digits

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
SECRET = "hunter2-7c1e"
ENVIRONMENT = {
    name: f"{SECRET}-{name}"
    for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "AZURE_STORAGE_KEY", "HF_TOKEN", "MY_PASSWORD")
}
QUICK = ["--train.epochs", "2", "--train.model.hidden-dim", "8", "--cache-gib", "1"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that needs a token, as a signed URL has one."""

    def do_GET(self) -> None:
        if SECRET in self.path:
            super().do_GET()
        else:
            self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    data = digits.build("digits-c16", tmp_path / "served" / "shards", scale=0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=data.parent)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/shards?signature={SECRET}"
        server.shutdown()
        thread.join()


def _leaks(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def _run(home: Path, *command: str) -> str:
    env = (
        os.environ | ENVIRONMENT | {"MHIMDIST_HOME": str(home), "MHIMDIST_SHARD_CACHE": str(home / "shards")}
    )
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.faults(37)
def test_no_secret_is_in_what_a_cross_validation_says_and_leaves(url, tmp_path):
    home = tmp_path / "home"
    said = _run(home, "jobs/train_c16.py", "--data", url, "--seeds", "1", "--run-folds", "1", *QUICK[:4])
    said += _run(home, "jobs/report.py", "train_c16")
    run = home / "runs" / "train_c16"
    assert json.loads((run / "options.json").read_text())["data"].startswith("http://127.0.0.1")
    assert list(run.rglob("model_card.md"))
    assert list(run.rglob("*.html"))
    assert list(run.rglob("*.safetensors"))
    assert SECRET not in said
    assert _leaks(home) == []


@pytest.mark.faults(37)
def test_no_secret_is_in_what_a_sweep_says_and_leaves(url, tmp_path):
    home = tmp_path / "home"
    options = ["--num-trials", "1", "--final-seeds", "1", "--folds", "2", *QUICK[:4]]
    said = _run(home, "jobs/tune_c16.py", "--data", url, *options)
    assert (home / "runs" / "tune_c16" / "report.html").exists()
    assert SECRET not in said
    assert _leaks(home) == []
