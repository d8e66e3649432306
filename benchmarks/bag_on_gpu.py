"""The launches of the kernels for one bag; `kernels.py` counts them, and the tests compile them."""

import torch

from benchmarks.ahead_of_time import Launch, noted
from mhimdist.ops import _dropout, _numbers, _pool, _reduce, _select, _sequence, _square

INSTANCES, FEATURES, WIDTH = 9075, 1024, 512


def selection(
    *, num_bags: int = 1, num_heads: int = 1, capacity: int = 4538, rows: int = INSTANCES
) -> list[Launch]:
    """Launches of `select_and_gather` on fp16 features to bf16 rows."""
    each_B = torch.ones(num_bags, dtype=torch.int64)
    offsets_B1 = torch.arange(num_bags + 1) * (rows // num_bags)
    features_TD = torch.empty(rows, FEATURES, dtype=torch.float16)
    with noted() as launches:
        _select.select_and_gather(
            features_TD,
            torch.empty(rows, num_heads),
            offsets_B1,
            *[each_B] * 7,
            capacity,
            torch.bfloat16,
        )
    return launches


def numbers(*, num_bags: int = 1) -> list[Launch]:
    """The launch of `bag_numbers`."""
    each_B = torch.ones(num_bags, dtype=torch.int64)
    with noted() as launches:
        _numbers.bag_numbers(
            torch.arange(num_bags + 1), each_B, torch.ones(4, dtype=torch.float64), torch.arange(5)
        )
    return launches


def pooling(
    *, num_bags: int = 1, columns: int = 1, rows: int = INSTANCES, backward: bool = True
) -> list[Launch]:
    """Launches of `segment_softmax_pool` on bf16 values, and of its gradient."""
    offsets_B1 = torch.arange(num_bags + 1) * (rows // num_bags)
    scores_TC, values_TE = torch.empty(rows, columns), torch.empty(rows, WIDTH, dtype=torch.bfloat16)
    with noted() as launches:
        pooled_BCE, log_BC = _pool.segment_softmax_pool(scores_TC, values_TE, offsets_B1)
        if backward:
            grads = (pooled_BCE, log_BC, pooled_BCE)
            _pool.segment_softmax_pool_backward(scores_TC, values_TE, offsets_B1, *grads)
    return launches


def dropout(*, num_bags: int = 1, rows: int = INSTANCES, relu: bool = True) -> list[Launch]:
    """Launches of `relu_dropout`, or of `keyed_dropout` alone, on bf16 values, and of its gradient."""
    offsets_B1 = torch.arange(num_bags + 1) * (rows // num_bags)
    values_TE = torch.empty(rows, WIDTH, dtype=torch.bfloat16)
    with noted() as launches:
        out_TE = _dropout.keyed_dropout(
            values_TE, 64, offsets_B1, torch.ones(num_bags, dtype=torch.int64), 0, relu
        )
        if relu:
            _dropout.relu_dropout_backward(out_TE, out_TE, 64)
    return launches


def ranking(*, num_bags: int = 1, columns: int = 1, rows: int = INSTANCES) -> list[Launch]:
    """The launch of `segment_argmax`."""
    offsets_B1 = torch.arange(num_bags + 1) * (rows // num_bags)
    with noted() as launches:
        _pool.segment_top_k(torch.empty(rows, columns), 1, offsets_B1, True)
    return launches


def reducing(*, num_bags: int = 1, columns: int = WIDTH, rows: int = INSTANCES, is_max: bool) -> list[Launch]:
    """Launches of `segment_max` or `segment_mean` on float32 values, and of its gradient."""
    offsets_B1 = torch.arange(num_bags + 1) * (rows // num_bags)
    values_TE = torch.empty(rows, columns)
    with noted() as launches:
        reduced = _reduce.segment_reduce(values_TE, offsets_B1, is_max)
        _reduce.segment_reduce_backward(values_TE, offsets_B1, *reduced, reduced[0], is_max)
    return launches


def along_the_sequence(*, rows: int = INSTANCES) -> list[Launch]:
    """Launches of `sequence_convolution` on bf16 values with 33 taps, and of its gradients."""
    values_TE, kernel_JE = (torch.empty(count, WIDTH, dtype=torch.bfloat16) for count in (rows, 33))
    with noted() as launches:
        _sequence.sequence_convolution(values_TE, kernel_JE)
        _sequence.sequence_convolution_kernel_backward(values_TE, values_TE, 33)
    return launches


def square(*, rows: int = INSTANCES) -> list[Launch]:
    """Launches of `square_convolution` on bf16 instances, and of its gradients."""
    tokens_TE, kernel_JE = (torch.empty(count, WIDTH, dtype=torch.bfloat16) for count in (rows, 49))
    offsets_2 = torch.tensor([0, rows])
    with noted() as launches:
        _square.square_convolution(tokens_TE, kernel_JE, kernel_JE[0], offsets_2)
        _square.square_convolution_backward(tokens_TE, kernel_JE, offsets_2)
        _square.square_convolution_kernel_backward(tokens_TE, tokens_TE, offsets_2)
    return launches
