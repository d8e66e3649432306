"""The folder in which a data set is made: what is finished stays there if the work is interrupted."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from data_prep.plan import ShardPlan, WrittenShard
from mhimdist import atomic
from mhimdist.data.format import index_name
from mhimdist.data.manifest import Manifest, ShardFile
from mhimdist.errors import RunLockedError

LOCK = "lock"


class Workplace:
    """`.<name>.sharding` beside a data set, as a context manager.

    Its `shards` hold finished shards, its `records` what each of them is. When its context is left after a
    failure, what is finished stays, and another run over the same sources begins with it; without anything
    finished, the folder goes.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.sharding")
        self.shards = self.folder / "shards"
        self._records = self.folder / "records"

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            RunLockedError: another process works in it.
        """
        for folder in (self.shards, self._records):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RunLockedError(f"another process is making {self.out}, in {self.folder}") from None
        self._remove_parts()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder.exists():
            self._remove_parts()
            if error is None or not any(self._records.iterdir()):
                shutil.rmtree(self.folder)
        self._lock.close()

    def resume(self, plans: Sequence[ShardPlan]) -> dict[str, WrittenShard]:
        """The shards that an earlier run of these plans finished, by name; what else it left is removed."""
        finished = {plan.name: shard for plan in plans if (shard := self._finished(plan)) is not None}
        kept = finished.keys() | {index_name(name) for name in finished}
        for folder in (self.shards, self._records):
            for path in folder.iterdir():
                if path.name not in kept:
                    path.unlink()
        return finished

    def _finished(self, plan: ShardPlan) -> WrittenShard | None:
        try:
            record = json.loads((self._records / plan.name).read_text())
            written = WrittenShard(ShardFile(**record["shard"]), record["rows"], record["plan"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        # An earlier run may have been killed while it moved new shards to the old ones.
        there = any(
            (folder / plan.name).is_file()
            and (folder / plan.name).stat().st_size == written.shard.bytes
            and (folder / index_name(plan.name)).is_file()
            for folder in (self.shards, self.out)
        )
        return written if there and written.plan == plan.digest() else None

    def record(self, written: WrittenShard) -> None:
        """Remember that a shard is finished."""
        record = {"shard": written.shard.model_dump(), "rows": written.rows, "plan": written.plan}
        atomic.write_text(self._records / written.shard.name, json.dumps(record))

    def num_finished(self) -> int:
        """Number of shards that are finished."""
        return sum(1 for _ in self._records.iterdir())

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
        """Raise `OSError` if this much more will not fit: now, not after hours."""
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            message = f"No space left on device ({num_bytes} bytes needed, {free} free)"
            raise OSError(errno.ENOSPC, message, str(self.out))

    def publish(self, manifest: Manifest) -> None:
        """Make the data set appear, or grow by what is new."""
        manifest.write(self.shards)
        if not self.out.exists():
            atomic.sync(self.shards)
            self.shards.rename(self.out)
            atomic.sync(self.out.parent)
            return
        # The manifest last: killed in between, the same command finds the shards where they are by now.
        for path in sorted(self.shards.iterdir(), key=lambda path: path.suffix == ".parquet"):
            if path.suffix == ".parquet":
                atomic.sync(self.out)
            path.rename(self.out / path.name)
        atomic.sync(self.out)

    def _remove_parts(self) -> None:
        for path in self.shards.glob(".*.part"):
            path.unlink(missing_ok=True)
