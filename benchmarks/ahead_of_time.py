"""Launches of the Triton kernels without a GPU, and the machine code that the compiler makes for one.

An operator is called on CPU tensors; its launches are noted and not run. A noted launch is then compiled for
an architecture, and its registers and stack are read from the machine code.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

ARCHITECTURES = {80: "A100", 90: "H100", 100: "B200"}
_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: the function.
        grid: programs in each dimension.
        arguments: by their names, those of the compiler included.
        options: of the compiler.
    """

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return self.options["num_warps"]

    @property
    def name(self) -> str:
        """The kernel's name in `mhimdist/ops`."""
        return self.kernel.__name__


@dataclass(frozen=True)
class Compiled:
    """The resources of a kernel on an architecture.

    Attributes:
        registers: per thread.
        stack_bytes: per thread; registers spill there, so 0 means no spills.
        shared_bytes: per program.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """Note the launches of all kernels instead of running them; results are left without values."""
    launches: list[Launch] = []

    def note(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        arguments |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
        options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
        launches.append(Launch(kernel, grid, arguments, options))

    with patch.object(JITFunction, "run", note):
        yield launches


def compiled_for(launch: Launch, architecture: int) -> str:
    """All that the machine code of a launch depends on, as Triton keys its cache: types, constants, options.

    Args:
        launch: by `noted`; its tensors' addresses count as they would on a GPU.
        architecture: such as 90 for sm_90.
    """
    backend = make_backend(GPUTarget("cuda", architecture, 32))
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    _, types, options = bind(**launch.arguments, **launch.options)
    return f"{types} {sorted(options.items())}"


def built(launch: Launch, architecture: int) -> Any:
    """Triton's kernel of a launch, with the types, constants and alignments it would have on that GPU.

    Args:
        launch: by `noted`.
        architecture: such as 90 for sm_90.
    """
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        specializes = not parameter.do_not_specialize
        if parameter.is_constexpr or (specializes and isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and specializes and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)


def compiled(launch: Launch, architecture: int) -> Compiled:
    """The resources of a launch's kernel.

    Args:
        launch, architecture: as in `built`.

    Raises:
        subprocess.CalledProcessError: the machine code cannot be read.
    """
    kernel = built(launch, architecture)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(found["REG"], found["STACK"] + found["LOCAL"], kernel.metadata.shared)
