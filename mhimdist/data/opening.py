"""Opening a data set as a configuration says: where it is, how it is read, and which features of it."""

import warnings
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from mhimdist.config.train import ConfigWarning, Loading
from mhimdist.data import memory
from mhimdist.data.cases import CaseBags
from mhimdist.data.feature_sets import TOGETHER
from mhimdist.data.manifest import Manifest
from mhimdist.data.remote import Location, RemoteFolder, absolute, is_remote
from mhimdist.data.shard_cache import ShardCache
from mhimdist.data.shards import BagShards, remote_manifest
from mhimdist.data.side_by_side import SideBySide
from mhimdist.data.stored import BagOf, StoredBags
from mhimdist.errors import ConfigError

_others: WeakKeyDictionary[StoredBags, dict[str, StoredBags]] = WeakKeyDictionary()
"""Data sets whose features `with_features` has already opened."""


def open_bags(
    location: Location,
    loading: Loading | None = None,
    features: str | None = None,
    *,
    bag_of: BagOf = "slide",
    digest: str | None = None,
) -> StoredBags:
    """Open a data set as a configuration says; the process keeps the last one, its maps and its checks.

    Warns if a node's cache cannot keep all shards of a remote data set.

    Args:
        location: folder of the shards, or its URL.
        loading: settings of the reader; None for the defaults.
        features: name of the feature set to read, if the data set has several; `uni+virchow2` puts the
            features of two side by side, instance by instance.
        bag_of: what one bag is: a slide, or all slides of a case.
        digest: the data set's digest, if another process has opened it for the same work.

    Raises:
        ConfigError: the cache cannot keep even the largest shard; otherwise as in `BagShards`.
        DataError: the sets that are to be side by side differ in the instances of a bag.
        LabelError: bags are cases, and the slides of one have different labels.
        ManifestError: as in `BagShards`, or the digest is another one.
        RemoteDataError: as in `BagShards`.
    """
    bags = _open(location, loading or Loading(), features, bag_of)
    bags.require_digest(digest)
    return bags


@lru_cache(maxsize=1)
def _open(location: Location, loading: Loading, features: str | None, bag_of: BagOf) -> StoredBags:
    slides = _open_slides(location, loading, features)
    return CaseBags(slides) if bag_of == "case" else slides


def _open_slides(location: Location, loading: Loading, features: str | None) -> BagShards:
    if not is_remote(location):
        return _opened(location, features, verify=loading.verify)
    cache = ShardCache(loading.shard_cache, int(loading.shard_cache_gib * 2**30))
    bags = _opened(location, features, verify=loading.verify, shard_cache=cache)
    limit = f"the {memory.gib(cache.limit_bytes)} of each node's shard cache (loading.shard_cache_gib)"
    largest = max(bags.shards, key=lambda shard: shard.bytes)
    if largest.bytes > cache.limit_bytes:
        raise ConfigError(
            f"{bags.folder}: {largest.name} alone has {memory.gib(largest.bytes)}, above {limit}"
        )
    capacity = cache.capacity_bytes()
    if capacity < cache.limit_bytes:
        limit = f"the {memory.gib(capacity)} that the disk of the shard cache {cache.folder} has for them"
    if (total := sum(shard.bytes for shard in bags.shards)) > capacity:
        warnings.warn(
            f"{bags.folder}: its shards have {memory.gib(total)}, above {limit}: every epoch fetches them "
            "again, a shard each time that one of its bags is read after the shard was evicted",
            ConfigWarning,
            stacklevel=4,
        )
    return bags


def with_features(bags: StoredBags, features: str | None) -> StoredBags:
    """The same data set with the features that `open_bags` opens under this name; kept for the next call.

    None stands for the features that are open.

    Raises:
        ConfigError: there are no such features.
        DataError: sets that are to be side by side differ in their instances.
    """
    if features is None or features == bags.features:
        return bags
    others = _others.setdefault(bags, {})
    if features not in others:
        others[features] = _reopened(bags, features)
    return others[features]


def _reopened(bags: StoredBags, features: str) -> StoredBags:
    if isinstance(bags, CaseBags):
        return CaseBags(with_features(bags.of_slides, features))
    assert isinstance(bags, BagShards), "a data set in shards has bags of slides or of cases"
    return _opened(bags._location, features, verify=bags.verify, shard_cache=bags._mapped.cache)


def feature_sets_at(location: Location) -> tuple[str, ...]:
    """The names of a data set's feature sets; empty if its features have no name.

    Raises:
        ConfigError, ManifestError, RemoteDataError: as in `BagShards`.
    """
    place = absolute(location)
    manifest = remote_manifest(RemoteFolder(place)) if isinstance(place, str) else Manifest.open(place)
    return manifest.feature_sets


def _opened(location: Location, features: str | None, **how: Any) -> BagShards:
    """One feature set, or several side by side."""
    if features is not None and TOGETHER in features:
        return SideBySide(location, features=features, **how)
    return BagShards(location, features=features, **how)
