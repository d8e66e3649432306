"""Weights that others saved: read without unpickling code, unwrapped, and named as their network names them.

People save a network's weights alone, in a dictionary with an optimiser, or next to a teacher's. The names
get prefixes from whatever held the network: `module.`, `model.`, `student.`, `net.`, `_orig_mod.`. A prefix
is recognised by what is left of the names without it.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mhimdist import files
from mhimdist.errors import CheckpointError

Role = Literal["model", "teacher"]

MAX_NAMED = 5
"""Most names that an error lists per kind of difference."""

_MODEL = ("model", "student", "model_state_dict", "student_state_dict", "net", "network")
_TEACHER = ("teacher", "teacher_state_dict", "model_ema", "ema", "ema_state_dict", "state_dict_ema")
_EITHER = ("state_dict", "weights", "params", "module")
"""Keys under which people save the weights of a student, of a teacher, and of either."""
_HOLDERS = {"module", "_orig_mod"}
"""Parts of a name that torch adds where it wraps a network to train on several GPUs, or to compile it."""


def read_tensors(path: Path, which: Role) -> dict[str, Tensor]:
    """Read the weights of the student or the teacher from a file of torch or safetensors.

    Args:
        path: the file; one that ends in .safetensors is read as such, any other as torch's.
        which: the student ("model") or the teacher.

    Returns:
        The tensors by their names in the file, without those of the other role.

    Raises:
        CheckpointError: the file cannot be read without running code from it, or has no such weights.
    """
    content, is_of_role = _read(path), which == "model"
    keys = (*_MODEL, *_EITHER) if which == "model" else (*_TEACHER, *_EITHER, *_MODEL)
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        key = next((key for key in keys if content.get(key) is not None), None)
        if key is None:
            break
        content, is_of_role = content[key], is_of_role or key in _TEACHER
    entries = content if isinstance(content, Mapping) else {}
    tensors = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
    of_teacher = {name: value for name, value in tensors.items() if set(name.split(".")) & set(_TEACHER)}
    if which == "model":
        tensors = {name: value for name, value in tensors.items() if name not in of_teacher}
    elif not is_of_role:
        tensors = of_teacher
    if tensors:
        _refuse_odd(path, tensors)
        return tensors
    got = type(content).__name__
    if entries:
        got = f"named {', '.join(map(str, list(entries)[:MAX_NAMED]))}"
    raise CheckpointError(f"{path}: expected the weights of the {which}, found none (got {got})")


def _refuse_odd(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no plain numbers in memory, one for each place of the tensor.

    Raises:
        CheckpointError: one is nested, sparse, quantised, complex or without data, or claims more numbers
            than it stores.
    """
    for name, value in tensors.items():
        if value.is_nested or value.layout is not torch.strided or value.is_meta or value.is_quantized:
            kind = "a nested tensor" if value.is_nested else f"{value.layout} {value.dtype} on {value.device}"
        elif value.is_complex():
            kind = f"{value.dtype}"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            kind = f"shape {tuple(value.shape)}, more numbers than the file stores"
        else:
            continue
        raise CheckpointError(f"{path}: {name}: expected a dense tensor of real numbers, got {kind}")


def without_prefix(tensors: Mapping[str, Tensor], names: Collection[str]) -> tuple[dict[str, Tensor], int]:
    """Remove what a network's holders have put before the names of its parameters.

    Args:
        tensors: the weights, by their names in a file.
        names: the parameters' names in the network that they may belong to.

    Returns:
        The weights without the prefix that leaves most of these names, and how many of the names it leaves.
        Weights without the prefix keep their names; if all of the network's have it, they belong to something
        beside the network, such as a loss, and are left out.
    """
    bare = {".".join(p for p in key.split(".") if p not in _HOLDERS): value for key, value in tensors.items()}
    prefixes = Counter(
        key.removesuffix(name) for key in bare for name in names if key == name or key.endswith(f".{name}")
    )
    if not prefixes:
        return bare, 0
    prefix, count = min(prefixes.items(), key=lambda item: (-item[1], len(item[0])))
    if prefix and count == len(set(names)):
        bare = {key: value for key, value in bare.items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in bare.items()}, count


def differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """The differences in names and shapes, in words: the kind with the fewest first; empty if there are none.

    Args:
        weights: tensors by name.
        expected: the network's tensors by name.
    """
    kinds = [
        [f"{name} is missing" for name in expected if name not in weights],
        [f"{name} is unknown" for name in weights if name not in expected],
        [
            f"{name}: expected shape {tuple(value.shape)}, got {tuple(weights[name].shape)}"
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        ],
    ]
    words = ("missing", "unknown", "of another shape")
    found = [(len(kind), _some(kind, word)) for kind, word in zip(kinds, words, strict=True) if kind]
    return [text for _, text in sorted(found, key=lambda item: item[0])]


def _some(texts: Sequence[str], word: str) -> str:
    more = f"; and {len(texts) - MAX_NAMED} more {word}" if len(texts) > MAX_NAMED else ""
    return "; ".join(sorted(texts)[:MAX_NAMED]) + more


def _read(path: Path) -> Any:
    _refuse_what_is_no_checkpoint(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            _refuse_compressed(path)
            return torch.load(path, map_location="cpu", weights_only=True)
        with files.mapped(path) as content:  # torch.save before 1.6, a pickle
            return torch.load(content, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint, cannot read one: {error}") from None
    except Exception as error:  # a damaged file can make torch's reader raise any error
        if found := re.search(r"(?:GLOBAL|type) ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: refused, it holds {found[1]}, which would run code; save the network's "
                "state_dict() instead of the network"
            ) from None
        raise CheckpointError(
            f"{path}: expected a checkpoint of torch, got a damaged file or one of another format"
        ) from None


def _refuse_compressed(path: Path) -> None:
    """Refuse a zip whose records inflate to any size: torch writes them as they are.

    Raises:
        CheckpointError: a record is compressed, or the records overlap.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f"{path}: refused, it holds compressed records, which torch.save does not write"
        )
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path}: refused, its records claim more bytes than the file has")


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    """Name what a download may leave in a checkpoint's place.

    Raises:
        CheckpointError: the file is missing, empty, a web page or a pointer of Git LFS.
    """
    try:
        with path.open("rb") as file:
            head = file.read(200).lstrip()
    except OSError as error:
        raise CheckpointError(f"{path}: expected a checkpoint, cannot read one: {error}") from None
    kinds = {
        b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself by `git lfs pull`",
        b"<!doctype": "a web page; download the file itself",
        b"<html": "a web page; download the file itself",
    }
    for sign, kind in kinds.items():
        if head.lower().startswith(sign):
            raise CheckpointError(f"{path}: expected a checkpoint, got {kind}")
    if not head:
        raise CheckpointError(f"{path}: expected a checkpoint, got an empty file")
