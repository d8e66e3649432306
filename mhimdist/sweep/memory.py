"""What a sweep does when memory runs out: more of it for the trial, then smaller steps."""

import re
from dataclasses import replace

import numpy as np
import torch

from mhimdist.cluster.nodes import Share
from mhimdist.config.train import TrainConfig

_SIGNS = re.compile(
    r"OutOfMemory|\bMemoryError|out of memory|running low on memory|ALLOC_FAILED"
    r"|can't allocate memory|[Cc]annot allocate memory"
)
"""torch's CPU allocator, cuBLAS and Ray say it in the text of other errors, Ray Train of a lost worker."""


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or its text, says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return _SIGNS.search(str(error)) is not None


def is_of_a_gpu(error: BaseException | str) -> bool:
    """Whether it is a GPU's memory that an error, or its text, says ran out."""
    return re.search(r"CUDA|CUBLAS|CUDNN|NCCL", str(error), re.IGNORECASE) is not None


class TrialShares:
    """What a run of each trial is given of the cluster: as planned, until its trial runs out of memory.

    A trial that runs out of memory is given more, and the others as much as before: they may be no larger.
    """

    def __init__(self, planned: Share, largest: Share) -> None:
        """Begin as planned.

        Args:
            planned: what a run of a trial is given.
            largest: the most that it can be given, which leaves no other trial beside it.
        """
        self._planned, self._largest = planned, largest
        self._enlarged: dict[int, Share] = {}

    def enlarged(self, number: int) -> Share | None:
        """What a run of a trial is given; None where that is as planned."""
        return self._enlarged.get(number)

    def enlarge(self, number: int, *, of_a_gpu: bool) -> bool:
        """Give a trial twice the memory, then all that there is; False where it had that.

        Args:
            number: of the trial.
            of_a_gpu: it was a GPU's that ran out.
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
    """Half of the instances that the largest step can have, for `max_instances`.

    Args:
        config: what ran out of memory.
        sizes_N: instances of each bag.

    Returns:
        At least the size of the largest bag, which is never divided; None where steps are as small as that.
    """
    largest_bag = int(sizes_N.max())
    step = int(np.sort(sizes_N)[-config.bags_per_step :].sum())
    if config.max_instances is not None:
        step = min(step, max(config.max_instances, largest_bag))
    return None if step <= largest_bag else max(largest_bag, step // 2)
