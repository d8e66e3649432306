"""CPU tensors that take the code path of CUDA tensors, and a recorder that imitates a CUDA graph."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mhimdist import ops
from mhimdist.ops import reference


class AsOnAGpu(TorchFunctionMode):
    """Every tensor claims to be on a CUDA device; tensors requested there are made on the CPU."""

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
    """The operators of some work, to run again with the same arguments on the same memory.

    As in a CUDA graph, numbers are those of the recording, every result stays at its address, and the host
    may read nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero"), f"{name} waits for the device"
        found = func(*args, **kwargs)
        if name.startswith(("profiler::", "aten::empty", "aten::new_empty")):
            return found
        # The results of views are in memory of the arguments. The schema cannot tell: `aten::to` may copy.
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        results = [tensor for tensor in _tensors(found) if tensor.untyped_storage().data_ptr() not in given]
        # The schema of an exchange does not tell that it writes into its arguments.
        if results or func._schema.is_mutable or name.startswith("c10d::"):
            self.calls.append((func, args, kwargs, results))
        return found

    @torch.inference_mode()  # the only mode in which the teacher's results can be written
    def replay(self) -> None:
        """Run all recorded operators again."""
        for func, args, kwargs, results in self.calls:
            found = func(*args, **kwargs)
            if func._schema.name.startswith("c10d::"):
                found[1].wait()  # an exchange with other processes runs in a thread
            elif results:
                for result, again in zip(results, _tensors(found), strict=True):
                    result.copy_(again)


class OneDevice(TorchDispatchMode):
    """Refuses operators that mix a device's tensors with a CPU's: a GPU refuses, too, or is waited for."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = _tensors((args, kwargs))
        if any(tensor.device.type == self.device_type for tensor in given) and name != "aten::copy_":
            # Kernels take a number from the CPU as an argument; `where` copies it to the device and waits.
            strangers = [t for t in given if t.device.type == "cpu" and (t.dim() or name == "aten::where")]
            assert not strangers, f"{name} has arguments on a CPU: {strangers}"
        return func(*args, **kwargs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Recorder:
    """Stands in for `graphed_step.CudaGraphs`, which needs a GPU."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """Run the work twice: once as a rehearsal, once to record it."""
        work()
        recording = Recording()
        with recording:
            found = work()
        self.recordings.append(recording)
        return found, recording.replay


def _bag_numbers(offsets_B1: Tensor, ids_B: Tensor, ratios_4: Tensor, streams_S: Tensor) -> Tensor:
    found = ops.bag_numbers(offsets_B1, ids_B, ratios_4, streams_S)
    rows = [*vars(found.counts).values(), *vars(found.keys).values()]
    rows += [found.student_dropout_B, found.teacher_dropout_B]
    return functional.pad(torch.stack(rows), (0, len(ids_B) % 2))


def _select_and_gather(
    features_TD: Tensor, scores_TH: Tensor, offsets_B1: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *numbers, capacity, dtype = rest
    counts, keys = ops.MaskCounts(*numbers[:4]), ops.MaskKeys(*numbers[4:])
    total = int(offsets_B1[-1])
    found = reference.select_and_gather(
        features_TD[:total], scores_TH[:total], offsets_B1, counts, keys, dtype=dtype
    )
    padding = capacity - len(found.kept_K)
    return (
        functional.pad(found.features_KD, (0, 0, 0, padding)),
        functional.pad(found.kept_K, (0, padding), value=-1),
        found.offsets_B1,
        torch.stack([found.masked_high, found.masked_low, found.masked_random]),
    )


def _softmax_pool(scores_TC: Tensor, values_TE: Tensor, offsets_B1: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores_TC[: int(offsets_B1[-1])].split(offsets_B1.diff().tolist())
    log_BC = torch.stack([scores_NC.logsumexp(0) for scores_NC in scores])
    return reference.segment_softmax_pool(scores_TC, values_TE, offsets_B1), log_BC


def _softmax_pool_backward(
    scores_TC: Tensor,
    values_TE: Tensor,
    offsets_B1: Tensor,
    pooled_BCE: Tensor,
    log_BC: Tensor,
    grad_BCE: Tensor,
) -> tuple[Tensor, Tensor]:
    grad_scores_TC, grad_values_TE = torch.zeros_like(scores_TC), torch.zeros_like(values_TE)
    for bag, (start, stop) in enumerate(pairwise(offsets_B1.tolist())):
        weights_NC = (scores_TC[start:stop] - log_BC[bag]).exp()
        share_C = (pooled_BCE[bag] * grad_BCE[bag]).sum(1)
        products_NC = values_TE[start:stop].float() @ grad_BCE[bag].T
        grad_scores_TC[start:stop] = weights_NC * (products_NC - share_C)
        grad_values_TE[start:stop] = weights_NC @ grad_BCE[bag]
    return grad_scores_TC, grad_values_TE


def _top_k(values_TC: Tensor, k: int, offsets_B1: Tensor, largest: bool) -> Tensor:
    return reference.segment_top_k(values_TC, k, offsets_B1, largest=largest)


def _dropout(
    values_TE: Tensor, threshold: int, offsets_B1: Tensor, keys_B: Tensor, site: int, relu: bool
) -> Tensor:
    total = int(offsets_B1[-1])
    values = values_TE[:total].relu() if relu else values_TE[:total]
    dropped = reference.keyed_dropout(values, threshold / 256, offsets_B1, keys_B, site)
    return functional.pad(dropped, (0, 0, 0, len(values_TE) - total))


def _relu_dropout_backward(grad_TE: Tensor, out_TE: Tensor, threshold: int) -> Tensor:
    return torch.where(out_TE > 0, grad_TE * (256 / (256 - threshold)), 0)


def _reduce(values_TE: Tensor, offsets_B1: Tensor, is_max: bool) -> tuple[Tensor, Tensor]:
    reduce = reference.segment_max if is_max else reference.segment_mean
    reduced_BE = reduce(values_TE, offsets_B1)
    counts = [
        (values_TE[start:stop] == reduced_E).sum(0) if is_max else torch.full_like(reduced_E, stop - start)
        for reduced_E, (start, stop) in zip(reduced_BE, pairwise(offsets_B1.tolist()), strict=True)
    ]
    return reduced_BE, torch.stack(counts).int()


def _reduce_backward(
    values_TE: Tensor,
    offsets_B1: Tensor,
    reduced_BE: Tensor,
    counts_BE: Tensor,
    grad_BE: Tensor,
    is_max: bool,
) -> Tensor:
    grad_values_TE = torch.zeros_like(values_TE)
    for bag, (start, stop) in enumerate(pairwise(offsets_B1.tolist())):
        is_counted = (values_TE[start:stop] == reduced_BE[bag]) if is_max else 1.0
        grad_values_TE[start:stop] = grad_BE[bag] / counts_BE[bag] * is_counted
    return grad_values_TE


def _sequence_convolution(values_TE: Tensor, kernel_JE: Tensor) -> Tensor:
    return reference.sequence_convolution(values_TE, kernel_JE.T).to(values_TE.dtype).contiguous()


def _sequence_convolution_kernel_backward(grad_TE: Tensor, values_TE: Tensor, num_taps: int) -> Tensor:
    wide = torch.promote_types(values_TE.dtype, torch.float32)
    padded_SE = functional.pad(values_TE.to(wide), (0, 0, num_taps // 2, num_taps // 2))
    return torch.einsum("te,tej->je", grad_TE.to(wide), padded_SE.unfold(0, num_taps, 1))


def _square_convolution(tokens_TE: Tensor, kernel_JE: Tensor, bias_E: Tensor, offsets_2: Tensor) -> Tensor:
    size, kernel_EJI = int(offsets_2[1]), kernel_JE.T.unflatten(1, (7, 7))
    encoded_NE = reference.square_convolution(tokens_TE[:size], kernel_EJI, bias_E).to(tokens_TE.dtype)
    return functional.pad(encoded_NE, (0, 0, 0, len(tokens_TE) - size))


def _square_gradients(
    grad_TE: Tensor, tokens_TE: Tensor, kernel_JE: Tensor, offsets_2: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the tokens, and those of kernel and bias."""
    size = int(offsets_2[1])
    side = math.isqrt(size - 1) + 1
    grid = max(side, 7)
    wide = torch.promote_types(grad_TE.dtype, torch.float32)
    square_SE, grad_SE = (
        grad_TE.new_zeros(grid**2, grad_TE.shape[1], dtype=wide) for _ in ("square", "gradient")
    )
    square_SE[:size], grad_SE[:size] = tokens_TE[:size], grad_TE[:size]
    square_SE[size : side**2] = tokens_TE[: side**2 - size]
    images = [rows_SE.T.reshape(1, -1, grid, grid) for rows_SE in (grad_SE, square_SE)]
    kernel_E1JI = kernel_JE.T.reshape(-1, 1, 7, 7).to(wide)
    rest = ([len(kernel_E1JI)], [1, 1], [3, 3], [1, 1], False, [0, 0], len(kernel_E1JI), [True] * 3)
    back_1EYX, kernel_grad, bias_grad = torch.ops.aten.convolution_backward(*images, kernel_E1JI, *rest)
    back_SE = back_1EYX.flatten(2)[0].T
    tokens_grad_TE = torch.zeros_like(grad_TE)
    tokens_grad_TE[:size] = back_SE[:size] + grad_SE[:size]
    tokens_grad_TE[: side**2 - size] += back_SE[size : side**2]
    return tokens_grad_TE, torch.cat([kernel_grad.flatten(1).T, bias_grad[None]])


