"""The node's copies of remote shards, counted by several processes at once."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from feature_folders import shard_folder, write_features

from mhimdist.data.manifest import Manifest
from mhimdist.data.shard_cache import ShardCache
from mhimdist.files import Lock


class Waiting:
    """A folder of shards that waits at the end of a file until it may go on."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.is_fetched, self.goes_on = threading.Event(), threading.Event()

    def stream(self, name: str) -> Iterator[bytes]:
        yield (Path(self.name) / name).read_bytes()
        self.is_fetched.set()
        assert self.goes_on.wait(60)


def test_a_shard_gets_its_name_while_no_process_counts(tmp_path: Path) -> None:
    """A file that is renamed after it was listed, and before its size was read, would count as nothing."""
    write_features(tmp_path)
    shards = shard_folder(tmp_path, shard_bytes=4_000)
    shard = Manifest.read(shards).info.shards[0]
    cache, source = ShardCache(tmp_path / "cache", shard.bytes), Waiting(shards)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(cache.open, shard, source)
        assert source.is_fetched.wait(60)
        with Lock(cache.folder / ".lock"):
            source.goes_on.set()
            with pytest.raises(TimeoutError):
                opened.result(timeout=0.5)
            assert not cache.path(shard).exists()
        with opened.result(timeout=60) as file:
            assert file.read() == (shards / shard.name).read_bytes()
    assert cache.path(shard).exists()
