"""The folder of one run: its configuration and split, its checkpoints and its history.

A background thread writes the checkpoints from a copy of the weights, so that training does not wait. Each
checkpoint is complete: the folder can lose all but one.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mhimdist import files
from mhimdist.config.execution import Saving
from mhimdist.errors import CheckpointError, RunLockedError
from mhimdist.training import checkpoint
from mhimdist.training.history import HISTORY as HISTORY

LOST_LOCK_S = 180.0
"""Seconds to wait for the lock of a process that is dying or was on a lost node: an NFS server keeps the
locks of a dead client for a lease, typically 90 s."""


State = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]
"""What a checkpoint holds: the tensors of each file, and the rest."""
Check = Callable[[dict[str, dict[str, Tensor]], dict[str, Any]], None]
_NAME = re.compile(r"epoch-(\d{5,})-step-(\d{6,})", re.ASCII)


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was skipped; an older one is tried."""


class Position(NamedTuple):
    """How far a run is: finished epochs, and finished steps of the next epoch."""

    epoch: int
    step: int

    @property
    def name(self) -> str:
        """The name of the checkpoint's folder."""
        return f"epoch-{self.epoch:05d}-step-{self.step:06d}"


class RunFolder:
    """The folder of one run, for the process that writes it.

    Attributes:
        path: the folder; it holds config.json, split.json, history.jsonl and checkpoints/.
        saving: the checkpoints to keep.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], saving: Saving, data_digest: str | None = None
    ) -> None:
        """Claim an empty folder, or find that it holds this run.

        Args:
            path: the folder; created if it is missing.
            identity: JSON content of the files that identify this run, by file name; without any, the
                checkpoints may be of any run.
            saving: the checkpoints to keep.
            data_digest: digest of the data set that the run trains on; None leaves it open.

        Raises:
            CheckpointError: the folder holds another run.
        """
        self.path, self.saving = path, saving
        self._lock = files.Lock(path / ".lock", signed=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        text = json.dumps(dict(identity), sort_keys=True)
        self._run = hashlib.sha256(text.encode()).hexdigest() if identity else None
        self._data = data_digest
        path.mkdir(parents=True, exist_ok=True)
        for name, content in identity.items():
            file, text = path / name, json.dumps(content, indent=1)
            if not file.exists():
                files.write_text(file, text)
            elif (found := file.read_bytes()) != text.encode():
                _refuse_damage(file, found)
                raise CheckpointError(
                    f"{file} belongs to another run: its content differs from this run's; give this run "
                    "another folder"
                )

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def lock(self, wait_s: float = 0.0) -> None:
        """Keep every other process from training here, until `unlock` or the end of this process.

        If the run is dropped half-way, the lock opens as well.

        Args:
            wait_s: seconds to wait for a process that is about to end.

        Raises:
            RunLockedError: another process holds the folder.
        """
        if not self._lock.acquire(wait_s):
            raise RunLockedError(
                f"{self.path} is being trained by {self._lock.holder}; wait until it ends, or use another "
                "folder"
            )

    def unlock(self) -> None:
        """Wait until the last checkpoint is on disk, and let other processes in.

        Raises:
            DiskFullError: the checkpoint does not fit on the disk.
        """
        try:
            self.flush()
        finally:
            self._lock.release()

    def positions(self) -> list[Position]:
        """The positions of all checkpoints, the newest last."""
        names = [folder.name for folder in self.checkpoints.glob("epoch-*-step-*") if folder.is_dir()]
        found = [_NAME.fullmatch(name) for name in names]  # others, such as copies by hand, are not ours
        positions = sorted(Position(int(match[1]), int(match[2])) for match in found if match)
        return [position for position in positions if position.name in names]

    def latest(self, check: Check = lambda tensors, state: None) -> State | None:
        """Tensors and state of the newest whole checkpoint of this run; None if the folder has no checkpoint.

        Damaged checkpoints are skipped with a warning, and so are those of other runs.

        Args:
            check: raises a `CheckpointError` if the run cannot resume from these tensors and this state.

        Raises:
            CheckpointError: the folder has checkpoints, but none is whole; or the run was trained on other
                data.
        """
        positions = self.positions()
        for position in reversed(positions):
            try:
                tensors, state = self._load(position)
                check(tensors, state)
            except CheckpointError as error:
                last = error
                warnings.warn(f"{error}; skipped for an older checkpoint", CheckpointWarning, stacklevel=2)
                continue
            if (data := state.pop("data", None)) not in (None, self._data) and self._data is not None:
                raise CheckpointError(
                    f"{self.path} was trained on the data set {data}, expected {self._data}: put that one "
                    "back, or give this run another folder"
                )
            return tensors, state
        if positions:
            raise CheckpointError(
                f"no checkpoint in {self.checkpoints} is whole: {last}; delete the folder to train the run "
                "from the start"
            )
        return None

    def _load(self, position: Position) -> State:
        """A checkpoint, if it is whole, of this run, and what its name says."""
        folder = self.checkpoints / position.name
        tensors, state = checkpoint.load(folder)
        if state.pop("run", None) not in (None, self._run) and self._run is not None:
            raise CheckpointError(f"{folder} belongs to another run")
        history, step = state.get("history"), state.get("step")
        found = (len(history), step) if isinstance(history, list) else None
        if found != position:
            raise CheckpointError(
                f"{folder} is damaged: expected {position.epoch} epochs in its history and {position.step} "
                f"steps after them, got {found}"
            )
        return tensors, state

    def save(
        self,
        position: Position,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: dict[str, Any],
        *,
        history: Sequence[Mapping[str, Any]],
        best_epochs: Sequence[int],
    ) -> None:
        """Write a checkpoint in the background; the next call raises the error of a failed write.

        Args:
            position: how far the run is.
            tensors: named tensors per file; copied before this method returns.
            state: values that JSON can hold.
            history: a row per finished epoch.
            best_epochs: for each finished epoch, the number of epochs done at its end; the best epoch first.

        Raises:
            DiskFullError: the checkpoint before this one did not fit on the disk.
        """
        self.flush()
        copies = {
            file: {name: value.detach().to("cpu", copy=True) for name, value in group.items()}
            for file, group in tensors.items()
        }
        keep_best = {Position(epoch, 0) for epoch in best_epochs[: self.saving.keep_best]}
        rows = _lines(history)
        whose = {"run": self._run, "data": self._data}
        self._pending = self._writer.submit(self._write, position, copies, state | whose, rows, keep_best)

    def write_history(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Write the history of a run that resumes, unless the file has it already.

        Raises:
            DiskFullError: the file does not fit on the disk.
        """
        file, lines = self.path / HISTORY, _lines(history)
        if not file.exists() or file.read_bytes() != lines.encode():
            files.write_text(file, lines)

    def flush(self) -> None:
        """Wait until everything is on disk.

        Raises:
            DiskFullError: the checkpoint does not fit; other errors of the background writer are raised as
                they are.
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
        checkpoint.discard(folder)  # a damaged one that `latest` skipped
        checkpoint.save(folder, tensors, state)
        files.write_text(self.path / HISTORY, rows)
        newest = self.positions()
        # This process holds the lock, so no living process owns the parts that a killed one left.
        for part in self.checkpoints.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        for old in set(newest[: -self.saving.keep_last]) - keep_best:
            checkpoint.discard(self.checkpoints / old.name)


def _refuse_damage(file: Path, content: bytes) -> None:
    try:
        files.parse_json(content)
    except ValueError as error:
        raise CheckpointError(
            f"{file} is damaged ({error}): put a copy of it back, or give this run another folder"
        ) from None


def _lines(history: Iterable[Mapping[str, Any]]) -> str:
    """The text of `history.jsonl`."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in history)
