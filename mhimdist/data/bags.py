"""`PackedBags`, the one batch type: bags of different sizes laid end to end.

Dimensions: T instances of all bags, B bags, D features, B1 = B + 1 offsets, K selected instances; in
`targets_BK` and `targets_NK`, K targets of a bag.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mhimdist.data.targets import TaskInfo


def bag_id(key: str) -> int:
    """The 63-bit id of a bag, a stable hash of its key; keyed random draws depend on it."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, eq=False)
class PackedBags:
    """B bags laid end to end; bag b has the rows `offsets_B1[b]` to `offsets_B1[b + 1]`.

    Attributes:
        features_TD: instance features, T x D, any floating dtype.
        offsets_B1: int64, B + 1 ascending row numbers; the first is 0, the last is T, or less if masked bags
            on a GPU have padding after them.
        labels_B: int64 class index of each bag.
        ids_B: int64 `bag_id` of each bag.
        keys: key of each bag, for messages and tables.
        host_sizes: number of instances of each bag; None if the host would have to wait for a GPU to know it.
        rows_K: int64 rows of the features that a selection keeps, as long as it is not gathered; the offsets
            then delimit the bags among these rows. None: all rows.
        targets_BK: float32 targets of each bag, B x K, NaN where one is missing; None if the data set's task
            labels bags with classes alone.
    """

    features_TD: Tensor
    offsets_B1: Tensor
    labels_B: Tensor
    ids_B: Tensor
    keys: tuple[str, ...]
    host_sizes: tuple[int, ...] | None = None
    rows_K: Tensor | None = None
    targets_BK: Tensor | None = None

    @classmethod
    def from_list(
        cls,
        bags: Sequence[Tensor],
        labels: Sequence[int] | None = None,
        keys: Sequence[str] | None = None,
        targets: Sequence[Sequence[float]] | np.ndarray | None = None,
    ) -> "PackedBags":
        """Pack bags.

        Args:
            bags: features of each bag, N x D; at least one bag.
            labels: class index of each bag; None for 0.
            keys: key of each bag; None for "0", "1", ...
            targets: targets of each bag, NaN where one is missing; None if the task has none.
        """
        keys = tuple(keys) if keys is not None else tuple(str(i) for i in range(len(bags)))
        labels = labels if labels is not None else [0] * len(bags)
        sizes = tuple(map(len, bags))
        return cls(
            features_TD=torch.cat(list(bags)),
            offsets_B1=torch.tensor((0, *sizes)).cumsum(0),
            host_sizes=sizes,
            labels_B=torch.tensor(list(labels), dtype=torch.int64),
            ids_B=torch.tensor([bag_id(key) for key in keys], dtype=torch.int64),
            keys=keys,
            targets_BK=None if targets is None else torch.from_numpy(np.array(targets, np.float32)),
        )

    @classmethod
    def of_rows(cls, source: "BagSource", rows_B: np.ndarray, features_TD: Tensor) -> "PackedBags":
        """Pack bags of a data set whose features are already laid end to end.

        Args:
            source: the data set.
            rows_B: int64 row number of each bag.
            features_TD: features of all these bags, one bag after the other.
        """
        sizes_B = torch.from_numpy(source.sizes_N[rows_B])
        return cls(
            features_TD=features_TD,
            offsets_B1=torch.cat([sizes_B.new_zeros(1), sizes_B.cumsum(0)]),
            host_sizes=tuple(sizes_B.tolist()),
            labels_B=torch.from_numpy(source.labels_N[rows_B]),
            ids_B=torch.from_numpy(source.ids_N[rows_B]),
            keys=tuple(source.keys[row] for row in rows_B),
            targets_BK=(
                None
                if source.task.of_classes
                else torch.from_numpy(source.targets_NK[rows_B].astype(np.float32))
            ),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sizes_B(self) -> Tensor:
        """Number of instances of each bag, int64."""
        return self.offsets_B1.diff()

    def sizes(self) -> tuple[int, ...]:
        """`sizes_B` as Python numbers; for masked bags on a GPU this waits for the GPU."""
        return self.host_sizes if self.host_sizes is not None else tuple(self.sizes_B.tolist())

    def without_padding(self) -> "PackedBags":
        """The same bags without the rows after the last one, for a model that needs the `sizes` anyway."""
        sizes = self.sizes()
        if self.rows_K is not None:
            return replace(self, rows_K=self.rows_K[: sum(sizes)], host_sizes=sizes)
        return replace(self, features_TD=self.features_TD[: sum(sizes)], host_sizes=sizes)

    @property
    def num_rows(self) -> int:
        """Number of instances of all bags, including any padding after them."""
        return len(self.features_TD if self.rows_K is None else self.rows_K)

    def block(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """The features of some instances: gathered, into `out` if it is given, or a view."""
        if self.rows_K is None:
            return self.features_TD[rows]
        return torch.index_select(self.features_TD, 0, self.rows_K[rows], out=out)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "PackedBags":
        """The same bags on another device, with features in `dtype` if it is given; that device converts."""
        device = torch.device(device)
        features_TD = self.features_TD.to(device, non_blocking=True)
        numbers = [self.offsets_B1, self.labels_B, self.ids_B]
        if self.targets_BK is not None:
            numbers.append(self.targets_BK)
        offsets_B1, labels_B, ids_B, *targets = _moved(numbers, device)
        return PackedBags(
            features_TD=features_TD if dtype is None else features_TD.to(dtype),
            offsets_B1=offsets_B1,
            labels_B=labels_B,
            ids_B=ids_B,
            keys=self.keys,
            host_sizes=self.host_sizes,
            rows_K=self.rows_K.to(device, non_blocking=True) if self.rows_K is not None else None,
            targets_BK=targets[0] if targets else None,
        )

    def select(self, kept_K: Tensor, offsets_B1: Tensor) -> "PackedBags":
        """The bags with only the rows `kept_K` (int64, ascending), delimited by new offsets.

        The rows are not gathered: a copy of them would take more memory than everything computed from them.
        """
        rows_K = kept_K if self.rows_K is None else self.rows_K[kept_K]
        return replace(self, offsets_B1=offsets_B1, rows_K=rows_K, host_sizes=None)


def _moved(numbers: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Numbers on another device; they reach a GPU by a single copy, for which the host never waits.

    A copy from memory that is not pinned would wait for all earlier work of its stream.
    """
    if device.type != "cuda" or numbers[0].device.type != "cpu":
        return [tensor.to(device, non_blocking=True) for tensor in numbers]
    # Each starts at a multiple of 16 bytes: Triton compiles a kernel once more for other addresses.
    lengths = [-(-tensor.nbytes // 16) * 16 for tensor in numbers]
    host = torch.empty(sum(lengths), dtype=torch.uint8, pin_memory=True)

    def numbers_in(memory: Tensor) -> list[Tensor]:
        parts = zip(memory.split(lengths), numbers, strict=True)
        return [part[: like.nbytes].view(like.dtype).view(like.shape) for part, like in parts]

    for place, tensor in zip(numbers_in(host), numbers, strict=True):
        place[:] = tensor
    return numbers_in(host.to(device, non_blocking=True))


class BagSource(Protocol):
    """A data set that loads its bags by row number; `data.shards.BagShards` is one.

    Attributes:
        keys, cases: key and case of every bag, in the order of the rows.
        classes: class names in the order of the class indices.
        labels_N: int64 class index of every bag.
        sizes_N: int64 number of instances of every bag.
        ids_N: int64 `bag_id` of every bag.
        num_features: width of the features.
        digest: hash of the data set's content.
        task: what the bags are labelled with.
        targets_NK: float64 targets of every bag, NaN where one is missing; N x 0 for tasks of classes.
    """

    keys: tuple[str, ...]
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    labels_N: np.ndarray
    sizes_N: np.ndarray
    ids_N: np.ndarray
    num_features: int
    digest: str
    task: TaskInfo
    targets_NK: np.ndarray

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Row numbers of bags, int64."""

    def load(
        self,
        rows: Sequence[int] | np.ndarray,
        dtype: torch.dtype = torch.float32,
        *,
        out: Tensor | None = None,
    ) -> PackedBags:
        """The bags of these rows, packed in this order.

        Args:
            rows: row numbers; an empty sequence returns a batch of no bags.
            dtype: floating dtype of the batch's features.
            out: a buffer of `dtype`, at least T x D, for features that are converted or copied.
        """
