"""The job scripts as users submit them: to a running cluster, through Ray's command line."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from job_scripts import ROOT, run_here
from local_cluster import LocalCluster

QUICK = ["--num-trials", "2", "--final-seeds", "1", "--train.epochs", "2"]


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(num_cpus=2) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "entrypoint"),
    [
        ("safe-form", ["--working-dir", ".", "--", "python", "jobs/tune_c16.py"]),
        pytest.param("literal-form", ["--", "jobs/tune_c16.py"], marks=pytest.mark.slow),
    ],
)
def test_tune_c16_can_be_submitted(cluster, home, name, entrypoint):
    done = subprocess.run(
        ["ray", "job", "submit", *entrypoint, *QUICK, "--name", name, "--home", str(home)],
        cwd=ROOT,
        env=cluster.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((home / "runs" / name / "result.json").read_text())
    assert set(result) == {"test_auc", "validation_auc", "num_trials", "sweep_s", "report"}
    assert result["num_trials"] == 2
    assert Path(result["report"]).stat().st_size > 1_000_000
    assert "trial   0 complete" in done.stdout
    assert "Best trials" in done.stdout


def test_help_explains_every_option(tmp_path):
    done = run_here("tune_c16.py", "--help-all", home=tmp_path)
    assert done.returncode == 0
    options = done.stdout.split("\n  --")[1:]
    assert len(options) > 130
    for option in options:
        words = option.split("\n\n")[0].split("(default")[0].split()
        assert len(words) > 2, option


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["--data", "nowhere"],
            1,
            "error: no data set 'nowhere'; expected a URL, an existing folder, or one of",
        ),
        (["--objective", "test_auc"], 1, "makes that metric worthless as a test"),
        (["--train.masking.hihg.start", "0.1"], 2, "unrecognized arguments: --train.masking.hihg.start"),
        (["--train.epochs", "0"], 1, "error: train.epochs: Input should be greater than or equal to 1"),
        (["--train.masking.high.start", "0.9"], 1, "error: masking.high.start is searched in"),
    ],
)
def test_bad_input_gives_one_clear_line_and_writes_nothing(tmp_path, arguments, status, message):
    done = run_here("tune_c16.py", *arguments, home=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.faults(7)
@pytest.mark.parametrize("script", ["tune_c16.py", "train_c16.py", "train_tcga.py"])
@pytest.mark.parametrize("url", ["pipe:touch sentinel", "sh:touch sentinel", "pipe:cat x | touch sentinel"])
def test_an_address_of_data_runs_no_shell(tmp_path, monkeypatch, script, url):
    monkeypatch.chdir(tmp_path)
    done = run_here(script, "--data", url, home=tmp_path / "home")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "sentinel").exists()


def test_job_scripts_are_short_and_executable():
    for script in (ROOT / "jobs").glob("*.py"):
        lines = script.read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env python"
        assert os.access(script, os.X_OK)
        assert len(lines) <= 50, script


TWO_WORKERS = [
    *("--workers", "2", "--folds", "2", "--run-folds", "1", "--seeds", "1", "--save-every-s", "0.2"),
    *("--train.epochs", "6", "--train.bags-per-step", "4", "--train.model.hidden-dim", "16"),
]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.faults(23)
@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_behind_and_the_same_command_resumes(tmp_path):
    arguments = [sys.executable, "jobs/train_c16.py", *TWO_WORKERS]
    for name, is_killed in (("whole", False), ("killed", True)):
        env = os.environ | {"MHIMDIST_HOME": str(tmp_path / name)}
        if is_killed:
            driver = subprocess.Popen(arguments, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
            while not list(tmp_path.glob("killed/runs/**/checkpoints/epoch-00002-*")):
                assert driver.poll() is None
                time.sleep(0.05)
            started = psutil.Process(driver.pid).children(recursive=True)
            assert len(started) > 4
            driver.kill()
            driver.wait()
            # Ray 2.60 leaves two idle agents behind, but nothing that trains or coordinates.
            agents = {process for process in started if "Agent" in _name(process)}
            _, alive = psutil.wait_procs(set(started) - agents, timeout=300)
            names = [_name(process) for process in alive]
            for process in (*alive, *agents):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            assert not names
        done = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "MHIM (abmil)" in done.stdout
    histories = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/runs/**/history.jsonl"))
    ]
    for history in histories:
        for row in history:
            del row["train_s"], row["epoch_s"]
    half = len(histories) // 2
    assert half >= 1
    assert sorted(map(str, histories[:half])) == sorted(map(str, histories[half:]))
