"""`StoredBags`: what every data set in shards can do beside loading bags, whatever it takes as one bag.

Dimensions: N instances of a bag, T instances of a batch, D features, K instances of a sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mhimdist.data.bags import PackedBags
from mhimdist.data.split_files import Bags, NamedBags
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import ManifestError

BagOf = Literal["slide", "case"]
"""What one bag is made of: the instances of a slide, or of all slides of a case."""


class StoredBags(ABC):
    """A `BagSource` in shards: `BagShards`, whose bags are slides, or `CaseBags`, whose bags are cases.

    Attributes:
        bag_of: what one bag is made of.
        name: the data set's name.
        classes: class names in the order of the class indices.
        keys, slides, cases: key, slide and case of every bag, in the order of the rows; for a bag of a case,
            the slide is the case.
        members: the slides of every bag.
        labels_N: int64 class index of every bag.
        task, targets_NK: what the bags are labelled with, and their targets, see `BagSource`; if there are
            targets, a bag's class is a stratum of them.
        sizes_N: int64 number of instances of every bag.
        ids_N: int64 `bag_id` of every bag.
        num_features: width D of the features.
        synthetic, description: whether the features were generated, not computed from slides; their source.
        digest: hash of the content of all bags.
        dtype: dtype of the stored features; float32 if it differs between bags.
        stored_dtypes: names of all stored dtypes.
        folder: the folder of the shards, as messages name it.
        features: the feature set that was asked for; None for the only one.
    """

    bag_of: BagOf
    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    slides: tuple[str, ...]
    cases: tuple[str, ...]
    labels_N: np.ndarray
    task: TaskInfo
    targets_NK: np.ndarray
    sizes_N: np.ndarray
    ids_N: np.ndarray
    num_features: int
    synthetic: bool
    description: str
    digest: str
    dtype: torch.dtype
    stored_dtypes: tuple[str, ...]
    folder: str
    features: str | None

    def __len__(self) -> int:
        return len(self.keys)

    def require_digest(self, digest: str | None) -> None:
        """Refuse a data set that is another one than the one of this digest; None refuses nothing.

        Raises:
            ManifestError: it is another one.
        """
        if digest not in (None, self.digest):
            raise ManifestError(
                f"{self.folder} has changed since this command opened it: expected the data set {digest}, "
                f"got {self.digest}; put the old one back, or start the work on the new one under another "
                "name"
            )

    @property
    def members(self) -> tuple[tuple[str, ...], ...]:
        """The slides of every bag, in the order in which their instances follow each other."""
        return tuple((slide,) for slide in self.slides)

    @property
    def names(self) -> NamedBags:
        """Finds the bags that a split file names."""
        return Bags(self.keys, self.slides, self.cases)

    @abstractmethod
    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Row numbers of bags, int64.

        Raises:
            DataError: a key is not in the data set.
        """

    @abstractmethod
    def dtypes_of(self, rows: Sequence[int] | np.ndarray) -> frozenset[torch.dtype]:
        """The dtypes in which the features of these rows are stored.

        Raises:
            DataError: a row is out of range.
        """

    @abstractmethod
    def is_view(self, rows: Sequence[int] | np.ndarray, dtype: torch.dtype) -> bool:
        """Whether `load` returns these bags in `dtype` without a copy, as the pages of their file."""

    @abstractmethod
    def load(
        self,
        rows: Sequence[int] | np.ndarray,
        dtype: torch.dtype = torch.float32,
        *,
        out: Tensor | None = None,
    ) -> PackedBags:
        """See `BagSource.load`."""

    @abstractmethod
    def scattered(
        self,
        rows: Sequence[int] | np.ndarray,
        instances: Sequence[np.ndarray],
        dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """The features of some instances of bags, one bag after the other; only these are read.

        Of a sample, the header of its array is checked on the first read, and no checksum: that would take
        all of the bag. A bag of which all instances are asked for is read and checked as `load` does it.

        Args:
            rows: row numbers.
            instances: of each of these bags, the ascending int64 numbers of the instances to read, K.
            dtype: floating dtype of the result.
            out: a buffer of `dtype`, at least as many rows as instances x D.

        Raises:
            DataError, CorruptShard: as in `BagShards.load`.
        """

    @abstractmethod
    def fetch_ahead(self, rows: Iterable[int]) -> None:
        """Start to fetch the remote shards of these rows in the order of first use, several at once.

        Does nothing if the data set is larger than this node's cache: a shard fetched too early would evict
        one that is still needed. Errors are not raised here; the read of the shard raises them.
        """

    @abstractmethod
    def payload(self, row: int) -> np.ndarray:
        """A bag's features as a .npy file, uint8, read-only.

        Raises:
            DataError, CorruptShard: as in `BagShards.load`.
        """

    @abstractmethod
    def coords(self, row: int) -> np.ndarray | None:
        """A bag's patch positions, int32 N x 2, read-only, in the units of the source; None if it has none.

        Those of a case follow each other slide by slide, as in `members`, each in its own slide's units.

        Raises:
            DataError, CorruptShard: as in `BagShards.load`.
        """

    @abstractmethod
    def instance_labels(self, row: int) -> np.ndarray | None:
        """A bag's instance labels, uint8 N, read-only; None if it, or one of its slides, has none.

        Raises:
            DataError, CorruptShard: as in `BagShards.load`.
        """

    @abstractmethod
    def details(self, row: int) -> dict[str, Any]:
        """How a bag was made, as its JSON member says: encoder, patch size, level and more.

        Of a case, what all of its slides say alike.

        Raises:
            DataError, CorruptShard: as in `BagShards.load`.
        """
