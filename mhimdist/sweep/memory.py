"""How a sweep reacts when memory runs out: more memory for the trial, then smaller steps."""

import re
from dataclasses import replace

import numpy as np
import torch

from mhimdist.cluster.nodes import Share
from mhimdist.config.train import TrainConfig
from mhimdist.data.sub_bags import SampleSize

_SIGNS = re.compile(
    r"OutOfMemory|\bMemoryError|out of memory|running low on memory|ALLOC_FAILED"
    r"|can't allocate memory|[Cc]annot allocate memory"
)
"""torch's CPU allocator, cuBLAS, Ray and (for a lost worker) Ray Train say so only in an error's text."""


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or its text, says that the memory of a GPU or of the machine ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return _SIGNS.search(str(error)) is not None


def is_of_a_gpu(error: BaseException | str) -> bool:
    """Whether an out-of-memory error, or its text, is about a GPU's memory."""
    return re.search(r"CUDA|CUBLAS|CUDNN|NCCL", str(error), re.IGNORECASE) is not None


class TrialShares:
    """The share of the cluster for each run of a trial: as planned, until the trial runs out of memory.

    Only a trial that runs out of memory is given more; the others may need no more than planned.
    """

    def __init__(self, planned: Share, largest: Share) -> None:
        """Begin as planned.

        Args:
            planned: the share of a run.
            largest: the largest share that a run can be given, which leaves no room for another trial.
        """
        self._planned, self._largest = planned, largest
        self._enlarged: dict[int, Share] = {}

    def enlarged(self, number: int) -> Share | None:
        """The enlarged share of a trial's runs; None if it is as planned."""
        return self._enlarged.get(number)

    def is_capped(self, number: int) -> bool:
        """Whether a trial's runs have only a share of a GPU, and so no more of its memory than that."""
        return 0 < self._enlarged.get(number, self._planned).gpus < 1

    def enlarge(self, number: int, *, of_a_gpu: bool) -> bool:
        """Give a trial twice the memory, and the next time all that a node has.

        Args:
            number: of the trial.
            of_a_gpu: whether a GPU's memory ran out.

        Returns:
            False if the trial has all the memory already.
        """
        field = "gpus" if of_a_gpu and self._planned.gpus else "memory_bytes"
        share = self._enlarged.get(number, self._planned)
        now, planned, most = (getattr(each, field) for each in (share, self._planned, self._largest))
        if now >= most:
            return False
        more = min(2 * planned, most) if now == planned else most
        self._enlarged[number] = replace(share, **{field: more})
        return True


def smaller_step(config: TrainConfig, sizes_N: np.ndarray) -> int | None:
    """A value for `max_instances`: half of the instances that the largest step can have.

    Args:
        config: the configuration that ran out of memory.
        sizes_N: instances of each bag.

    Returns:
        At least the size of the largest bag, which is never divided; None if steps are that small already.
    """
    if (sample := SampleSize.of(config)) is not None:
        sizes_N = sample.of_bags(sizes_N)
    largest_bag = int(sizes_N.max())
    step = int(np.sort(sizes_N)[-config.bags_per_step :].sum())
    if config.max_instances is not None:
        step = min(step, max(config.max_instances, largest_bag))
    return None if step <= largest_bag else max(largest_bag, step // 2)
