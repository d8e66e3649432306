"""Sub-bags: a random sample of the instances of every bag, of which alone the features are read.

The sample of a bag is a pure function of (seed, round, bag id), as masks are: neither batch, worker nor order
changes it, and a resumed epoch draws what the uninterrupted one would have drawn.

Dimensions: N bags of the data set, B bags of a batch, T instances of a batch, K of a sample, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource, PackedBags
from mhimdist.data.format import FEATURE_DTYPES, npy_header
from mhimdist.data.stored import StoredBags
from mhimdist.data.targets import CLASSIFICATION, TaskInfo
from mhimdist.errors import ConfigError
from mhimdist.ops.draws import Draws, Purpose, words_at


@dataclass(frozen=True)
class SampleSize:
    """How many instances of a bag a sample has.

    Attributes:
        most: at most so many; None is no limit.
        share: at most this share of the bag, rounded up, in (0, 1].
    """

    most: int | None = None
    share: float = 1.0

    @classmethod
    def of(cls, config: TrainConfig) -> Self | None:
        """The size that a configuration asks for; None for whole bags."""
        if config.instances_per_bag is None and config.instances_share is None:
            return None
        return cls(config.instances_per_bag, config.instances_share or 1.0)

    def of_bags(self, sizes_N: np.ndarray) -> np.ndarray:
        """The size of the sample of each bag, int64, at least 1; all of it if the bag is no larger."""
        shares_N = np.ceil(np.rint(np.asarray(sizes_N, np.int64) * self.share * 1e9) / 1e9).astype(np.int64)
        return shares_N if self.most is None else np.minimum(shares_N, self.most)


@runtime_checkable
class Scattered(Protocol):
    """A data set of which a few instances can be read alone."""

    def scattered(
        self,
        rows: Sequence[int] | np.ndarray,
        instances: Sequence[np.ndarray],
        dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `StoredBags.scattered`."""


class SubBags:
    """The samples of one round, such as an epoch: a `BagSource` of the whole bags but for features and sizes.

    Attributes:
        whole: the data set of whole bags.
        The others are those of `BagSource`; `sizes_N` are the sizes of the samples.
    """

    def __init__(
        self, whole: BagSource, size: SampleSize, draws: Draws, purpose: Purpose = "sub_bags"
    ) -> None:
        """Draw nothing yet.

        Args:
            whole: the data set of whole bags.
            size: how many instances of each bag are drawn.
            draws: the streams of the round.
            purpose: separates these samples from those of another use.
        """
        self.whole = whole
        # What belongs to a bag, and what belongs to the data set; only the sizes differ.
        self.keys, self.cases, self.classes = whole.keys, whole.cases, whole.classes
        self.labels_N, self.ids_N = whole.labels_N, whole.ids_N
        self.num_features, self.digest = whole.num_features, whole.digest
        # Sources in memory, such as those of tests, may state no task.
        self.task: TaskInfo = getattr(whole, "task", None) or CLASSIFICATION
        self.targets_NK = whole.targets_NK if self.task.columns else np.zeros((len(whole.keys), 0))
        self.sizes_N = size.of_bags(whole.sizes_N)
        self._keys_N = draws.keys(torch.from_numpy(whole.ids_N), purpose).numpy()

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Row numbers of bags, int64."""
        return self.whole.rows_of(keys)

    def instances(self, row: int) -> np.ndarray:
        """The numbers of the instances in a bag's sample, ascending int64.

        They are those with the smallest words of the bag's stream, which has no word twice.
        """
        num_drawn, num_all = int(self.sizes_N[row]), int(self.whole.sizes_N[row])
        if num_drawn == num_all:
            return np.arange(num_all)
        words_N = words_at(self._keys_N[row : row + 1], np.arange(num_all))
        return np.sort(np.argpartition(words_N, num_drawn)[:num_drawn])

    def takes_all(self, row: int) -> bool:
        """Whether the sample of a bag is the whole bag."""
        return bool(self.sizes_N[row] == self.whole.sizes_N[row])

    def load(
        self,
        rows: Sequence[int] | np.ndarray,
        dtype: torch.dtype = torch.float32,
        *,
        out: Tensor | None = None,
    ) -> PackedBags:
        """The samples of these bags, packed in this order; see `BagSource.load`."""
        rows_B = np.asarray(rows, np.int64)
        if all(map(self.takes_all, rows_B.tolist())):
            return self.whole.load(rows_B, dtype, out=out)
        instances = [self.instances(row) for row in rows_B.tolist()]
        if isinstance(self.whole, Scattered):
            features_TD = self.whole.scattered(rows_B, instances, dtype, out=out)
        else:  # a data set that reads whole bags only
            packed = self.whole.load(rows_B, dtype)
            starts_B = packed.offsets_B1[:-1].numpy()
            kept_T = np.concatenate([start + each for start, each in zip(starts_B, instances, strict=True)])
            features_TD = packed.features_TD[torch.from_numpy(kept_T).to(packed.features_TD.device)]
        return PackedBags.of_rows(self, rows_B, features_TD)

    def payload(self, row: int) -> np.ndarray:
        """The sample of a bag as a .npy file, uint8, read-only; see `StoredBags.payload`.

        Raises:
            ConfigError: the bags are not in shards.
            DataError, CorruptShard: as in `BagShards.load`.
        """
        if not isinstance(self.whole, StoredBags):
            raise ConfigError(f"expected bags in shards, got {type(self.whole).__name__}")
        if self.takes_all(row):
            return self.whole.payload(row)
        features_KD = self.whole.scattered([row], [self.instances(row)], self.whole.dtype)
        dtype = FEATURE_DTYPES[str(self.whole.dtype).removeprefix("torch.")]
        header = np.frombuffer(npy_header(dtype, tuple(features_KD.shape)), np.uint8)
        file = np.concatenate([header, features_KD.view(torch.uint8).view(-1).numpy()])
        file.flags.writeable = False
        return file


def trained_on(bags: BagSource, config: TrainConfig, epoch: int = 0) -> BagSource:
    """The bags that an epoch trains on: whole ones, or a sample of each, as large in all epochs.

    Args:
        bags: the data set of whole bags.
        config: the run's settings.
        epoch: number of the epoch, from 0.
    """
    size = SampleSize.of(config)
    return bags if size is None else SubBags(bags, size, Draws(config.seed, epoch))


def whole_bags(bags: BagSource) -> BagSource:
    """The data set that samples are taken of; another data set is this itself."""
    return bags.whole if isinstance(bags, SubBags) else bags
