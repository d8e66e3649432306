"""Checkpoints: a folder of safetensors files and a JSON state, written whole or not at all.

Any safetensors reader opens the weights. Nothing in a checkpoint is ever unpickled.
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

_STATE_HASH = "state_sha256"

Tensors = Mapping[str, Mapping[str, Tensor]]


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Per old schema version, the function that turns its state into the next version's."""

FAILPOINT = "MHIMDIST_FAILPOINT"
"""Environment variable that names the stage of `save` at which the process kills itself, for crash tests."""


def save(folder: Path, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Write a checkpoint to a folder that must not exist yet.

    Args:
        folder: appears only when all of it is on disk.
        tensors: named tensors per file; the file names have no extension.
        state: values that JSON can hold. With the hashes of the files it has a hash of its own.

    Raises:
        DiskFullError: the checkpoint does not fit on the disk; nothing of it remains.
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
            body[_STATE_HASH] = _sha256_of(body)
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
    except SafetensorError as error:  # its text is the only place that has the system's error
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from None
        raise


def _crash_if_asked(stage: str) -> None:
    if os.environ.get(FAILPOINT) == stage:
        os.kill(os.getpid(), signal.SIGKILL)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read the tensors of each file and the state, and check every byte of the files.

    The checkpoints of earlier releases have no hash of the state; theirs is not checked.

    Raises:
        CheckpointError: the folder is not a checkpoint, a file is missing or damaged, or this release cannot
            read the schema version.
    """
    try:
        with files.open_file(folder / "state.json") as file_of_state:
            body = files.parse_json(file_of_state.read().decode())
        version, digests, state = body["schema_version"], dict(body["sha256"]), dict(body["state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a checkpoint: {error}") from None
    _check_state(folder, body)
    while version != SCHEMA_VERSION:
        state, version = MIGRATIONS[version](state), version + 1
    tensors = {}
    for name, expected in digests.items():
        file = files.inside(folder, name, f"a file in {folder / 'state.json'}", error=CheckpointError)
        try:
            if (got := _sha256(file)) != expected:
                raise CheckpointError(f"{file} is damaged: expected sha256 {expected}, got {got}")
            tensors[file.stem] = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None
    return tensors, state


def _check_state(folder: Path, body: dict[str, Any]) -> None:
    """Refuse a state that this release cannot read, or that is not the one that was written."""
    version, expected = body["schema_version"], body.pop(_STATE_HASH, None)
    if version != SCHEMA_VERSION and (not isinstance(version, int) or version not in MIGRATIONS):
        raise CheckpointError(
            f"{folder}: expected schema version {SCHEMA_VERSION}, got {version!r:.40}; another release "
            "wrote it"
        )
    # Without the hash, it is an earlier release's, which had these entries and no others.
    unknown = body.keys() - {"schema_version", "sha256", "state"}
    if unknown or (expected is not None and _sha256_of(body) != expected):
        raise CheckpointError(f"{folder / 'state.json'} is damaged: its sha256 differs from the one within")


def discard(folder: Path) -> None:
    """Delete a checkpoint, whether it is whole, damaged or absent."""
    shutil.rmtree(folder, ignore_errors=True)


def _sha256_of(body: Mapping[str, Any]) -> str:
    """Hash of what JSON holds, however it is written."""
    held = json.loads(json.dumps(body))  # names as text, and lists for tuples
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with files.open_file(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
