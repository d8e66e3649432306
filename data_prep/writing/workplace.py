"""The folder in which a data set is made; finished shards stay in it if the work is interrupted."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from data_prep.writing.plan import ShardPlan, WrittenShard
from data_prep.writing.skipped import BadBag
from mhimdist import files
from mhimdist.data.format import index_name
from mhimdist.data.manifest import ARRIVING_NAME, MANIFEST_NAME, Manifest, ShardFile, arriving
from mhimdist.errors import RunLockedError

LOCK = "lock"


class Workplace:
    """`.<name>.sharding` next to a data set, as a context manager.

    `shards` holds the finished shards, `records` the description of each. If the context ends with a failure,
    finished shards stay, and the next run over the same sources reuses them; if no shard is finished, the
    folder is removed. Between the appearance of a new data set and the removal of its workplace,
    `.<name>.sharded` holds a digest of its sources and settings, by which the same command recognises the
    data set if it is killed in between.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.sharding")
        self.shards = self.folder / "shards"
        self._records = self.folder / "records"
        self._made_of = out.with_name(f".{out.name}.sharded")
        self._lock = files.Lock(self.folder / LOCK)

    def __enter__(self) -> Self:
        """Lock the folder, and tidy up after runs that were killed.

        Raises:
            RunLockedError: another process works in the folder.
        """
        for folder in (self.shards, self._records):
            folder.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire(wait_s=0):
            raise RunLockedError(f"another process is making {self.out}, in {self.folder}")
        self._take_back()
        self._remove_parts()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder.exists():
            self._remove_parts()
            if error is None or not any(self._records.iterdir()):
                shutil.rmtree(self.folder)
                if error is None:
                    self._made_of.unlink(missing_ok=True)
        self._lock.release()

    def may_have_made(self) -> bool:
        """Whether an earlier run may have been killed right after it made the data set."""
        return self._made_of.exists()

    def has_made(self, made_of: Callable[[], str]) -> bool:
        """Whether an earlier run did so, with this digest; `made_of` is called only if it may have."""
        return self.out.exists() and self.may_have_made() and self._made_of.read_text() == made_of()

    def resume(self, plans: Sequence[ShardPlan], *, skip_bad: bool = False) -> dict[str, WrittenShard]:
        """The shards that an earlier run of these plans finished, by name; its other files are removed.

        Args:
            plans: the plans of all shards.
            skip_bad: whether to accept shards without the bags that could not be used.
        """
        found = {plan.name: shard for plan in plans if (shard := self._finished(plan)) is not None}
        finished = {name: shard for name, shard in found.items() if skip_bad or not shard.bad}
        kept = finished.keys() | {index_name(name) for name in finished}
        for folder in (self.shards, self._records):
            for path in folder.iterdir():
                if path.name not in kept:
                    path.unlink()
        return finished

    def _finished(self, plan: ShardPlan) -> WrittenShard | None:
        try:
            record = json.loads((self._records / plan.name).read_text())
            shard = None if record["shard"] is None else ShardFile(**record["shard"])
            bad = tuple(BadBag(**bag) for bag in record["bad"])
            written = WrittenShard(plan.name, shard, record["rows"], record["plan"], bad)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        path = self.shards / plan.name
        there = shard is None or (
            path.is_file()
            and path.stat().st_size == shard.bytes
            and path.with_name(index_name(plan.name)).is_file()
        )
        return written if there and written.plan == plan.digest() else None

    def record(self, written: WrittenShard) -> None:
        """Record that a shard is finished.

        Raises:
            DiskFullError: the record does not fit on the disk.
        """
        record = {
            "shard": written.shard.model_dump() if written.shard else None,
            "rows": written.rows,
            "plan": written.plan,
            "bad": [asdict(bag) for bag in written.bad],
        }
        files.write_text(self._records / written.name, json.dumps(record))

    def bytes_written(self) -> int:
        """Total length of the shards in the folder, finished or not."""
        num_bytes = 0
        for entry in os.scandir(self.shards):
            try:
                num_bytes += entry.stat().st_size
            except FileNotFoundError:  # renamed in the meantime
                continue
        return num_bytes

    def refuse_if_full(self, num_bytes: int) -> None:
        """Refuse to begin if this many further bytes will not fit: now, not after hours.

        Raises:
            OSError: `ENOSPC`, with the numbers of bytes that are needed and free.
        """
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            message = f"No space left on device ({num_bytes} bytes needed, {free} free)"
            raise OSError(errno.ENOSPC, message, str(self.out))

    def publish(self, manifest: Manifest, made_of: str) -> None:
        """Make the data set appear, or grow by the new shards.

        For readers it is whole at any moment: new shards are announced before they are moved to the others,
        and the manifest that lists them is moved last.

        Args:
            manifest: the manifest of all shards.
            made_of: digest of the sources and settings of a new data set, for `has_made`.

        Raises:
            OSError: a file cannot be written or moved; a full disk is a `DiskFullError`.
        """
        manifest.write(self.shards)
        if not self.out.exists():
            files.sync(self.shards)
            self._put(self._made_of, made_of)
            self.shards.rename(self.out)
            files.sync(self.out.parent)
            return
        names = sorted(path.name for path in self.shards.glob("*.tar"))
        self._put(self.out / ARRIVING_NAME, "".join(f"{name}\n" for name in names))
        files.sync(self.out)
        for name in names:
            for file in (index_name(name), name):
                (self.shards / file).rename(self.out / file)
        files.sync(self.out)
        (self.shards / MANIFEST_NAME).rename(self.out / MANIFEST_NAME)
        files.sync(self.out)
        (self.out / ARRIVING_NAME).unlink()

    def _put(self, path: Path, text: str) -> None:
        """Make a file by a rename from this folder, so that no failure leaves a part of it."""
        part = self.folder / "part"
        files.write_text(part, text)
        part.rename(path)

    def _take_back(self) -> None:
        """Take back shards that a killed append moved to the data set before the manifest listed them."""
        if not (self.out / ARRIVING_NAME).exists():
            return
        listed = {shard.name for shard in Manifest.read(self.out).info.shards}
        for name in sorted(arriving(self.out) - listed):
            for file in (index_name(name), name):
                with suppress(FileNotFoundError):
                    (self.out / file).rename(self.shards / file)
        files.sync(self.out)
        (self.out / ARRIVING_NAME).unlink()

    def _remove_parts(self) -> None:
        for path in self.shards.glob(".*.part"):
            path.unlink(missing_ok=True)
