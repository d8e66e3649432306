# mypy: disable-error-code="no-untyped-def"
"""Mask sizes and stream keys on CUDA: one launch for all bags of a step.

Dimensions: B bags, B1 = B + 1 offsets, S streams, P padded bags.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhimdist.ops._triton import mix, on_its_device

COUNTS = tl.constexpr(4)
BAGS = 64


@triton.jit
def _share(sizes, ratio):
    """`reference.share_of`; each operation must round separately, so launch with `enable_fp_fusion=False`."""
    scaled = sizes.to(tl.float64) * ratio * 1e9
    # Adding 2^52 rounds to an integer, half to even: no digit after the point remains.
    integer = scaled + 4503599627370496.0 - 4503599627370496.0
    scaled = tl.where(scaled < 4503599627370496.0, integer, scaled)
    return tl.ceil(scaled / 1e9).to(tl.int64)


@triton.jit(do_not_specialize=["num_bags", "stride"])
def _number(
    offsets, ids, ratios, streams, numbers, num_bags, stride, STREAMS: tl.constexpr, BAGS: tl.constexpr
):
    bag = tl.program_id(0) * BAGS + tl.arange(0, BAGS)
    inside = bag < num_bags
    start = tl.load(offsets + bag, mask=inside, other=0)
    size = tl.load(offsets + bag + 1, mask=inside, other=0) - start
    pool = _share(size, tl.load(ratios))
    tl.store(numbers + bag, pool, mask=inside)
    tl.store(numbers + stride + bag, _share(pool, tl.load(ratios + 1)), mask=inside)
    tl.store(numbers + 2 * stride + bag, _share(size, tl.load(ratios + 2)), mask=inside)
    tl.store(numbers + 3 * stride + bag, _share(size, tl.load(ratios + 3)), mask=inside)
    id_ = tl.load(ids + bag, mask=inside, other=0)
    for stream in tl.static_range(STREAMS):
        key = mix((id_ ^ tl.load(streams + stream)).to(tl.uint64)).to(tl.int64)
        tl.store(numbers + (COUNTS + stream) * stride + bag, key, mask=inside)


@torch.library.custom_op("mhimdist::bag_numbers", mutates_args=())
@on_its_device
def bag_numbers(offsets_B1: Tensor, ids_B: Tensor, ratios_4: Tensor, streams_S: Tensor) -> Tensor:
    """See `ops.bag_numbers`; returns four rows of counts, then one of keys per stream: int64, (4 + S) x P.

    P is even, so every row starts where a kernel can read 16 bytes at a time.
    """
    num_bags = len(ids_B)
    numbers_NP = offsets_B1.new_empty((4 + len(streams_S), num_bags + num_bags % 2))
    _number[triton.cdiv(num_bags, BAGS),](
        offsets_B1,
        ids_B,
        ratios_4,
        streams_S,
        numbers_NP,
        num_bags,
        numbers_NP.stride(0),
        STREAMS=len(streams_S),
        BAGS=BAGS,
        num_warps=2,
        enable_fp_fusion=False,
    )
    return numbers_NP


@bag_numbers.register_fake
def _(offsets_B1: Tensor, ids_B: Tensor, ratios_4: Tensor, streams_S: Tensor) -> Tensor:
    num_bags = ids_B.shape[0]
    return offsets_B1.new_empty((4 + streams_S.shape[0], num_bags + num_bags % 2))
