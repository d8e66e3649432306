"""The folder of one run: what it is a run of, its checkpoints and its history.

Checkpoints are written by a background thread from a copy of the weights, so that training does not wait.
Each is complete in itself: the folder can lose all but one.
"""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mhimdist import files
from mhimdist.config.execution import Saving
from mhimdist.errors import CheckpointError, RunLockedError
from mhimdist.training import checkpoint

HISTORY = "history.jsonl"
LOST_LOCK_S = 180.0
"""How long to wait for the lock of a process that is dying, or whose node is gone: an NFS server keeps those
of a dead client for a lease, typically 90 s."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over for an older one."""


class Position(NamedTuple):
    """How far a run is: epochs done, and steps done of the next one."""

    epoch: int
    step: int

    @property
    def name(self) -> str:
        """The checkpoint's folder."""
        return f"epoch-{self.epoch:05d}-step-{self.step:06d}"


class RunFolder:
    """The folder of one run, for the process that writes it.

    Attributes:
        path: the folder, with config.json, split.json, history.jsonl and checkpoints/.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], saving: Saving) -> None:
        """Claim an empty folder, or find that it holds this run.

        Args:
            path: made if it is missing.
            identity: file name and JSON content of what makes this run.
            saving: which checkpoints to keep.

        Raises:
            CheckpointError: the folder holds another run.
        """
        self.path, self.saving = path, saving
        self._lock = files.Lock(path / ".lock", signed=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        path.mkdir(parents=True, exist_ok=True)
        for name, content in identity.items():
            file, text = path / name, json.dumps(content, indent=1)
            if not file.exists():
                files.write_text(file, text)
            elif file.read_text(encoding="utf-8") != text:
                raise CheckpointError(
                    f"{file} is of another run than this one; give this run a folder of its own"
                )

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def lock(self, wait_s: float = 0.0) -> None:
        """Make sure that no other process trains here, until `unlock` or the end of this process.

        A run that was dropped half-way lets others in as well.

        Args:
            wait_s: seconds to wait for a process that is about to end.

        Raises:
            RunLockedError: another process holds the folder.
        """
        if not self._lock.acquire(wait_s):
            raise RunLockedError(
                f"{self.path} is being trained by {self._lock.holder}; wait for it, or use another folder"
            )

    def unlock(self) -> None:
        """Wait for what is being written, and let other processes in.

        Raises:
            DiskFullError: what was being written does not fit.
        """
        try:
            self.flush()
        finally:
            self._lock.release()

    def positions(self) -> list[Position]:
        """Where there are checkpoints, the newest last."""
        names = sorted(folder.name for folder in self.checkpoints.glob("epoch-*-step-*"))
        return [Position(int(name.split("-")[1]), int(name.split("-")[3])) for name in names]

    def latest(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint that is whole; None if none was ever made.

        A damaged one is passed over with a warning.

        Raises:
            CheckpointError: there are checkpoints, but none is whole.
        """
        positions = self.positions()
        for position in reversed(positions):
            try:
                return checkpoint.load(self.checkpoints / position.name)
            except CheckpointError as error:
                last = error
                warnings.warn(f"{error}; trying an older checkpoint", CheckpointWarning, stacklevel=2)
        if positions:
            raise CheckpointError(f"no checkpoint in {self.checkpoints} is whole: {last}")
        return None

    def save(
        self,
        position: Position,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        history: Sequence[Mapping[str, Any]],
        best_epochs: Sequence[int],
    ) -> None:
        """Write a checkpoint in the background; a write that failed is raised by the next call.

        Args:
            position: of the run.
            tensors: copied before this returns.
            state: what JSON can hold.
            history: a row for every epoch done.
            best_epochs: number of epochs done at the best ends of epochs, the best first.

        Raises:
            DiskFullError: the checkpoint before this one did not fit.
        """
        self.flush()
        copies = {
            file: {name: value.detach().to("cpu", copy=True) for name, value in group.items()}
            for file, group in tensors.items()
        }
        keep_best = {Position(epoch, 0) for epoch in best_epochs[: self.saving.keep_best]}
        rows = "".join(json.dumps(row, allow_nan=False) + "\n" for row in history)
        self._pending = self._writer.submit(self._write, position, copies, dict(state), rows, keep_best)

    def flush(self) -> None:
        """Wait until everything is on disk.

        Raises:
            DiskFullError: it does not fit; any other error of the background writer is raised as it is.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(
        self,
        position: Position,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        rows: str,
        keep_best: set[Position],
    ) -> None:
        folder = self.checkpoints / position.name
        checkpoint.discard(folder)  # a damaged one that was passed over
        checkpoint.save(folder, tensors, state)
        files.write_text(self.path / HISTORY, rows)
        newest = self.positions()
        # Parts of a checkpoint that a killed process left are nobody's once this one holds the lock.
        for part in self.checkpoints.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        for old in set(newest[: -self.saving.keep_last]) - keep_best:
            checkpoint.discard(self.checkpoints / old.name)
