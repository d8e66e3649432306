"""A small data set held in memory, which several test modules train on."""

from collections.abc import Sequence

import numpy as np
import torch

from mhimdist.data.bags import PackedBags, bag_id
from mhimdist.data.splits import Split, holdout
from mhimdist.data.targets import TaskInfo


class MemoryBags:
    """A data set in memory, with the attributes and methods that training needs."""

    def __init__(self, features: list[torch.Tensor], labels: list[int], cases: list[str]) -> None:
        self.features = features
        self.keys = tuple(f"slide-{i}" for i in range(len(features)))
        self.cases = tuple(cases)
        self.classes = tuple(f"class-{i}" for i in range(max(labels) + 1))
        self.labels_N = np.array(labels)
        self.sizes_N = np.array([len(bag) for bag in features])
        self.ids_N = np.array([bag_id(key) for key in self.keys])
        self.num_features = features[0].shape[1]
        self.digest = "memory"
        self.task, self.targets_NK = TaskInfo(), np.zeros((len(features), 0))

    def require_digest(self, digest: str | None) -> None:
        assert digest in (None, self.digest)

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        return np.array([self.keys.index(key) for key in keys])

    def load(
        self, rows: Sequence[int], dtype: torch.dtype = torch.float32, *, out: torch.Tensor | None = None
    ) -> PackedBags:
        if not len(rows):
            none = torch.zeros(0, dtype=torch.int64)
            return PackedBags(
                self.features[0][:0].to(dtype), torch.zeros(1, dtype=torch.int64), none, none, ()
            )
        return PackedBags.from_list(
            [self.features[row].to(dtype) for row in rows],
            self.labels_N[list(rows)].tolist(),
            [self.keys[row] for row in rows],
        )

    def holdout(self, seed: int = 0) -> Split:
        return holdout(self.keys, self.cases, self.labels_N, test_share=0.3, validation_share=0.3, seed=seed)


def gaussian_bags(num_bags: int = 40, num_features: int = 8, shift: float = 2.0, seed: int = 0) -> MemoryBags:
    """Bags of Gaussian instances; every second bag has a few shifted ones. Each case has four bags."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = [], []
    for i in range(num_bags):
        size = int(torch.randint(20, 60, (1,), generator=generator))
        bag = torch.randn(size, num_features, generator=generator)
        if i % 2:
            bag[: size // 5] += shift
        features.append(bag)
        labels.append(i % 2)
    return MemoryBags(features, labels, [f"case-{i // 4}" for i in range(num_bags)])
