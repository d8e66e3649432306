"""Bags block by block, for passes without gradients: at most one block is projected at a time.

Dimensions: T instances of a batch, R of a block, B bags, C columns of scores, E embedding width.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from mhimdist.data.bags import PackedBags

ROWS = 2048
"""Most instances per block: enough for the products' full speed, and 4 MB when projected to 512 values."""


def runs_in_blocks(bags: PackedBags, dropout_keys_B: Tensor | None) -> bool:
    """Whether to work block by block: on a CPU, without gradients and without dropout."""
    return bags.features_TD.device.type == "cpu" and dropout_keys_B is None and not torch.is_grad_enabled()


def blocks(bags: PackedBags) -> Iterator[slice]:
    """The rows of the bags in blocks; no block has rows of two bags."""
    edges = bags.offsets_B1.tolist()
    for start, stop in pairwise(edges):
        # Full blocks have the same size in all bags, so oneDNN makes its kernels for them once.
        yield from (slice(row, min(row + ROWS, stop)) for row in range(start, stop, ROWS))


class BagPool:
    """The mean of each bag's values, weighted by the softmax of each column of scores, fed block by block.

    The running sums are relative to the largest score so far (online softmax), all in float32.
    """

    def __init__(self, bags: PackedBags) -> None:
        self.starts = set(bags.offsets_B1[:-1].tolist())
        self._done: list[Tensor] = []
        self._sum_CE, self._weight_C1, self._top_C1 = (torch.empty(0) for _ in range(3))

    def add(self, rows: slice, scores_RC: Tensor, values_RE: Tensor) -> None:
        """Add a block; blocks must come in order.

        Args:
            rows: the place of the block among the rows of all bags.
            scores_RC: scores before the softmax, float32.
            values_RE: values of any dtype.
        """
        scores_CR = scores_RC.T
        top_C1 = scores_CR.amax(1, keepdim=True)
        if rows.start in self.starts:
            self._finish()
        elif len(self._sum_CE):
            top_C1 = torch.maximum(top_C1, self._top_C1)
        weights_CR = torch.exp(scores_CR - top_C1)
        pooled_CE = weights_CR @ values_RE.to(weights_CR.dtype)
        weight_C1 = weights_CR.sum(1, keepdim=True)
        if len(self._sum_CE):
            decay_C1 = torch.exp(self._top_C1 - top_C1)
            pooled_CE.addcmul_(self._sum_CE, decay_C1)
            weight_C1.addcmul_(self._weight_C1, decay_C1)
        self._sum_CE, self._weight_C1, self._top_C1 = pooled_CE, weight_C1, top_C1

    def _finish(self) -> None:
        if len(self._sum_CE):
            self._done.append(self._sum_CE / self._weight_C1)
        self._sum_CE = torch.empty(0)

    def result(self) -> Tensor:
        """The weighted means of all bags, B x C x E."""
        self._finish()
        return torch.stack(self._done)
