"""`MappedShards`: the bytes of a data set's shards, local or remote, each mapped on its first read."""

import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from mhimdist import files
from mhimdist.data import memory
from mhimdist.data.manifest import ShardFile
from mhimdist.data.remote import RemoteFolder
from mhimdist.data.scattered import HeldFile, OpenFile
from mhimdist.data.shard_cache import ShardCache
from mhimdist.errors import CorruptShard, DataError, MhimdistError

_Held = TypeVar("_Held", bound=HeldFile)
FETCHING_THREADS = 4
"""Number of remote shards that are fetched at once."""

MAX_OPEN_SHARDS = 256
"""Most shards mapped at once: each holds two file descriptors, and by default a process may have 1,024."""


class MappedFile(HeldFile):
    """A mapped file.

    Attributes:
        bytes: all of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        """See `HeldFile`."""
        # ACCESS_COPY, because torch warns about buffers that it cannot write to.
        self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        super().__init__(file)


class MappedShards:
    """The shards of a folder by name; remote ones are first fetched into this node's cache.

    A map shows what is in the file now. If a file is cut, the system ends a process that reads behind its end
    with SIGBUS; if it is overwritten, checked bytes become others. So every read first asks the system, which
    takes about a microsecond, whether the file has changed. What is left: a bag that a step computes on at
    the very moment of the cut, since a single bag is not copied. On NFS the answer is as old as the attribute
    cache, by default up to a minute.

    Attributes:
        cache: the cache for remote shards; None until a shard needs it.
        changes: how often each shard has changed since it was first mapped; what was known of its bytes
            holds no longer.
    """

    def __init__(
        self, folder: Path | RemoteFolder, shards: Sequence[ShardFile], cache: ShardCache | None = None
    ) -> None:
        """Open nothing yet.

        Args:
            folder: folder of the shards.
            shards: the shards, as the manifest lists them.
            cache: cache for remote shards; None for a `ShardCache` with its defaults.
        """
        self._folder, self.cache = folder, cache
        self.changes: Counter[str] = Counter()
        self._files = {shard.name: shard for shard in shards}
        self._maps: dict[str, MappedFile] = {}
        self._opened: dict[str, OpenFile] = {}

    def map(self, name: str) -> mmap.mmap:
        """The bytes of a shard, see `mapped`."""
        return self.mapped(name).bytes

    def mapped(self, name: str) -> MappedFile:
        """A shard, mapped on first use, and again if the file has changed since.

        There is no lock: two threads may both map a shard, and one of the two maps is dropped.

        Raises:
            CorruptShard: the file has another length than in the manifest.
            DataError: it cannot be mapped.
            ConfigError, RemoteDataError: as in `ShardCache.open`.
        """
        mapped = self._unchanged(self._maps, name)
        if mapped is None:
            with self._open(self._files[name]) as file:
                try:
                    mapped = MappedFile(file)
                except OSError as error:
                    num_bytes = memory.gib(self._files[name].bytes)
                    raise DataError(
                        f"{self.folder}/{name}: its {num_bytes} cannot be mapped: {error.strerror}"
                    ) from None
            self._maps[name] = mapped
            for oldest in tuple(self._maps)[:-MAX_OPEN_SHARDS]:
                self._maps.pop(oldest, None)
        return mapped

    def file(self, name: str) -> OpenFile:
        """A shard, opened on first use for reads of a few rows, and again if the file has changed since.

        Raises:
            CorruptShard, ConfigError, RemoteDataError: as in `map`.
        """
        opened = self._unchanged(self._opened, name)
        if opened is None:
            with self._open(self._files[name]) as file:
                opened = OpenFile(file)
            self._opened[name] = opened
            for oldest in tuple(self._opened)[:-MAX_OPEN_SHARDS]:
                self._opened.pop(oldest, None)
        return opened

    def _unchanged(self, held: dict[str, _Held], name: str) -> _Held | None:
        """What is held of a shard; None if nothing is, or if its file has changed, which is counted."""
        found = held.get(name)
        if found is None or not found.is_changed:
            return found
        held.pop(name, None)
        self.changes[name] += 1
        return None

    @property
    def folder(self) -> str:
        """The folder of the shards, as messages name it."""
        return self._folder.name if isinstance(self._folder, RemoteFolder) else str(self._folder)

    def fetch_ahead(self, names: Iterable[str]) -> None:
        """Start to fetch remote shards in this order, several at once, in the background.

        Does nothing if the data set is larger than this node's cache: a shard fetched too early would evict
        one that is still needed. Errors are not raised here; the read of the shard raises them.
        """
        if not isinstance(remote := self._folder, RemoteFolder):
            return
        cache = self._shard_cache()
        if sum(shard.bytes for shard in self._files.values()) > cache.capacity_bytes():
            return
        waiting = iter(dict.fromkeys(names))

        def fetch() -> None:
            with suppress(MhimdistError):
                for name in waiting:
                    cache.open(self._files[name], remote).close()

        for number in range(FETCHING_THREADS):
            threading.Thread(target=fetch, name=f"fetch-{number}", daemon=True).start()

    def _open(self, shard: ShardFile) -> BinaryIO:
        if isinstance(self._folder, RemoteFolder):
            cache = self._shard_cache()
            file = cache.open(shard, self._folder)
            # A shard that the cache has evicted for this one keeps its disk space as long as it is mapped.
            for name in [name for name in tuple(self._maps) if not cache.path(self._files[name]).exists()]:
                self._maps.pop(name, None)
            for name in [name for name in tuple(self._opened) if not cache.path(self._files[name]).exists()]:
                self._opened.pop(name, None)
            return file
        path = self._folder / shard.name
        file = files.open_file(path)
        if (got := os.fstat(file.fileno()).st_size) != shard.bytes:
            file.close()
            raise CorruptShard(f"{path}: expected {shard.bytes} bytes, got {got}")
        return file

    def _shard_cache(self) -> ShardCache:
        if self.cache is None:
            self.cache = ShardCache()
        return self.cache
