"""Sweeps of several stages on a cluster that outlives their command, which is killed in each of the stages.

The same command ends what it began.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_cluster import LocalCluster
from small_runs import digits_of_two_encoders

from mhimdist.comparison.compare import compare

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

PROGRAM = Path(__file__).parents[1] / "sweep_once.py"
EPOCHS = 6
OPTIONS = ("--num-trials", "3", "--scheduler", "none", "--no-between-folds", "--no-warm-presets")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_of_two_encoders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=2, start_timeout_s=400) as running:
        yield running


def lines_of(folder: Path, pattern: str) -> dict[str, list[str]]:
    """The histories below a folder."""
    return {
        str(path.relative_to(folder)): path.read_text().splitlines()
        for path in folder.glob(f"{pattern}/history.jsonl")
    }


def kill_when(command: list[str], env: dict[str, str], begun: Callable[[], bool]) -> None:
    """Start the command, and kill it with SIGKILL as soon as this is so."""
    driver = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not begun():
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)
    driver.kill()
    driver.communicate()


def run_through(command: list[str], env: dict[str, str], folder: Path, stages: dict[str, int]) -> str:
    """Kill the command in the middle of each stage, then let it end; nothing is trained twice.

    A stage has begun when so many runs that fit its pattern have ended an epoch.
    """
    before: dict[str, list[str]] = {}
    for stage, number in stages.items():

        def begun(stage: str = stage, number: int = number) -> bool:
            return sum(map(bool, lines_of(folder, stage).values())) >= number

        kill_when(command, env, begun)
        before |= lines_of(folder, "**")
        assert before
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    after = lines_of(folder, "**")
    for name, lines in before.items():
        assert after[name][: len(lines)] == lines, name
    return done.stdout


def test_a_nested_sweep_goes_on_in_the_outer_fold_where_it_was_killed(
    data: Path, tmp_path: Path, cluster: LocalCluster
) -> None:
    folder = tmp_path / "runs" / "it"
    options = ("--name", "it", "--protocol", "all", "--outer-folds", "2", "--train.features", "uni")
    command = [sys.executable, str(PROGRAM), str(data), str(tmp_path), *OPTIONS, *options]
    command += ["--train.epochs", str(EPOCHS), "--final-seeds", "1"]
    # The fifth run in folds/ is the base configuration's: each outer fold has two final runs.
    stages = {"outer-1/trials/*/fold-*": 1, "folds/fold-1-*": 1, "outer-2/trials/*/fold-*": 1, "folds/*": 5}
    said = run_through(command, cluster.env, folder, stages)
    assert "outer fold 2 of 2" in said
    result = json.loads((folder / "result.json").read_text())
    assert [each["fold"] for each in result["outer"]] == [1, 2]
    assert [each["protocol"] for each in result["untuned"]] == ["strict", "paper", "refit"] * 2
    assert 0 <= result["test_auc_low"] <= result["test_auc"] <= result["test_auc_high"] <= 1
    for number in (1, 2):
        records = lines_of(folder / f"outer-{number}", "trials/*/fold-*").values()
        assert [len(lines) for lines in records] == [EPOCHS] * 6
    assert "Each outer fold has its own settings" in (folder / "report.html").read_text()


def test_a_refit_sweep_over_encoders_tells_them_apart_after_a_kill(
    data: Path, tmp_path: Path, cluster: LocalCluster
) -> None:
    folder = tmp_path / "runs" / "it"
    options = ("--name", "it", "--protocol", "refit", "--features", "uni", "--num-trials", "4")
    command = [sys.executable, str(PROGRAM), str(data), str(tmp_path), *OPTIONS, *options]
    command += ["--sampler", "random", "--train.epochs", str(EPOCHS), "--final-seeds", "2"]
    said = run_through(command, cluster.env, folder, {"trials/*/fold-*": 1, "final/fold-*": 1})
    configs = [json.loads(path.read_text()) for path in (folder / "trials").glob("*/config.json")]
    assert {config["features"] for config in configs} == {"uni", "virchow2"}
    stages = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("**/state.json")]
    assert stages
    finals = [json.loads(path.read_text()) for path in folder.glob("final/*/config.json")]
    assert {config["features"] for config in finals} == {"uni", "virchow2"}
    (pair,) = compare_sets(folder)
    assert "p = " in pair
    assert pair in " ".join((folder / "comparison.md").read_text().replace("\\", "").split())
    assert "virchow2" in said


def compare_sets(folder: Path) -> list[str]:
    """What the sweep says of its encoders, as `compare.py` says it of the folder."""
    assert compare(folder, num_resamples=100).sentences
    return [each["sentence"] for each in json.loads((folder / "comparison.json").read_text())["pairs"]]