def _square_convolution_backward(grad_TE: Tensor, kernel_JE: Tensor, offsets_2: Tensor) -> Tensor:
    return _square_gradients(grad_TE, torch.zeros_like(grad_TE), kernel_JE, offsets_2)[0]


def _square_convolution_kernel_backward(grad_TE: Tensor, tokens_TE: Tensor, offsets_2: Tensor) -> Tensor:
    return _square_gradients(grad_TE, tokens_TE, tokens_TE.new_zeros(49, tokens_TE.shape[1]), offsets_2)[1]


def kernels_as_specified() -> dict[Any, Callable[..., Any]]:
    """The operators of the kernels, each with a CPU version that is fast, unlike an interpreted kernel.

    Like the kernels, these treat the rows after the last bag as padding.
    """
    from mhimdist.ops import _dropout as dropout
    from mhimdist.ops import _numbers, _pool, _select, _sequence, _square
    from mhimdist.ops import _reduce as reduce

    return {
        _numbers.bag_numbers: _bag_numbers,
        _select.select_and_gather: _select_and_gather,
        _pool.segment_softmax_pool: _softmax_pool,
        _pool.segment_softmax_pool_backward: _softmax_pool_backward,
        _pool.segment_top_k: _top_k,
        dropout.keyed_dropout: _dropout,
        dropout.relu_dropout_backward: _relu_dropout_backward,
        reduce.segment_reduce: _reduce,
        reduce.segment_reduce_backward: _reduce_backward,
        _sequence.sequence_convolution: _sequence_convolution,
        _sequence.sequence_convolution_kernel_backward: _sequence_convolution_kernel_backward,
        _square.square_convolution: _square_convolution,
        _square.square_convolution_backward: _square_convolution_backward,
        _square.square_convolution_kernel_backward: _square_convolution_kernel_backward,
    }
