"""The manifest of a data set: its bags, the place of every byte of them, and the manifest's own hash.

Dimensions: N bags.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from mhimdist import files
from mhimdist.data import feature_sets, manifest_rules, targets
from mhimdist.data.standardization import Standardization
from mhimdist.errors import DataError, ManifestError
from mhimdist.tables.parquet_pages import claims_of, row_groups

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.parquet"
ARRIVING_NAME = ".arriving"
"""File that lists, one per line, the shards that an append adds before a new manifest lists them."""
MAX_BYTES = 2**30
"""Longest manifest, several million bags; a longer file is not a manifest and is not read."""
MAX_INFLATION = 100
"""Largest ratio of a manifest in memory, if above `SMALL_BYTES`, to its file; real ones have 5 to 20."""
SMALL_BYTES = 2**24
MAX_NAMED = 20

_SHARD = re.compile(r"shard-[0-9]{6,}\.tar")
_NUMBER_BYTES = 8
_NUM_LOOKS = 3  # a single append can make two looks disagree with the folder
_MANIFEST_KEY = b"mhimdist.manifest"
_HASH_KEY = b"mhimdist.content_sha256"


def _member_fields(kind: str, *, nullable: bool = False) -> list[pa.Field]:
    return [
        pa.field(f"{kind}_offset", pa.int64(), nullable),
        pa.field(f"{kind}_bytes", pa.int64(), nullable),
        pa.field(f"{kind}_crc32", pa.uint32(), nullable),
    ]


ROWS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("slide", pa.string(), nullable=False),
        pa.field("case", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("num_instances", pa.int64(), nullable=False),
        pa.field("num_features", pa.int32(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        *_member_fields("features"),
        pa.field("features_data_offset", pa.int64(), nullable=False),
        *_member_fields("coords", nullable=True),
        *_member_fields("instance_labels", nullable=True),
        *_member_fields("json"),
    ]
)
"""One row per bag, in the order of the shards. `<kind>_offset` and `<kind>_bytes` delimit a member's payload
in its shard, and `<kind>_crc32` is the crc32 of that payload; `features_data_offset` is where the raw
row-major N x D array starts, after the .npy header. `label` counts from 0 in the order of
`DatasetInfo.classes`. Some data sets have further columns, see `rows_schema`."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardFile(_Record):
    """A shard as the manifest lists it: file name, length, sha256 of the whole file, number of bags."""

    # The pattern also keeps a forged manifest from naming a file outside its folder.
    name: Annotated[str, Field(pattern=rf"\A{_SHARD.pattern}\z")]
    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    num_bags: Annotated[int, Field(ge=1)]


