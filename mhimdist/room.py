"""What a sweep does when memory runs out: fewer trials at once, then smaller steps."""

import re

import numpy as np
import torch

from mhimdist.config import TrainConfig

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


class Room:
    """How many trials may run at once: what was planned, less where some ran out of memory."""

    def __init__(self, at_once: int) -> None:
        self._planned = at_once
        self._limits: dict[int, int] = {}

    @property
    def limit(self) -> int:
        """Trials that may run at once now."""
        return min([self._planned, *self._limits.values()])

    def lower(self, number: int, others: int) -> None:
        """Allow fewer than ran when a trial ran out of memory: a quarter fewer where they were many.

        Args:
            number: of the trial.
            others: trials that ran beside it.
        """
        self._limits[number] = max(1, others - others // 4)

    def forget(self, number: int) -> None:
        """Take back what was allowed because of a trial that did not fit alone: the others are no larger."""
        self._limits.pop(number, None)


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
