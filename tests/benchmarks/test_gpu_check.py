"""The check on a GPU: its driver with parts that misbehave, its verdicts, and the parts that need no GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_check.bars import bars
from benchmarks.gpu_check.driver import BUDGET_S, Driver, Part
from benchmarks.gpu_check.report import markdown, summary

ROOT = Path(__file__).parents[2]
RUN = ROOT / "benchmarks" / "gpu_check" / "run.py"

HANGS = """
import subprocess, time
def check(notes, setting):
    notes.note("child", subprocess.Popen(["sleep", "600"]).pid)
    time.sleep(600)
"""
FAKES = {
    "passes": "def check(notes, setting): notes.check('sum', 1 + 1 == 2, setting.argument)",
    "fails": "def check(notes, setting): notes.check('sum', 1 + 1 == 3, 2); notes.note('after', 1)",
    "hangs": HANGS,
    "aborts": "import os\ndef check(notes, setting): notes.note('found', 7); os.abort()",
    "raises": "def check(notes, setting): notes.note('found', 7); raise ValueError('the reason')",
    "lacks": "def check(notes, setting): import no_such_module.inside",
    "lacks_torch": "def check(notes, setting): raise ModuleNotFoundError('', name='torch.nn')",
    "meets": """
import pathlib, time
def check(notes, setting):
    mine, other = map(pathlib.Path, setting.argument.split(","))
    mine.touch()
    while not other.exists():
        time.sleep(0.05)
""",
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Parts that the processes of the driver can import."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / f"fake_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def _drive(tmp_path, *parts: Part, budget_s: float = BUDGET_S) -> tuple[bool, dict]:
    """Run parts and return the driver's verdict and its file, which is complete whenever it was written."""
    driver = Driver(parts, device="cpu", out=tmp_path / "out", budget_s=budget_s)
    saved, save = [], driver.save

    def save_and_read() -> None:
        save()
        saved.append(json.loads((tmp_path / "out" / "gpu_check.json").read_text()))

    driver.save = save_and_read
    passed = driver.run()
    assert len(saved) > len(parts)
    assert saved[-1]["passed"] is passed
    return passed, saved[-1]


def _fake(name: str, limit_s: float = 120, **more) -> Part:
    return Part(name, f"fake_{name}", limit_s, **more)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 30
    while _is_running(pid):
        assert time.monotonic() < until, f"process {pid} still runs"
        time.sleep(0.05)


@pytest.mark.long
def test_a_part_that_hangs_is_killed_with_all_that_it_started(fakes, tmp_path):
    passed, result = _drive(tmp_path, _fake("hangs", limit_s=10), _fake("passes", argument="given"))
    assert not passed
    hung = result["parts"]["hangs"]
    assert hung["status"] == "timed out"
    assert 10 <= hung["wall_s"] < 60
    _wait_until_gone(hung["found"]["child"])
    assert result["parts"]["passes"]["status"] == "passed"
    assert result["parts"]["passes"]["found"] == {"sum": "given"}


@pytest.mark.parametrize(("name", "exit_status"), [("aborts", -signal.SIGABRT), ("raises", 1)])
def test_the_notes_of_a_part_that_crashes_survive(fakes, tmp_path, name, exit_status):
    passed, result = _drive(tmp_path, _fake(name), _fake("passes"))
    assert not passed
    crashed = result["parts"][name]
    assert (crashed["status"], crashed["exit_status"]) == ("crashed", exit_status)
    assert crashed["found"] == {"found": 7}
    if name == "raises":
        assert crashed["failed"] == {"part": "ValueError: the reason"}
        assert "the reason" in (tmp_path / "out" / "gpu_check.log").read_text()
        assert "failed: part: ValueError: the reason" in summary(result)


def test_what_is_missing_is_left_out_by_name(fakes, tmp_path):
    passed, result = _drive(tmp_path, _fake("lacks"), _fake("passes"))
    assert passed
    assert result["parts"]["lacks"]["status"] == "left out"
    assert "left out: part: no module named no_such_module" in summary(result)


def test_a_missing_torch_is_a_failure(fakes, tmp_path):
    passed, result = _drive(tmp_path, _fake("lacks_torch"), _fake("passes"))
    assert not passed
    assert result["parts"]["lacks_torch"]["failed"] == {"part": "no module named torch"}


def test_a_check_that_fails_does_not_end_its_part(fakes, tmp_path):
    passed, result = _drive(tmp_path, _fake("fails"))
    assert not passed
    assert result["parts"]["fails"]["status"] == "failed"
    assert result["parts"]["fails"]["found"] == {"sum": 2, "after": 1}


def test_nothing_passed_is_not_a_pass(fakes, tmp_path):
    passed, result = _drive(tmp_path, _fake("lacks"), _fake("passes", needs_gpu=True))
    assert not passed
    assert result["parts"]["passes"]["status"] == "needs a GPU"


def test_no_part_begins_without_time(fakes, tmp_path):
    passed, result = _drive(tmp_path, _fake("passes"), budget_s=5)
    assert not passed
    assert result["parts"]["passes"] == {"status": "no time left"}


def test_neighbours_may_run_at_the_same_time(fakes, tmp_path):
    files = [str(tmp_path / name) for name in "ab"]
    parts = [
        Part(name, "fake_meets", 120, argument=",".join(order), beside=True)
        for name, order in (("one", files), ("other", files[::-1]))
    ]
    assert _drive(tmp_path, *parts)[0]


