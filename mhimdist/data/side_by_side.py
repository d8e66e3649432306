"""`SideBySide`: the features of several encoders of the same instances, next to each other.

Dimensions: N instances of a bag, D features of all sets together.
"""

import hashlib
from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mhimdist.data import memory
from mhimdist.data.feature_sets import TOGETHER
from mhimdist.data.remote import Location
from mhimdist.data.shard_cache import ShardCache
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, DataError

MAX_NAMED = 3


class SideBySide(BagShards):
    """Several feature sets of a data set as one, as wide as all of them together.

    Instance i of a bag is the same patch in every set, because the sets agree in the bag's coordinates, one
    by one and in their order. Their checksums in the manifest are compared when the data set is opened, and
    the coordinates themselves when a bag is read first. A bag whose sets disagree is refused by its name.

    Everything beside the features is that of the first set, in whose order the bags are.
    """

    def __init__(
        self,
        folder: Location,
        *,
        features: str,
        verify: Literal["first_read", "never"] = "first_read",
        shard_cache: ShardCache | None = None,
    ) -> None:
        """Open the sets; see `BagShards`.

        Args:
            folder, verify, shard_cache: as in `BagShards`.
            features: the names of the sets, joined by `+`.

        Raises:
            ConfigError: a set is named twice; otherwise as in `BagShards`.
            DataError: the sets differ in the instances of a bag, or a bag has no coordinates.
            ManifestError, RemoteDataError: as in `BagShards`.
        """
        names = features.split(TOGETHER)
        if len(set(names)) < len(names):
            raise ConfigError(f"features: expected different feature sets side by side, got {features!r}")
        super().__init__(folder, features=names[0], verify=verify, shard_cache=shard_cache)
        self._sets = [
            BagShards(folder, features=name, verify=verify, shard_cache=shard_cache) for name in names
        ]
        self._rows = [each.rows_of(self.keys) for each in self._sets]  # that of every bag in each set
        self._compared: set[int] = set()
        self._refuse_other_instances()
        self.features, self.num_features = features, sum(each.num_features for each in self._sets)
        digests = TOGETHER.join(each.digest for each in self._sets)
        self.digest = hashlib.sha256(digests.encode()).hexdigest()
        self._dtypes = [
            _common({each._dtypes[rows_N[row]] for each, rows_N in self._pairs()}) for row in range(len(self))
        ]
        self.stored_dtypes = tuple(sorted(set(self._dtypes)))
        one, *different = self.stored_dtypes
        self.dtype = torch.float32 if different else getattr(torch, one)
        self.shards = tuple(shard for each in self._sets for shard in each.shards)

    def fetch_ahead(self, rows: Any) -> None:
        """See `BagShards.fetch_ahead`."""
        rows = list(rows)
        for each, rows_N in self._pairs():
            each.fetch_ahead(int(rows_N[row]) for row in rows)

    def scattered(
        self,
        rows: Sequence[int] | np.ndarray,
        instances: Sequence[np.ndarray],
        dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `StoredBags.scattered`."""
        rows_B = self._checked(rows)
        for row in rows_B.tolist():
            self._compare(row)
        features_TD = memory.buffer(self, rows_B, sum(map(len, instances)), dtype, out)
        parts = features_TD.split([each.num_features for each in self._sets], 1)
        for part_TD, (each, rows_N) in zip(parts, self._pairs(), strict=True):
            part_TD.copy_(each.scattered(rows_N[rows_B], instances, dtype))
        return features_TD

    def payload(self, row: int) -> np.ndarray:
        """There is no file of the features of several sets.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"loading.reader=dali reads the files of one feature set, got {self.features}; use mmap"
        )

    def details(self, row: int) -> dict[str, Any]:
        """How a bag was made, as the first set says it, with the encoders of all sets joined by `+`.

        Raises:
            DataError, CorruptShard: as in `load`.
        """
        found = [each.details(int(rows_N[row])) for each, rows_N in self._pairs()]
        joined = {}
        for name in ("encoder", "standardized"):
            values = [said.get(name) for said in found]
            if any(values):
                joined[name] = TOGETHER.join(str(value or "unknown") for value in values)
        return found[0] | joined

    def _pairs(self) -> list[tuple[BagShards, np.ndarray]]:
        """Each set, and its row of every bag."""
        return list(zip(self._sets, self._rows, strict=True))

    def _features_ND(self, row: int) -> Tensor:
        self._compare(row)
        dtype = getattr(torch, self._dtypes[row])
        parts = [each._features_ND(int(rows_N[row])) for each, rows_N in self._pairs()]
        return torch.cat([part_ND.to(dtype) for part_ND in parts], 1)

    def _refuse_other_instances(self) -> None:
        """Compare what the manifest says of the coordinates of every bag.

        Raises:
            DataError: they differ, or a bag has none.
        """
        reasons: dict[str, str] = {}
        crc_N, has_N = (self._members["coords"][part] for part in ("crc32", "bytes"))
        for other, rows_N in self._pairs()[1:]:
            others = other._members["coords"]
            pairs = (
                ("has no coordinates in {0}, so nothing tells which patches agree", has_N == 0),
                (
                    "has no coordinates in {1}, so nothing tells which patches agree",
                    others["bytes"][rows_N] == 0,
                ),
                ("has {2} instances in {0} and {3} in {1}", self.sizes_N != other.sizes_N[rows_N]),
                (
                    "has other coordinates in {0} than in {1}, or in another order",
                    crc_N != others["crc32"][rows_N],
                ),
            )
            for what, bad_N in pairs:
                for row in np.flatnonzero(bad_N).tolist():
                    sizes = int(self.sizes_N[row]), int(other.sizes_N[rows_N[row]])
                    text = what.format(self.feature_set, other.feature_set, *sizes)
                    reasons.setdefault(self.slides[row], text)
        if reasons:
            named = "; ".join(f"slide {slide!r} {why}" for slide, why in list(reasons.items())[:MAX_NAMED])
            more = f"; and {len(reasons) - MAX_NAMED:,} more slides" if len(reasons) > MAX_NAMED else ""
            raise DataError(
                f"{self.folder}: features cannot be put side by side: {named}{more}; extract both from the "
                "same patches, or train on one of the sets"
            )

    def _compare(self, row: int) -> None:
        """Compare a bag's coordinates themselves on its first read.

        Raises:
            DataError: they differ.
        """
        if self.verify == "never" or row in self._compared:
            return
        for other, rows_N in self._pairs()[1:]:
            one_N2, two_N2 = self.coords(row), other.coords(int(rows_N[row]))
            if one_N2 is None or two_N2 is None or not np.array_equal(one_N2, two_N2):
                raise DataError(
                    f"{self.folder}: slide {self.slides[row]!r} has other coordinates in "
                    f"{self.feature_set} than in {other.feature_set}: their features cannot be put side by "
                    "side"
                )
        self._compared.add(row)


def _common(dtypes: set[str]) -> str:
    """The name of the narrowest dtype that holds features of all these dtypes exactly."""
    common = reduce(torch.promote_types, (getattr(torch, name) for name in dtypes))
    return str(common).removeprefix("torch.")
