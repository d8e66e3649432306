"""The last predictions for all training bags, which a loss may compare a bag with.

A step reads the memory as it was before the step, on every worker, and writes to it after the exchange of the
gradients, with which the news travel. So several workers remember what one would, and steps can be recorded.

Dimensions: N training bags, B bags of a step, P predictions of a bag, K targets.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from mhimdist.data.bags import BagSource
from mhimdist.tasks.interface import Others, Task, targets_of


class Memory:
    """The memory of a run, on the device of the run.

    Attributes:
        predictions_NP: float32 last predictions, in the order of the bags' first target; NaN before a bag's
            first step. A checkpoint holds them.
        num_news: values that a step exchanges.
    """

    def __init__(self, task: Task, bags: BagSource, train_rows: np.ndarray, device: torch.device) -> None:
        """Remember nothing yet.

        Args:
            task: compares with a memory.
            bags: the data set.
            train_rows: int64 rows of the training bags.
            device: where the run computes.
        """
        targets_NK = targets_of(bags)[train_rows].astype(np.float32)
        order_N = np.argsort(targets_NK[:, 0], kind="stable")
        ids_N = bags.ids_N[train_rows][order_N]
        by_id_N = np.argsort(ids_N)
        self._targets_NK = torch.from_numpy(targets_NK[order_N]).to(device)
        self._ids_N = torch.from_numpy(ids_N[by_id_N]).to(device)
        self._row_N = torch.from_numpy(by_id_N).to(device)
        shape = len(order_N), len(task.columns)
        self.predictions_NP = torch.full(shape, torch.nan, device=device)
        self.num_news = shape[0] * (shape[1] + 1)
        self._news_NQ = torch.zeros(0)

    @classmethod
    def of(cls, task: Task, bags: BagSource, train_rows: np.ndarray, device: torch.device) -> Self | None:
        """The memory that a task compares with; None if it compares with none."""
        return cls(task, bags, train_rows, device) if task.compares_with == "memory" else None

    def join(self, news: Tensor) -> None:
        """Use `num_news` values of the buffer that the workers of a run add up."""
        self._news_NQ = news.view(len(self.predictions_NP), -1)

    def others(self, ids_B: Tensor) -> Others:
        """The training bags as they are remembered, and the bags of a step among them."""
        return Others(self._targets_NK, self.predictions_NP, self._rows(ids_B))

    def note(self, ids_B: Tensor, predictions_BP: Tensor) -> None:
        """Note the predictions of this worker's bags of a step; a bag that is in it twice has their mean."""
        counted_BQ = torch.cat([predictions_BP.float(), torch.ones_like(predictions_BP[:, :1])], 1)
        self._news_NQ.zero_().index_add_(0, self._rows(ids_B), counted_BQ.to(self._news_NQ.dtype))

    def take(self, is_bad: Tensor | None = None) -> None:
        """Remember the news of all workers, unless the step was bad; the host reads nothing."""
        count_N1 = self._news_NQ[:, -1:]
        is_new_N1 = count_N1 > 0 if is_bad is None else (count_N1 > 0) & (is_bad == 0)
        mean_NP = self._news_NQ[:, :-1] / count_N1
        self.predictions_NP.copy_(torch.where(is_new_N1, mean_NP, self.predictions_NP))

    def _rows(self, ids_B: Tensor) -> Tensor:
        return self._row_N[torch.searchsorted(self._ids_N, ids_B)]
