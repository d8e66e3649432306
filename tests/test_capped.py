"""`capped.py` keeps each library below the CPU's instructions, by names that the library accepts."""

import os
import subprocess
import sys

import pytest
import torch
from capped import caps
from numpy._core import _multiarray_umath as numpy_build

X86 = ["X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"]
OLDER = ["SSE41", "SSE42", "F16C", "FMA3", "AVX2", "AVX512F", "AVX512_SKX"]


@pytest.mark.parametrize(
    ("capability", "machine", "dispatched", "aten", "without"),
    [
        ("AVX512", "x86_64", X86, "avx2", "AVX512_ICL AVX512_SPR X86_V4"),
        ("AVX512", "x86_64", OLDER, "avx2", "AVX512F AVX512_SKX"),
        ("AVX2", "x86_64", X86, "default", "AVX512_ICL AVX512_SPR X86_V3 X86_V4"),
        ("AVX2", "x86_64", OLDER, "default", "AVX2 AVX512F AVX512_SKX F16C FMA3"),
        ("DEFAULT", "aarch64", ["ASIMDHP", "SVE"], "default", "ASIMDHP SVE"),
        ("DEFAULT", "aarch64", [], "default", None),
    ],
)
def test_no_library_uses_all_that_the_cpu_has(capability, machine, dispatched, aten, without):
    found = caps(capability, machine, dispatched)
    assert found["ATEN_CPU_CAPABILITY"] == aten
    assert found.get("NPY_DISABLE_CPU_FEATURES") == without


def test_the_libraries_take_these_names():
    capability = torch.backends.cpu.get_cpu_capability()
    found = caps(capability, os.uname().machine, numpy_build.__cpu_dispatch__)
    said = (
        "import torch; from numpy._core import _multiarray_umath as numpy_build\n"
        "print(torch.backends.cpu.get_cpu_capability())\n"
        "print(*(name for name in numpy_build.__cpu_dispatch__ if numpy_build.__cpu_features__[name]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", said],
        env=os.environ | found,
        capture_output=True,
        text=True,
        check=True,
    )
    capped, features = done.stdout.splitlines()
    assert capped == found["ATEN_CPU_CAPABILITY"].upper()
    assert not set(features.split()) & set(found.get("NPY_DISABLE_CPU_FEATURES", "").split())
    assert "cannot disable" not in done.stderr
