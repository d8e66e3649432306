"""Every block of the README runs, and every file it names is there."""

import contextlib
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import digits
from data_prep.shard import shard
from data_prep.shard_options import parser
from mhimdist.cross_validation import compare
from mhimdist.data.manifest import Manifest

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


def _commands() -> list[str]:
    return [line.partition("  #")[0].strip() for block in _blocks("bash") for line in block.splitlines()]


def _command(start: str) -> str:
    (line,) = [line for line in _commands() if line.startswith(start)]
    return line


def _run_here(command: str, workplace: Path) -> None:
    """Run a command of `data_prep` in this process: its imports take seconds."""
    python, dash_m, module, *arguments = command.split()
    assert (python, dash_m) == ("python", "-m")
    with contextlib.chdir(workplace):
        importlib.import_module(module).main(arguments)


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
    _run(_command("python -m data_prep.shard --features features/").split(), workplace)
    return workplace / "shards"


def test_slides_become_shards_that_webdataset_reads(workplace, shards, capsys):
    verify = "python -m data_prep.verify shards/"
    assert verify in _commands()
    _run_here(verify, workplace)
    _run_here(_command("python -m data_prep.inspect"), workplace)
    said = capsys.readouterr().out
    assert "398 bags" in said
    assert "398 of 20 cases" in said
    assert (workplace / "shards.png").exists()
    (webdataset_block,) = [block for block in _blocks("python") if "webdataset" in block]
    printed = _run([sys.executable, "-c", webdataset_block], workplace)
    assert len(printed.splitlines()) == 398
    assert re.fullmatch(r"slide_\d+ \(\d+, 16\)", printed.splitlines()[0])


def test_data_sets_grow_and_are_repaired(workplace, shards, capsys):
    names = Manifest.read(shards).info.classes
    for name in ("more", "other"):
        (workplace / name).mkdir()
        np.save(workplace / name / f"{name}.npy", np.ones((3, 16), np.float32))
        (workplace / f"{name}.csv").write_text(f"slide,label\n{name},{names[0]}\n")
    shard(workplace / "other", workplace / "other.csv", workplace / "other/shards")
    for path in (workplace / "other/shards").iterdir():
        path.rename(workplace / "other" / path.name)
    kept = shutil.copytree(shards, workplace / "kept")
    _run_here(_command("python -m data_prep.shard --features more/"), workplace)
    assert "399 bags, 1 of them new" in capsys.readouterr().out
    _run_here(_command("python -m data_prep.merge"), workplace)
    assert "both: 400 bags" in capsys.readouterr().out
    name = Manifest.read(shards).info.shards[0].name
    with (shards / name).open("r+b") as file:
        file.truncate(1000)
    _run_here(_command("python -m data_prep.verify shards/ --repair"), workplace)
    assert f"repaired: {name}" in capsys.readouterr().out
    shutil.rmtree(shards)
    kept.rename(shards)


def test_sharding_on_a_cluster_is_a_command_that_is_understood():
    start = "ray job submit --working-dir . -- python -m data_prep.shard"
    options = parser().parse_args(_command(start).removeprefix(start).split())
    assert str(options.out) == "/shared/shards/c16"


def test_the_settings_of_remote_data_reach_a_job(monkeypatch):
    jobs = []
    monkeypatch.setattr(compare, "run_cross_validation", lambda job, data: jobs.append((job, data)))
    monkeypatch.setattr(sys, "argv", _command("python jobs/train_c16.py --data s3:").split()[1:])
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    ((job, data),) = jobs
    assert data == "s3://bucket/shards/c16"
    assert (str(job.train.loading.shard_cache), job.train.loading.shard_cache_gib) == ("/local/cache", 300)


def test_a_run_can_be_stepped_through(workplace):
    (engine_block,) = [block for block in _blocks("python") if "open_trainer" in block]
    *epochs, tested = _run([sys.executable, "-c", engine_block], workplace).splitlines()
    assert [line.split()[0] for line in epochs] == ["0", "1", "2", "3", "4"]
    assert "'auc'" in tested


@pytest.mark.ray
@pytest.mark.slow
def test_the_sweep_of_ones_own_slides_runs(workplace, shards):
    quick = ["--num-trials", "1", "--final-seeds", "1", "--train.epochs", "1"]
    command = _command("python jobs/tune_c16.py --data").replace("--train.epochs 200", "").split()
    assert "Best trials" in _run([*command, *quick], workplace)


def test_the_job_that_is_submitted_to_a_cluster_fits_its_upload():
    _, module, job, *options = _command("python -m mhimdist.cluster.submit").split("#")[0].split()[1:]
    assert options == ["--data", "/shared/shards/c16"]
    assert "to upload" in _run([sys.executable, "-m", module, "--check", job], ROOT)
