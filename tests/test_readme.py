"""Every block of the README runs, and every file it names is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import digits

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with features, labels and the job scripts, as a user's may look."""
    folder = tmp_path_factory.mktemp("readme")
    digits.write_features("digits-c16", folder / "source", scale=0.01)
    (folder / "source" / "features").rename(folder / "features")
    (folder / "source" / "labels.csv").rename(folder / "labels.csv")
    (folder / "jobs").symlink_to(ROOT / "jobs")
    return folder


def _run(arguments: list[str], workplace: Path) -> str:
    env = os.environ | {
        "MHIMDIST_HOME": str(workplace / "home"),
        "OMP_NUM_THREADS": "1",  # two idle threads that wait for each other are slow on a busy machine
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(arguments, cwd=workplace, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _command(start: str) -> str:
    (line,) = [line for block in _blocks("bash") for line in block.splitlines() if line.startswith(start)]
    return line


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([a-z-]+)", "\n".join(_blocks("bash")), flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_every_linked_file_is_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert len(links) >= 3
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.fixture(scope="module")
def shards(workplace):
    _run(_command("python -m data_prep.shard").split(), workplace)
    return workplace / "shards"


def test_slides_become_shards_that_webdataset_reads(workplace, shards):
    assert "398 bags" in _run(_command("python -m data_prep.verify").split(), workplace)
    assert "398" in _run(_command("python -m data_prep.inspect").split(), workplace)
    (webdataset_block,) = [block for block in _blocks("python") if "webdataset" in block]
    printed = _run([sys.executable, "-c", webdataset_block], workplace)
    assert len(printed.splitlines()) == 398
    assert re.fullmatch(r"slide_\d+ \(\d+, 16\)", printed.splitlines()[0])


def test_a_run_can_be_stepped_through(workplace):
    (engine_block,) = [block for block in _blocks("python") if "open_trainer" in block]
    *epochs, tested = _run([sys.executable, "-c", engine_block], workplace).splitlines()
    assert [line.split()[0] for line in epochs] == ["0", "1", "2", "3", "4"]
    assert "'auc'" in tested


@pytest.mark.slow
def test_the_sweep_of_ones_own_slides_runs(workplace, shards):
    quick = ["--num-trials", "1", "--final-seeds", "1", "--train.epochs", "1"]
    command = _command("python jobs/tune_c16.py --data").replace("--train.epochs 200", "").split()
    assert "Best trials" in _run([*command, *quick], workplace)


def test_the_job_that_is_submitted_to_a_cluster_fits_its_upload():
    _, module, job, *options = _command("python -m mhimdist.submit").split("#")[0].split()[1:]
    assert options == ["--data", "/shared/shards/c16"]
    assert "to upload" in _run([sys.executable, "-m", module, "--check", job], ROOT)
