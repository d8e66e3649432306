"""Small members of shards, read at the offsets in the manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isal import isal_zlib

from mhimdist import files
from mhimdist.data.manifest import Manifest
from mhimdist.errors import CorruptShard


def describe_bag(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a bag's JSON member, given its row of the manifest.

    Raises:
        CorruptShard: the member differs from what was written.
    """
    with (folder / row["shard"]).open("rb") as file:
        file.seek(row["json_offset"])
        content = file.read(row["json_bytes"])
    if (got := isal_zlib.crc32(content)) != row["json_crc32"]:
        expected = row["json_crc32"]
        raise CorruptShard(
            f"{folder / row['shard']}: {row['key']}.json: expected crc32 {expected:08x}, got {got:08x}"
        )
    try:
        described = files.parse_json(content)
    except ValueError as error:
        raise CorruptShard(f"{folder / row['shard']}: {row['key']}.json cannot be read: {error}") from error
    if not isinstance(described, dict):
        raise CorruptShard(f"{folder / row['shard']}: {row['key']}.json: expected a JSON object")
    return described


def encoder_of(folder: Path, manifest: Manifest) -> str | None:
    """The encoder of a data set's features: that of the first bag that names one, None if none does.

    Raises:
        CorruptShard: a JSON member differs from what was written.
    """
    for batch in manifest.rows.to_batches(max_chunksize=64):
        for row in batch.to_pylist():
            if encoder := describe_bag(folder, row).get("encoder"):
                return encoder
    return None