class DatasetInfo(_Record):
    """The manifest's description of the whole data set.

    Attributes:
        name: the data set's name, for reports.
        classes: class names; the `label` of a bag is a position in them.
        synthetic: whether the features were generated rather than computed from slides.
        description: free text on the source of the features, and on what is real and what is not.
        shards: the shards in the order of their bags.
        schema_version: the layout of the manifest, `SCHEMA_VERSION`.
        task: what the labels mean; None for classification. If the bags have targets, the classes are strata
            of these, see `strata`.
        standardized: what features were standardised by before they were stored, by feature set ("" for
            features without a name); those that are not listed are as their encoder made them.
    """

    name: str
    classes: tuple[str, ...]
    synthetic: bool
    description: str
    shards: tuple[ShardFile, ...]
    schema_version: int = SCHEMA_VERSION
    task: targets.TaskInfo | None = None
    standardized: dict[str, Standardization] = {}

    @field_validator("task")
    @classmethod
    def _is_not_said_twice(cls, task: targets.TaskInfo | None) -> targets.TaskInfo | None:
        if task is not None and task.name == "classification":
            raise ValueError("a manifest says classification by no task, so that each has one digest")
        return task

    @model_serializer(mode="wrap")
    def _as_before_there_were_more(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What not every data set has is there only if this one has it, as in earlier releases."""
        said: dict[str, Any] = dump(self)
        if self.task is None:
            del said["task"]
        if not self.standardized:
            del said["standardized"]
        return said


def rows_schema(task: targets.TaskInfo | None, *, named: bool = False) -> pa.Schema:
    """The columns of a manifest: `ROWS_SCHEMA`, and `targets` and `feature_set` if it has any.

    `targets` is a list of one float64 for each of `TaskInfo.columns`; null is a missing one. A data set with
    named feature sets has one row per bag and set.
    """
    schema = ROWS_SCHEMA if task is None or task.of_classes else ROWS_SCHEMA.append(targets.TARGETS_FIELD)
    return schema.append(feature_sets.FIELD) if named else schema


@dataclass(frozen=True, eq=False)
class Manifest:
    """The table of contents of a data set: `info`, and `rows` (`rows_schema`), one row per bag.

    With named feature sets, there is one row per bag and set; `of` takes one of them.
    """

    info: DatasetInfo
    rows: pa.Table

    @property
    def feature_sets(self) -> tuple[str, ...]:
        """The names of the feature sets; empty if the features have no name."""
        return feature_sets.names_in(self.rows)

    def of(self, feature_set: str) -> "Manifest":
        """The manifest of one feature set alone; "" is that of features without a name."""
        if not feature_set:
            return self
        return Manifest(*feature_sets.part(self.info, self.rows, feature_set))

    @property
    def each(self) -> "dict[str, Manifest]":
        """The manifest of every feature set by its name; of features without one under ""."""
        return {name: self.of(name) for name in self.feature_sets or ("",)}

    @property
    def content_sha256(self) -> str:
        """Hash of the manifest's content, independent of its Parquet encoding; it identifies a data set."""
        return _content_sha256(self.info, self.rows)

    def write(self, folder: Path) -> None:
        """Write `manifest.parquet` into the folder and force it to disk.

        Raises:
            ManifestError: the rows contradict each other or the list of shards.
        """
        _check_rows(self.rows, self.info)
        metadata = {_MANIFEST_KEY: _document(self.info), _HASH_KEY: self.content_sha256.encode()}
        with (folder / MANIFEST_NAME).open("wb") as file:
            table = self.rows.replace_schema_metadata(metadata)
            # Nobody asks for statistics, and a flipped bit in their sizes makes pyarrow 26 abort the process.
            pq.write_table(table, file, write_page_checksum=True, write_statistics=False)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read a folder's manifest and check it against its own hash.

        The hash detects accidents, not forgery: an adversary who rewrites the manifest can rewrite the hash.
        So this also checks that no row points outside its shard.

        Raises:
            ManifestError: it is missing, unreadable, of another version, edited, or contradicts itself.
        """
        path = folder / MANIFEST_NAME
        try:
            with files.open_file(path) as file:
                # At most the file's size, because Python allocates memory for all that it is asked to read.
                content = file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES) + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise missing(path) from None
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
        return cls.parse(content, path)

    @classmethod
    def open(cls, folder: Path) -> "Manifest":
        """Read a folder's manifest and check that the folder has exactly the shards that it lists.

        Raises:
            ManifestError: as in `read`; or shards are missing, have another length, or are not listed.
        """

        def look() -> tuple[Manifest, dict[str, str]]:
            manifest = cls.read(folder)
            return manifest, manifest.file_faults(folder)

        return settled(look, folder)

    @classmethod
    def parse(cls, content: bytes, path: Path | str) -> "Manifest":
        """Make a manifest from the bytes of its file, local or remote; checks it as `read` does.

        Raises:
            ManifestError: as in `read`; the message names `path`.
        """
        if len(content) > MAX_BYTES:
            raise ManifestError(f"{path} has more than {MAX_BYTES} bytes, too many for a manifest")
        try:
            info, table = _read_table(content, path)
            table.validate(full=True)
        except ManifestError:
            raise
        except (pa.ArrowException, DataError, OSError, ValueError) as error:
            raise ManifestError(f"{path} cannot be read as Parquet: {error}") from error
        expected, got = table.schema.metadata[_HASH_KEY].decode("latin-1"), _content_sha256(info, table)
        if got != expected:
            raise ManifestError(f"{path} was changed: expected content_sha256 {expected}, got {got}")
        try:
            _check_rows(table, info)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None
        return cls(info, table.replace_schema_metadata(None))

    def rows_of_shard(self, shard: str) -> list[dict[str, Any]]:
        """The rows of a shard's bags as dicts, in their order in the tar."""
        return self.rows.filter(pc.equal(self.rows["shard"], shard)).to_pylist()

    def rows_by_shard(self) -> dict[str, list[dict[str, Any]]]:
        """`rows_of_shard` of every shard, in one pass."""
        rows: dict[str, list[dict[str, Any]]] = {shard.name: [] for shard in self.info.shards}
        for row in self.rows.to_pylist():
            rows[row["shard"]].append(row)
        return rows

    def file_faults(self, folder: Path) -> dict[str, str]:
        """How the shard files of a folder differ from the manifest's list: the fault by file name.

        Only names and lengths are compared; `data_prep.verify` and the readers check the bytes.
        """
        names = arriving(folder)
        paths = [path for path in folder.glob("shard-*.tar") if path.exists()]
        return self.faults_of({path.name: path.stat().st_size for path in paths}, names)

    def faults_of(self, sizes: Mapping[str, int], arriving: Collection[str] = ()) -> dict[str, str]:
        """As `file_faults`, from the names and sizes of all files of the folder, shards or not.

        Args:
            sizes: bytes of every file, by name.
            arriving: names of shards that the manifest need not list yet.
        """
        faults = {}
        for shard in self.info.shards:
            num_bytes = sizes.get(shard.name)
            if num_bytes is None:
                faults[shard.name] = "missing"
            elif num_bytes != shard.bytes:
                faults[shard.name] = f"expected {shard.bytes} bytes, got {num_bytes}"
        known = {*arriving, *(shard.name for shard in self.info.shards)}
        for name in sorted(set(sizes) - known):
            if fnmatch(name, "shard-*.tar"):
                faults[name] = "not in the manifest"
        return faults


def settled(look: Callable[[], tuple[Manifest, dict[str, str]]], where: Path | str) -> Manifest:
    """A manifest that agrees with its folder; it looks more than once, because an append may interfere.

    Args:
        look: reads the manifest and returns it with the folder's faults by file name.
        where: name of the folder in messages.

    Raises:
        ManifestError: the folder differs from its manifest.
    """
    for _ in range(_NUM_LOOKS):
        manifest, faults = look()
        if not faults:
            return manifest
    listing = "; ".join(f"{name}: {what}" for name, what in list(faults.items())[:MAX_NAMED])
    more = f"; and {len(faults) - MAX_NAMED:,} more" if len(faults) > MAX_NAMED else ""
    raise ManifestError(f"{where} does not hold the shards of its manifest: {listing}{more}")


def arriving(folder: Path) -> frozenset[str]:
    """The shards that an append, running or killed, has begun to add to a folder.

    Raises:
        ManifestError: the list cannot be read, or names something else than a shard: whoever reads it would
            move or delete that.
    """
    path = folder / ARRIVING_NAME
    try:
        with files.open_file(path) as file:
            return parse_arriving(file.read(MAX_BYTES), path)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error


def parse_arriving(content: bytes, path: Path | str) -> frozenset[str]:
    """The names in the file of that name, local or remote; raises as `arriving` does."""
    names = frozenset(content.decode(errors="replace").splitlines())
    for name in sorted(names):
        if not _SHARD.fullmatch(name):
            raise ManifestError(
                f"{path}: expected names of shards, got {name[:100]!r}: an append did not write this file; "
                "delete it"
            )
    return names


def _read_table(content: bytes, path: Path | str) -> tuple[DatasetInfo, pa.Table]:
    """The description and the rows; refuses a file whose rows would take far more memory than its bytes."""
    limit = max(MAX_INFLATION * len(content), SMALL_BYTES)
    # From memory: given a path, pyarrow would read a parent folder named "a=b" as a column.
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    schema, metadata = file.schema_arrow, file.metadata
    if not {_MANIFEST_KEY, _HASH_KEY} <= (schema.metadata or {}).keys():
        raise ManifestError(
            f"{path} is not the manifest of a data set: expected {_MANIFEST_KEY.decode()!r} in its metadata"
        )
    info = _parse_info(schema.metadata[_MANIFEST_KEY], path)
    wanted = rows_schema(info.task, named=feature_sets.COLUMN in schema.names)
    if not schema.equals(wanted):
        found = {str(field) for field in schema} ^ {str(field) for field in wanted}
        raise ManifestError(f"{path}: expected other columns; they differ in {sorted(found) or 'order'}")
    groups = row_groups(content, metadata, str(path))
    claims = [claims_of(content, column, str(path)) for group in groups for column in group.columns]
    num_bytes = sum(max(_NUMBER_BYTES * claim.num_values, claim.num_bytes) for claim in claims)
    if max(num_bytes, _NUMBER_BYTES * metadata.num_rows) > limit:
        raise ManifestError(f"{path} claims {metadata.num_rows} bags in {len(content)} bytes")
    # As dictionaries, which store a repeated name once.
    text = [field.name for field in schema if field.type == pa.string()]
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, read_dictionary=text)
    table = file.read(use_threads=False)
    for name in text:
        for chunk in table[name].chunks:
            lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
            num_bytes += pc.sum(lengths.cast(pa.int64())).as_py() or 0
        if num_bytes > limit:
            raise ManifestError(f"{path} repeats its text to more than {limit} bytes")
    return info, table.cast(schema)


