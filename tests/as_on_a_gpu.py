"""CPU tensors that go the way of CUDA tensors, and a recorder that does what a CUDA graph does.

For tests in a process where triton interprets: the package then launches its kernels on the CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AsOnAGpu(TorchFunctionMode):
    """Every tensor says that it is on a CUDA device; what is asked for there is made on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda", 0)
        if func == torch.Tensor.pin_memory:
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        return func(*("cpu" if isinstance(arg, torch.device) else arg for arg in args), **kwargs)


class Recording(TorchDispatchMode):
    """The operators of some work, which can be run again with the same arguments on the same memory.

    As in a CUDA graph: numbers are those of the recording, every result lies where it lay then, and nothing
    may be read by the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero"), f"{name} waits for the device"
        found = func(*args, **kwargs)
        if func.is_view or name.startswith(("profiler::", "aten::empty", "aten::new_empty")):
            return found
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        results = [tensor for tensor in _tensors(found) if tensor.untyped_storage().data_ptr() not in given]
        if results or func._schema.is_mutable:
            self.calls.append((func, args, kwargs, results))
        return found

    @torch.inference_mode()  # the teacher's results can be written only there
    def replay(self) -> None:
        """Run all of it again."""
        for func, args, kwargs, results in self.calls:
            found = _tensors(func(*args, **kwargs))
            if results:
                for result, again in zip(results, found, strict=True):
                    result.copy_(again)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Recorder:
    """What `graphs.CudaGraphs` is on a GPU."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """Run the work twice, as a rehearsal and to record it."""
        work()
        recording = Recording()
        with recording:
            found = work()
        self.recordings.append(recording)
        return found, recording.replay
