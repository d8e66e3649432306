"""The folder in which a data set is made: what is finished stays there if the work is interrupted."""

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
    """`.<name>.sharding` beside a data set, as a context manager.

    Its `shards` hold finished shards, its `records` what each of them is. When its context is left after a
    failure, what is finished stays, and another run over the same sources begins with it; without anything
    finished, the folder goes. While a new data set appears and its workplace goes, `.<name>.sharded` says
    what it was made of: so the same command knows it if it was killed right then.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.sharding")
        self.shards = self.folder / "shards"
        self._records = self.folder / "records"
        self._made_of = out.with_name(f".{out.name}.sharded")
        self._lock = files.Lock(self.folder / LOCK)

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            RunLockedError: another process works in it.
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
        """Whether the data set that is there may be one that an earlier run was killed right after making."""
        return self._made_of.exists()

    def has_made(self, made_of: Callable[[], str]) -> bool:
        """Whether it is one, and made of just this; only asked for where it may be."""
        return self.out.exists() and self.may_have_made() and self._made_of.read_text() == made_of()

    def resume(self, plans: Sequence[ShardPlan], *, skip_bad: bool = False) -> dict[str, WrittenShard]:
        """The shards that an earlier run of these plans finished, by name; what else it left is removed.

        Args:
            plans: of all shards.
            skip_bad: whether shards will do that lack bags which could not be used.
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
        """Remember that a shard is finished."""
        record = {
            "shard": written.shard.model_dump() if written.shard else None,
            "rows": written.rows,
            "plan": written.plan,
            "bad": [asdict(bag) for bag in written.bad],
        }
        files.write_text(self._records / written.name, json.dumps(record))

    def bytes_written(self) -> int:
        """Length of all shards that are here, finished or not."""
        num_bytes = 0
        for entry in os.scandir(self.shards):
            try:
                num_bytes += entry.stat().st_size
            except FileNotFoundError:  # renamed meanwhile
                continue
        return num_bytes

    def refuse_if_full(self, num_bytes: int) -> None:
        """Refuse to begin if this much more will not fit: now, not after hours.

        Raises:
            OSError: `ENOSPC`, with the number of bytes that are needed and that are free.
        """
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            message = f"No space left on device ({num_bytes} bytes needed, {free} free)"
            raise OSError(errno.ENOSPC, message, str(self.out))

    def publish(self, manifest: Manifest, made_of: str) -> None:
        """Make the data set appear, or grow by what is new.

        To readers it is whole at any moment: new shards are announced before they stand beside the others,
        and the manifest that lists them is put there last.

        Args:
            manifest: of all shards.
            made_of: a digest of what a new data set was made of, for `has_made`.
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
        """Make a file by a rename from here, so that whatever happens, no part of it is left there."""
        part = self.folder / "part"
        files.write_text(part, text)
        part.rename(path)

    def _take_back(self) -> None:
        """Take from a data set what an append put there that was killed before the manifest listed it."""
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
