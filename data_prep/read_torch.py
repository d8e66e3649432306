"""Features that `torch.save` wrote. Nothing in them is executed."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhimdist.errors import DataError

# torch.save before 1.6 began a file with this pickled number; whatever else is not a zip, it did not write.
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")


def read(path: Path) -> dict[Any, Any]:
    """A file of `torch.save`, mapped: a tensor is under "features", a dict is as it is."""
    with path.open("rb") as file:
        legacy = file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
    return _load(path, str(path), legacy=legacy)


def read_bytes(content: bytes, where: str) -> dict[Any, Any]:
    """What `read` gives, from memory; `where` names it in messages."""
    return _load(io.BytesIO(content), where, legacy=content.startswith(LEGACY_MAGIC))


def _load(file: Path | io.BytesIO, where: str, *, legacy: bool) -> dict[Any, Any]:
    try:
        if not legacy:
            with zipfile.ZipFile(file) as archive:
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise DataError(f"{where}: holds compressed records, which torch.save does not write")
        if isinstance(file, io.BytesIO):
            file.seek(0)
        mapped = isinstance(file, Path) and not legacy
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (DataError, OSError):
        raise
    except Exception as error:  # whatever the damage leads torch's readers to
        if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
            raise DataError(
                f"{where}: refused, it holds {forbidden[1]}; expected a tensor or a dict of tensors"
            ) from error
        raise DataError(f"{where}: damaged, or not a file that torch.save wrote") from error
    if isinstance(loaded, Tensor):
        return {"features": loaded}
    if not isinstance(loaded, dict):
        raise DataError(f"{where}: expected a tensor or a dict of tensors, got {type(loaded).__name__}")
    return loaded
