"""What the doctor does with its checks: order, time, failures, and how it shows them."""

import io
import json
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from mhimdist.doctor import child, gpus
from mhimdist.doctor.findings import Area, Check, Diagnosis, Finding, size
from mhimdist.doctor.options import Doctor
from mhimdist.doctor.run import CHECKS, diagnose, run_doctor
from mhimdist.doctor.table import Shown
from mhimdist.errors import UnfitError

AREA = Area("somewhere")


def good(job: Doctor) -> Iterator[Finding]:
    yield AREA.fine("thing", "well")


def broken(job: Doctor) -> Iterator[Finding]:
    yield AREA.fine("first half", "well")
    raise ZeroDivisionError("of our own making\x1b[31m")


def test_a_check_that_fails_is_a_finding():
    told = diagnose(Doctor(), [Check(AREA, "second half", broken), Check(AREA, "thing", good)])
    assert [(each.subject, each.status) for each in told.findings] == [
        ("first half", "fine"),
        ("second half", "warning"),
        ("thing", "fine"),
    ]
    assert told.findings[1].found == "this could not be checked: ZeroDivisionError: of our own making [31m"
    assert told.status == "warning"


def test_a_check_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()

    def hanging(job: Doctor) -> Iterator[Finding]:
        yield AREA.fine("first half", "well")
        ended.wait()

    waits = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", lambda self, timeout=None: waits(self, 0.2))
    told = diagnose(Doctor(), [Check(AREA, "second half", hanging), Check(AREA, "thing", good)])
    ended.set()
    assert [(each.subject, each.status) for each in told.findings] == [
        ("first half", "fine"),
        ("second half", "mend"),
        ("thing", "fine"),
    ]
    assert "may hang" in told.findings[1].found


def test_what_must_be_mended_is_the_error(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def bad(job: Doctor) -> Iterator[Finding]:
        yield AREA.mend("thing", "ill", "heal it: `heal`")

    monkeypatch.setattr("mhimdist.doctor.run.CHECKS", ())
    run_doctor(Doctor(json=True))
    assert Diagnosis.model_validate_json(_without_status(capsys.readouterr().out)).status == "fine"
    monkeypatch.setattr(
        "mhimdist.doctor.run.diagnose", lambda job: diagnose(job, [Check(AREA, "thing", bad)])
    )
    with pytest.raises(UnfitError, match=r"^1 to mend: somewhere: thing$"):
        run_doctor(Doctor())
    assert "heal it: `heal`" in capsys.readouterr().out


def _without_status(text: str) -> str:
    told = json.loads(text)
    del told["status"]
    return json.dumps(told)


def test_areas_follow_each_other_and_subjects_of_checks_are_unique():
    areas = [check.area.name for check in CHECKS]
    assert list(dict.fromkeys(areas)) == ["python", "gpu", "machine", "home", "ray", "data"]
    assert areas == sorted(areas, key=list(dict.fromkeys(areas)).index)
    assert len({(check.area.name, check.subject) for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_table_says_all_in_any_terminal(encoding: str):
    told = diagnose(Doctor(), [Check(AREA, "second half", broken)])
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=60, legacy_windows=False).print(Shown(told))
    file.flush()
    text = " ".join(file.buffer.getvalue().decode(encoding).split())
    assert "somewhere" in text
    assert "What to do" in text
    assert "`mhimdist doctor --timeout-s 300`" in text
    assert "1 warning (2 findings" in text


def test_a_process_that_crashes_or_hangs_is_named():
    with pytest.raises(child.NoAnswerError, match="KeyError: 'nonsense'"):
        child.ask("nonsense", timeout_s=60)
    with pytest.raises(child.NoAnswerError, match=r"no answer within 0\.01 s"):
        child.ask("driver", timeout_s=0.01)
    assert child._ended(-11) == "the process that looked was ended by SIGSEGV"


H100 = {"name": "H100", "capability": (9, 0), "free": 70 * 2**30, "total": 80 * 2**30}


@pytest.mark.parametrize(
    ("cuda", "driver", "cards", "sees", "status", "said"),
    [
        (None, None, 0, False, "fine", "training uses the CPU"),
        ("13.0", None, 0, False, "warning", "docker run --gpus all"),
        ("13.0", None, 2, False, "mend", "install NVIDIA's driver"),
        (None, 13000, 1, False, "mend", "whl/cu130"),
        ("13.0", 12040, 1, False, "mend", "the driver knows only CUDA 12.4"),
        ("13.0", 13010, 1, False, "mend", "nvidia-smi"),
        ("13.0", 13010, 1, True, "fine", "they match"),
        ("12.6", 13010, 1, True, "fine", "they match"),
    ],
)
def test_builds_of_torch_and_drivers(
    cuda: str | None, driver: int | None, cards: int, sees: bool, status: str, said: str
):
    torch = {"cuda": cuda, "gpus": [H100] * sees, "error": None}
    (found,) = gpus.driver_findings(torch, {"cuda": driver, "error": "no library"}, cards)
    assert found.status == status
    assert said in f"{found.found} {found.mend}"


@pytest.mark.parametrize(
    ("gpu", "status", "said"),
    [
        (H100, "fine", "70.0 GiB of 80.0 GiB free"),
        (H100 | {"free": 2**29}, "warning", "nvidia-smi"),
        (H100 | {"capability": (8, 6)}, "fine", "70.0 GiB"),
        (H100 | {"capability": (7, 5)}, "mend", "capability 7.5, and torch has code for 80, 90, 100"),
        (H100 | {"capability": (10, 3)}, "fine", "70.0 GiB"),
    ],
)
def test_gpus_and_the_code_in_torch(gpu: dict, status: str, said: str):
    (found,) = gpus.gpu_findings(0, gpu, ["sm_80", "sm_90a", "sm_100", "compute_100"])
    assert found.status == status
    assert said in f"{found.found} {found.mend}"


def test_sizes():
    assert [size(number) for number in (12, 2**10, 5 * 2**30, 3 * 2**40)] == [
        "12 bytes",
        "1.0 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]
