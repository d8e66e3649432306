"""What the device of a run asks of its readers: which GPU it is, and where features change their dtype."""

from collections.abc import Collection, Sequence
from functools import reduce

import numpy as np
import torch

from mhimdist.data.bags import BagSource
from mhimdist.data.stored import StoredBags
from mhimdist.data.sub_bags import whole_bags


def indexed(device: torch.device | str) -> torch.device:
    """The device with its index: "cuda" alone is this thread's current GPU.

    Without an index, libraries beside torch take GPU 0, and other threads take their own current GPU.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def read_dtype(stored: Collection[torch.dtype], dtype: torch.dtype, device_type: str) -> torch.dtype:
    """The dtype in which to read the features of a step; the device converts them from there.

    For a CPU this is the step's dtype: the core that reads must convert in any case. For a GPU the choice is
    the cheapest for the core, measured per bag of 9,000 x 1,024 by `benchmarks/conversion.py`, torch 2.13:

    * float16 to bfloat16 takes 11.7 ms, a copy as stored 1.4 ms. Features that are at most as wide as the
      step's are therefore read as stored.
    * float32 to bfloat16 takes 2.5 ms, a copy as stored 3.8 ms, and as stored twice the bytes go through
      pinned memory and PCIe. Wider features are therefore narrowed by the core.
    * float16 to float32 takes 2.6 ms. A step of several dtypes is therefore read in the narrowest dtype that
      holds all of them exactly.

    The features are the same bits in all cases, because each is rounded once, to the nearest or even.

    Args:
        stored: the dtypes in which the step's bags are stored; empty if it has no bag.
        dtype: the step's dtype.
        device_type: "cpu" or "cuda".
    """
    if device_type == "cpu" or not stored:
        return dtype
    exact = reduce(torch.promote_types, stored)
    is_wide = len(set(stored)) == 1 and exact.itemsize > dtype.itemsize
    return dtype if is_wide else exact


def stored_dtypes(
    bags: BagSource, rows: Sequence[int] | np.ndarray, default: torch.dtype
) -> frozenset[torch.dtype]:
    """The dtypes in which the bags of these rows are stored; `default` if the data set does not tell."""
    bags = whole_bags(bags)
    if isinstance(bags, StoredBags):
        return bags.dtypes_of(rows)
    return frozenset({getattr(bags, "dtype", default)} if len(rows) else ())
