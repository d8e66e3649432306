"""Checkpoints: a folder of safetensors files and a JSON state, written whole or not at all.

Weights open in any safetensors reader, and nothing of it is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mhimdist import files
from mhimdist.errors import CheckpointError

SCHEMA_VERSION = 1

Tensors = Mapping[str, Mapping[str, Tensor]]


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each old schema version, what makes the next version's state of it."""

FAILPOINT = "MHIMDIST_FAILPOINT"
"""Environment variable naming a stage of `save` at which the process kills itself: for tests of crashes."""


def save(folder: Path, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Write a checkpoint to a folder that must not exist yet.

    Args:
        folder: it appears only when all of it is on disk.
        tensors: for each file name (without extension) its named tensors.
        state: what JSON can hold.

    Raises:
        DiskFullError: it does not fit; nothing of it is left.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    _crash_if_asked("before")
    try:
        with files.full_disk(folder):
            temporary.mkdir(parents=True)
            digests = {}
            for name, group in tensors.items():
                file = temporary / f"{name}.safetensors"
                _save_file(group, file)
                digests[file.name] = _sha256(file)
                _crash_if_asked("between_files")
                files.sync(file)
            body = {"schema_version": SCHEMA_VERSION, "sha256": digests, "state": dict(state)}
            _crash_if_asked("before_state")
            files.write_text(temporary / "state.json", json.dumps(body, indent=1))
            files.sync(temporary)
            _crash_if_asked("before_rename")
            temporary.rename(folder)
            _crash_if_asked("after_rename")
            files.sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _save_file(group: Mapping[str, Tensor], file: Path) -> None:
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in group.items()}, file)
    except SafetensorError as error:  # the system's error is only in its text
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from None
        raise


def _crash_if_asked(stage: str) -> None:
    if os.environ.get(FAILPOINT) == stage:
        os.kill(os.getpid(), signal.SIGKILL)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors of each file and the state, every byte of the files checked.

    Raises:
        CheckpointError: the folder is no checkpoint, a file is missing or damaged, or its schema is another.
    """
    try:
        body = json.loads((folder / "state.json").read_text())
        version, digests, state = body["schema_version"], body["sha256"], body["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint: {error}") from None
    while version != SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise CheckpointError(
                f"{folder} has schema version {version}, this release reads {SCHEMA_VERSION}"
            )
        state, version = MIGRATIONS[version](state), version + 1
    tensors = {}
    for name, expected in digests.items():
        file = folder / name
        try:
            if (got := _sha256(file)) != expected:
                raise CheckpointError(f"{file} is damaged: its sha256 is {got}, {expected} was written")
            tensors[file.stem] = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None
    return tensors, state


def discard(folder: Path) -> None:
    """Delete a checkpoint, whole, damaged or absent."""
    shutil.rmtree(folder, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
