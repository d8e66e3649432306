"""Runs a command as on an older CPU, to find numbers that such a CPU rounds differently.

    python tests/capped.py COMMAND ...

PyTorch, oneDNN, MKL, OpenBLAS and NumPy then choose instructions below those of this CPU: AVX2 if it has
AVX-512, SSE if it has AVX2, and each library's plainest code on other CPUs.
"""

import os
import sys
from collections.abc import Collection


def caps(capability: str, machine: str, dispatched: Collection[str]) -> dict[str, str]:
    """The environment variables that keep a process's libraries below the CPU's instructions.

    Args:
        capability: the CPU's capability by PyTorch, such as "AVX512", "AVX2" or "DEFAULT".
        machine: the architecture by `os.uname`.
        dispatched: the CPU features that this build of NumPy chooses among; it refuses all other names.
    """
    if machine != "x86_64":
        return {"ATEN_CPU_CAPABILITY": "default"} | _without(dispatched)
    if capability.startswith("AVX512"):
        above = {name for name in dispatched if name.startswith(("AVX512", "X86_V4"))}
        return {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "OPENBLAS_CORETYPE": "Haswell",
        } | _without(above)
    above = {name for name in dispatched if name.startswith(("AVX", "X86_V3", "X86_V4", "FMA", "F16C"))}
    return {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
    } | _without(above)


def _without(features: Collection[str]) -> dict[str, str]:
    return {"NPY_DISABLE_CPU_FEATURES": " ".join(sorted(features))} if features else {}


def main() -> None:
    """Replace this process by the command, with the environment of `caps`."""
    import torch
    from numpy._core import _multiarray_umath as numpy_build

    capability = torch.backends.cpu.get_cpu_capability()
    found = caps(capability, os.uname().machine, numpy_build.__cpu_dispatch__)
    print(f"this CPU has {capability}: {' '.join(f'{k}={v}' for k, v in found.items())}", flush=True)
    os.execvpe(sys.argv[1], sys.argv[1:], os.environ | found)


if __name__ == "__main__":
    main()
