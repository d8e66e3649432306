"""The kernels without a GPU: interpreted against the specification, and compiled ahead of time."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("triton")


def _python(*arguments, **environment):
    """Triton decides when it is imported whether to interpret: each way has a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.kernels
def test_the_interpreter_agrees_with_the_specification():
    done = _python("-m", "pytest", "tests/test_kernels_device.py", "-m", "kernels", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout
    assert len(re.findall(r"^\.+s?", done.stdout, re.M)[0]) > 30, done.stdout


def _compiled(*arguments):
    """What the benchmark of the kernels prints, with all kernels compiled for all architectures."""
    done = _python("benchmarks/kernels.py", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def report():
    return _compiled()


def _assert_no_spills(report, num_kernels):
    assert len(report["kernels"]) == num_kernels
    for kernel in report["kernels"]:
        for architecture in ("sm_80", "sm_90", "sm_100"):
            assert kernel[architecture]["spilled_bytes"] == 0, kernel
            assert 16 <= kernel[architecture]["registers"] <= 128, kernel
            assert kernel[architecture]["shared_bytes"] <= 48 * 1024, kernel


@pytest.mark.kernels
def test_every_kernel_compiles_without_spills(report):
    _assert_no_spills(report, 9)


@pytest.mark.kernels
@pytest.mark.slow
def test_kernels_of_many_heads_and_columns_compile_without_spills():
    _assert_no_spills(_compiled("--all"), 18)


@pytest.mark.kernels
def test_launches_and_floors_of_a_step(report):
    launches = {cost["operation"]: cost["launches"] for cost in report["costs"]}
    assert launches["select and gather"] == 3
    assert launches["softmax pooling"] == 2
    assert {launches[name] for name in ("ReLU and dropout", "ReLU and dropout, backward", "arg-max")} == {1}
    gather = next(cost for cost in report["costs"] if cost["operation"] == "select and gather")
    # Nearly half of 9,075 rows of 1,024 features in 16 bits stay; each is read and written.
    assert gather["megabytes"] == pytest.approx(2 * 0.5 * 9_075 * 2_048 / 1e6, rel=0.05)
    assert gather["floor_us"] == pytest.approx(gather["megabytes"] / 3.35)
