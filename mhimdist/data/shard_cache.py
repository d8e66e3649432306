"""`ShardCache`: a node's copies of remote shards, checked on arrival and shared by all its processes."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mhimdist.data.manifest import ShardFile
from mhimdist.data.remote import RemoteFolder
from mhimdist.errors import ConfigError, CorruptShard, RemoteDataError
from mhimdist.files import Lock

ATTEMPTS = 3
"""Number of times that a shard is fetched before its error is raised."""

_RETRY_S = 0.5
_POLL_S = 0.05
_OURS = re.compile(r"[0-9a-f]{64}\.(tar|part)")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def default_folder() -> Path:
    """`MHIMDIST_SHARD_CACHE`, otherwise a folder for this user in the node's temporary folder."""
    given = os.environ.get("MHIMDIST_SHARD_CACHE")
    return Path(given or f"{tempfile.gettempdir()}/mhimdist-shards-{os.getuid()}").expanduser().absolute()


class ShardCache:
    """Shards as files named by their sha256, so that equal shards of different data sets share one file.

    A file appears when it is whole and its hash is right, and it never changes, so readers need no lock. A
    process that misses a shard takes the shard's lock, fetches and publishes it, while the others wait. A new
    shard evicts the least recently opened ones at the limit or, if that comes first, when the disk is full;
    files with other names are never touched. A process that has an evicted shard open can read it to its end;
    the disk space becomes free when the process closes it.

    Attributes:
        folder: the cache folder on this node, private to the user.
        limit_bytes: most bytes of all files together, including those that are being fetched.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int = 200 << 30) -> None:
        """Create the folder if it is missing.

        Args:
            folder: the cache folder; None for `default_folder()`.
            limit_bytes: most bytes of all files together.

        Raises:
            ConfigError: the folder cannot be created, or belongs to another user.
        """
        self.folder, self.limit_bytes = folder or default_folder(), limit_bytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"shard cache {self.folder}: {error.strerror}") from None
        if (owner := self.folder.stat().st_uid) != os.getuid():
            raise ConfigError(f"shard cache {self.folder} belongs to user {owner}, not to {os.getuid()}")

    def path(self, shard: ShardFile) -> Path:
        """The path of a shard in this cache, whether it is here or not."""
        return self.folder / f"{shard.sha256}.tar"

    def capacity_bytes(self) -> int:
        """The bytes that shards can take here: the limit, or what the disk has for them if that is less."""
        return min(
            self.limit_bytes, sum(size for *_, size in self._files()) + shutil.disk_usage(self.folder).free
        )

    def open(self, shard: ShardFile, source: RemoteFolder) -> BinaryIO:
        """Open a shard's file, and fetch it first if it is not here.

        Raises:
            ConfigError: the shard alone exceeds the limit.
            CorruptShard: the fetched bytes are not those that the manifest describes.
            RemoteDataError: it cannot be fetched, or other files fill the disk.
        """
        if (file := self._found(shard)) is not None:
            return file
        if shard.bytes > self.limit_bytes:
            raise ConfigError(
                f"shard cache {self.folder}: {shard.name} has {shard.bytes} bytes, above the limit of "
                f"{self.limit_bytes}; raise loading.shard_cache_gib"
            )
        with self._lock_of(self.path(shard)):
            if (file := self._found(shard)) is None:
                self._bring(shard, source)
                file = self.path(shard).open("rb")
        return file

    def _found(self, shard: ShardFile) -> BinaryIO | None:
        try:
            file = self.path(shard).open("rb")
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size != shard.bytes:  # the machine crashed before it was on disk
            file.close()
            self.path(shard).unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):
            os.utime(self.path(shard))  # the time of last use, independent of the disk's mount options
        return file

    def _bring(self, shard: ShardFile, source: RemoteFolder) -> None:
        part = self.path(shard).with_suffix(".part")
        self._reserve(part, shard.bytes)
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    _fetch(shard, source, part)
                    break
                except (RemoteDataError, CorruptShard):
                    if attempt == ATTEMPTS:
                        raise
                    time.sleep(_RETRY_S * attempt)
            with self._counted():  # a file that changes its name once it is listed would not be counted
                part.replace(self.path(shard))
        except FileNotFoundError as error:
            raise RemoteDataError(f"{error}: no such file") from None
        except OSError as error:
            raise RemoteDataError(f"shard cache {self.folder}: {shard.name}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, num_bytes: int) -> None:
        """Make room and allocate it at once, so that other processes count it when they make room."""
        limit_bytes = self.limit_bytes
        while True:
            with self._counted():
                part.unlink(missing_ok=True)
                used = self._evict(limit_bytes - num_bytes)
                if used + num_bytes <= limit_bytes:
                    try:
                        with part.open("wb") as file:
                            os.posix_fallocate(file.fileno(), 0, num_bytes)
                        return
                    except OSError as error:
                        part.unlink(missing_ok=True)
                        if error.errno not in _FULL or not used:
                            raise RemoteDataError(
                                f"shard cache {self.folder} has no room for {num_bytes} bytes: "
                                f"{error.strerror}"
                            ) from error
                        limit_bytes = used + num_bytes - 1  # the disk is full below the limit: evict more
                        continue
            time.sleep(_POLL_S)  # other processes are fetching all that is left

    def _evict(self, kept_bytes: int) -> int:
        """Remove files, the least recently used first, down to `kept_bytes`; returns the bytes that are left.

        More than `kept_bytes` are left if other processes are fetching the rest.
        """
        files = self._files()
        total = sum(size for *_, size in files)
        for _, _, path, size in sorted(files):
            if total <= kept_bytes:
                break
            lock = self._lock_of(path)
            if lock.acquire(wait_s=0):
                with lock:
                    path.unlink(missing_ok=True)
                    total -= size
        return total

    def _files(self) -> list[tuple[bool, int, Path, int]]:
        """Of each file: whether it is whole, its time of last use, its path and its bytes."""
        files = []
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    # Partial files of killed processes are removed first.
                    files.append((path.suffix == ".tar", stat.st_mtime_ns, path, stat.st_size))
        return files

    def _counted(self) -> Lock:
        """The lock under which files are counted, and appear."""
        return Lock(self.folder / ".lock")

    def _lock_of(self, path: Path) -> Lock:
        return Lock(path.with_suffix(".lock"))


def _fetch(shard: ShardFile, source: RemoteFolder, part: Path) -> None:
    """Write a shard into the file reserved for it, and check its length and hash."""
    digest, got = hashlib.sha256(), 0
    with part.open("r+b") as file:
        for chunk in source.stream(shard.name):
            got += len(chunk)
            if got > shard.bytes:
                break
            digest.update(chunk)
            file.write(chunk)
    where = f"{source.name}/{shard.name}"
    if got != shard.bytes:
        more = " or more" if got > shard.bytes else ""
        raise CorruptShard(f"{where}: expected {shard.bytes} bytes, got {got}{more}")
    if digest.hexdigest() != shard.sha256:
        raise CorruptShard(f"{where}: expected sha256 {shard.sha256}, got {digest.hexdigest()}")