def test_sigterm_ends_the_part_and_keeps_its_notes(fakes, tmp_path):
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_check.driver import Driver, Part;"
        "Driver([Part('hangs', 'fake_hangs', 300)], device='cpu', out=Path(sys.argv[1])).run()"
    )
    paths = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": paths}
    driver = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    file, found, until = tmp_path / "out" / "gpu_check.json", {}, time.monotonic() + 60
    while not found:
        assert time.monotonic() < until
        time.sleep(0.1)
        if file.exists():
            found = json.loads(file.read_text())["parts"]["hangs"].get("found", {})
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) != 0
    _wait_until_gone(found["child"])
    assert json.loads(file.read_text())["parts"]["hangs"]["found"] == found


def _measured(**changes) -> dict:
    """A result in which all bars are met, or with other values."""
    given = {"different": [], "waits": {}, "trained": 1000.0, "naive_us": 5000.0, "read": 500.0} | changes
    row = {"precision": "bf16", "num_bags": 1, "graphs": True, "us": 1000.0, "host_us": 20.0}
    row |= {"bags_per_s": 1000.0, "waits": given["waits"], "stated_waits": 0, "launches": 9.0, "peak_mib": 50}
    naive = {"precision": "float32", "us": given["naive_us"], "host_us": 1.0, "bags_per_s": 200.0}
    trained = {"source": "cache=device", "graphs": True, "bags_per_s": given["trained"]}
    read = {"source": "shards in the page cache", "bags_per_s": given["read"]}
    found = {
        "environment": {"card": "Card X", "versions": {"torch": "2.11"}},
        "masks": {"masks": {"equal bit for bit": 48, "different": given["different"]}},
        **{f"steps-{m}": {"runs": [row], "naive": [naive]} for m in ("abmil", "dsmil", "transmil")},
        "loading": {"trained": [trained], "read": [read]},
    }
    parts = {name: {"status": "passed", "found": each} for name, each in found.items()}
    return {"device": "cuda", "commit": "abc", "wall_s": 1.0, "passed": True, "parts": parts}


BARS = [
    ({"different": [{"bags": "64"}]}, "masks", "48 equal, 1 different"),
    ({"waits": {"step.py:1": 2.0}}, "waits", "step.py:1"),
    ({"trained": 999.0}, "AB-MIL", "999 bags/s"),
    ({"naive_us": 4900.0}, "TransMIL", "4.9 x in float32"),
    ({"read": 499.0}, "page cache", "499 bags/s"),
]


def test_every_bar_can_be_met():
    verdicts = bars(_measured())
    assert [row["verdict"] for row in verdicts] == ["met"] * len(BARS)
    assert "5.0 x in float32" in [row["value"] for row in verdicts]


@pytest.mark.parametrize(("changes", "about", "value"), BARS)
def test_every_bar_can_be_missed(changes, about, value):
    (missed,) = [row for row in bars(_measured(**changes)) if row["verdict"] != "met"]
    assert missed["verdict"] == "missed"
    assert about in missed["bar"]
    assert value in missed["value"]


@pytest.mark.parametrize("result", [_measured() | {"device": "cpu"}, _measured() | {"parts": {}}])
def test_a_bar_without_a_measurement_is_neither(result):
    assert {row["verdict"] for row in bars(result)} == {"not measured"}


def test_the_table_names_the_card():
    text = markdown(_measured(read=499.0))
    assert text.startswith("## On Card X: measured\n\n`make gpu-check` at commit abc")
    assert "| reading ahead from the page cache: 500 bags/s | missed | 499 bags/s |" in text
    assert "| TransMIL | ours, bf16, graphs | 1 | 1000 | 20 | 1000 | 5.00 | 9.0 | 0 | 50 |" in text
    assert "| masks | passed |  |" in text


def _run(out: Path, *arguments: str) -> tuple[subprocess.CompletedProcess, dict]:
    """Run the command as in a checkout without installation."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(RUN), "--device", "cpu", "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=out.parent, env=env, capture_output=True, text=True)
    return done, json.loads((out / "gpu_check.json").read_text())


@pytest.mark.slow
def test_the_command_runs_without_a_gpu(tmp_path):
    done, result = _run(tmp_path / "out", "--only", "masks", "environment")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: part["status"] for name, part in result["parts"].items()} == {
        "environment": "passed",
        "masks": "passed",
    }
    masks = result["parts"]["masks"]["found"]
    assert masks["masks"] == {"equal bit for bit": 48, "different": []}
    assert masks["dropout in bfloat16"]["dropped"] > 0.5  # half by the ReLU
    assert {row["verdict"] for row in result["bars"]} == {"not measured"}
    assert done.stdout.count("not measured: ") == len(BARS)
    table = subprocess.run(
        [sys.executable, str(RUN), "--table", str(tmp_path / "out" / "gpu_check.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "## On a CPU, at sizes that say nothing about speed: measured" in table.stdout


def test_a_gpu_that_is_not_there_fails(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, str(RUN), "--only", "masks", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "expected a CUDA device" in done.stdout


@pytest.mark.slow
def test_all_that_needs_no_gpu_passes(tmp_path):
    started = time.monotonic()
    done, result = _run(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 360
    statuses = {name: part["status"] for name, part in result["parts"].items()}
    needing = {name for name, status in statuses.items() if status == "needs a GPU"}
    assert needing == {"kernels", "tests", "sanitizer"}
    assert {status for name, status in statuses.items() if name not in needing} == {"passed"}
    for model in ("abmil", "dsmil", "transmil"):
        found = result["parts"][f"steps-{model}"]["found"]
        assert [(row["precision"], row["num_bags"]) for row in found["runs"]] == [
            (precision, num_bags) for precision in ("bf16", "float32") for num_bags in (1, 2)
        ]
        assert found["naive"][0]["us"] > 0
    read = {row["source"] for row in result["parts"]["loading"]["found"]["read"]}
    assert {"memory", "cache=device", "shards in the page cache"} <= read
