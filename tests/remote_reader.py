"""Reads all bags of a remote data set; its arguments are the URL, the cache folder and its limit in bytes."""

import json
import sys
from pathlib import Path

from mhimdist.data.shard_cache import ShardCache
from mhimdist.data.shards import BagShards


def read_all(url: str, cache: Path, limit_bytes: int) -> list[float]:
    """The sum of the features of every bag."""
    bags = BagShards(url, shard_cache=ShardCache(cache, limit_bytes))
    return [float(bags.load([row]).features_TD.sum()) for row in range(len(bags))]


if __name__ == "__main__":
    print(json.dumps(read_all(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
