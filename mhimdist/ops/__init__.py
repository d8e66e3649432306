"""The ragged operations of the method, by the fastest implementation there is for a tensor's device."""

from mhimdist.ops.reference import (
    MaskCounts,
    Selection,
    segment_max,
    segment_mean,
    segment_softmax_pool,
    select,
)

__all__ = ["MaskCounts", "Selection", "segment_max", "segment_mean", "segment_softmax_pool", "select"]
