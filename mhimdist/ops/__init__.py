"""The ragged operations of the method; each runs the fastest implementation for the device of its tensors.

Tensors on the CPU use NumPy and torch, all others Triton kernels. `reference` specifies both.
"""

from mhimdist.ops.dropout import keyed_dropout, relu_dropout, relu_dropout_block
from mhimdist.ops.masks import Gathered, MaskCounts, MaskKeys, Selection
from mhimdist.ops.numbers import STREAMS, BagNumbers, bag_numbers
from mhimdist.ops.pooling import (
    attention_pool,
    segment_argmax,
    segment_max,
    segment_mean,
    segment_softmax,
    segment_softmax_pool,
    segment_top_k,
)
from mhimdist.ops.selection import select, select_and_gather
from mhimdist.ops.sequence import sequence_convolution
from mhimdist.ops.square import square_convolution

__all__ = [
    "STREAMS",
    "BagNumbers",
    "Gathered",
    "MaskCounts",
    "MaskKeys",
    "Selection",
    "attention_pool",
    "bag_numbers",
    "keyed_dropout",
    "relu_dropout",
    "relu_dropout_block",
    "segment_argmax",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_softmax_pool",
    "segment_top_k",
    "select",
    "select_and_gather",
    "sequence_convolution",
    "square_convolution",
]