def missing(path: Path | str) -> ManifestError:
    """The error for a folder without a manifest."""
    return ManifestError(f"no manifest at {path}: expected a folder that data_prep.shard wrote")


def _document(info: DatasetInfo) -> bytes:
    return json.dumps(info.model_dump(), sort_keys=True).encode()


def _parse_info(document: bytes, path: Path | str) -> DatasetInfo:
    try:
        version = json.loads(document)["schema_version"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path}: the description of the data set is damaged: {error}") from None
    if version != SCHEMA_VERSION:
        raise ManifestError(f"{path}: expected schema version {SCHEMA_VERSION}, got {version!r}")
    try:
        return DatasetInfo.model_validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ManifestError(f"{path}: {where}: {first['msg']}, got {first['input']!r}") from None


def _content_sha256(info: DatasetInfo, rows: pa.Table) -> str:
    """Hash of the description as JSON and of every column's name, type, nulls and values, in this order.

    Numbers are hashed as little-endian arrays, strings as their lengths in bytes and then their UTF-8, lists
    as their lengths and then as their elements, nulls first.
    """
    digest = hashlib.sha256(_document(info))
    for field, column in zip(rows.schema, rows.columns, strict=True):
        array = column.combine_chunks()
        digest.update(f"\n{field.name}:{field.type}\n".encode())
        digest.update(array.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False))
        if pa.types.is_list(array.type):
            digest.update(_little(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)))
            array = array.flatten()
            digest.update(array.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False))
        if pa.types.is_string(array.type):
            digest.update(_little(pc.binary_length(array).to_numpy(zero_copy_only=False).astype("<i4")))
            everything = pa.ListArray.from_arrays(pa.array([0, len(array)], pa.int32()), array)
            digest.update(pc.binary_join(everything, "")[0].as_buffer())
        else:
            digest.update(_little(array.fill_null(0).to_numpy(zero_copy_only=False)))
    return digest.hexdigest()


def _little(values: np.ndarray) -> bytes:
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def _check_rows(rows: pa.Table, info: DatasetInfo) -> None:
    """Refuse rows of other columns than the description asks for, or that break `manifest_rules`."""
    if not len(rows):
        raise ManifestError("it lists no bags")
    wanted = rows_schema(info.task, named=feature_sets.COLUMN in rows.column_names).names
    if rows.schema.names != wanted:
        raise ManifestError(f"expected the columns {wanted}, got {rows.schema.names}")
    manifest_rules.check(rows, info)
