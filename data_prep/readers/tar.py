"""Bags in WebDataset shards: found by the headers in shards of others, by the manifest in ours."""

import os
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.readers import damage, pt
from data_prep.readers.arrays import checked, map_npy
from data_prep.readers.fields import FEATURES
from data_prep.readers.members import describe_bag
from mhimdist import files
from mhimdist.data.format import EXTENSIONS, members_of
from mhimdist.data.targets import TARGETS, TaskInfo
from mhimdist.errors import DataError

MAX_TEXT_BYTES = 2**20
"""Most bytes of a member that is read as text, and of a header before a member."""

Place = tuple[tuple[str, int, int, int | None], ...]
"""Where a bag's members are in its tar: the extension of each, its offset and length in bytes, and the crc32
that it must have, if that is known."""


class _Header(tarfile.TarInfo):
    """A header that may follow others, such as one for a long name, but none that would fill the memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:  # which tarfile offers to subclasses
        if self.type not in tarfile.REGULAR_TYPES and self.size > MAX_TEXT_BYTES:
            raise DataError(
                f"{tar.name!r}: refused, it has a header of {self.size} bytes, more than {MAX_TEXT_BYTES}"
            )
        return super()._proc_member(tar)  # type: ignore[misc]


def bags_in(path: Path, arrays: Collection[str] = ()) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """The bags of a tar: key, place, and the fields of the JSON member ({} without one).

    Only headers and small members are read, and nothing is unpacked.

    Raises:
        DataError: the tar is damaged, holds a member twice, or holds a member that is not a plain file.
    """
    num_bytes = path.stat().st_size
    places: dict[str, list[tuple[str, int, int, int | None]]] = {}
    with damage.named(f"{path}: damaged, or not a tar"), tarfile.open(path, "r:", tarinfo=_Header) as tar:
        for member in tar:
            if not member.isreg() or member.issparse():
                raise DataError(f"{path}: refused, {member.name!r} is not a plain file")
            if member.size < 0 or member.offset_data + member.size > num_bytes:
                raise DataError(f"{path}: cut off: {member.name!r} reaches beyond the end of the file")
            folder, name = os.path.split(member.name)
            stem, _, extension = name.partition(".")  # at the first dot, as webdataset cuts
            place = places.setdefault(os.path.join(folder, stem), [])
            if any(extension.lower() == other for other, *_ in place):
                raise DataError(f"{path}: {member.name!r} is in it twice")
            place.append((extension.lower(), member.offset_data, member.size, None))
        end = tar.offset
    with path.open("rb") as file:
        file.seek(end)
        # tarfile takes any damaged header for the end.
        if any(file.read(2 * tarfile.BLOCKSIZE)):
            raise DataError(f"{path}: damaged at byte {end}: expected the header of a member")
    for key, place in places.items():
        yield key, tuple(place), _text(path, key, tuple(place))


def bags_of_ours(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    classes: tuple[str, ...],
    task: TaskInfo | None = None,
) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """The bags of one of our shards, given its rows of the manifest: as in `bags_in`, with checksums.

    Args:
        path: the shard.
        rows: its bags in the manifest.
        classes: class names in the order of their indices.
        task: what the labels mean; None for classification.

    Raises:
        CorruptShard: a JSON member differs from what was written.
    """
    for row in rows:
        place = tuple((EXTENSIONS[m.kind], m.offset, m.num_bytes, m.crc32) for m in members_of(row))
        said = describe_bag(path.parent, row)
        said |= {name: row[name] for name in ("slide", "case", "dtype")}
        label: dict[str, Any] = {"label": classes[row["label"]], "classes": classes}
        if task is not None:
            label["task"] = (task.name, task.unit, *task.columns)
            if not task.of_classes:
                label |= {"label": None, "classes": None, "targets": tuple(row[TARGETS])}
        yield row["key"], place, said | label


def read(path: Path, place: Place, arrays: Collection[str] = ()) -> dict[Any, Any]:
    """Read the arrays of a bag by name: `x.npy` and `x.pt` hold x, a bare `npy` or `pt` the features.

    Args:
        path: the tar.
        place: extension, offset, number of bytes and, if known, crc32 of each member of the bag.
        arrays: not used, as members are read with their rows; other readers take the same argument.

    Raises:
        DataError: a member is damaged.
    """
    found: dict[Any, Any] = {}
    for extension, offset, num_bytes, crc32 in place:
        name, _, form = extension.rpartition(".")
        if form == "npy":
            array = map_npy(path, offset, num_bytes)
            found[name or FEATURES[0]] = (
                array if crc32 is None else checked(array, path, offset, num_bytes, crc32)
            )
        elif form in ("pt", "pth"):
            content = pt.read_bytes(_content(path, offset, num_bytes), f"{path}: {extension}")
            found |= content if not name else {name: content.get(FEATURES[0])}
    return found


def _text(path: Path, key: str, place: Place) -> dict[str, Any]:
    """The fields of the JSON member, with "label" from a `cls` member if they lack it."""
    said: dict[str, Any] = {}
    for extension, offset, num_bytes, _ in place:
        if extension not in ("json", "cls", "label"):
            continue
        if num_bytes > MAX_TEXT_BYTES:
            raise DataError(f"{path}: {key}.{extension} has {num_bytes} bytes, more than {MAX_TEXT_BYTES}")
        try:
            text = _content(path, offset, num_bytes).decode()
            value = files.parse_json(text) if extension == "json" else {"label": text.strip()}
        except ValueError as error:
            raise DataError(f"{path}: {key}.{extension} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}: {key}.{extension}: expected an object, got {type(value).__name__}")
        said = value | said if extension != "json" else said | value
    return said


def _content(path: Path, offset: int, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(num_bytes)
