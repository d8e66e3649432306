"""Small members of shards, read by the manifest's offsets."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mhimdist.errors import CorruptShard


def describe_bag(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a bag's JSON member says, given its row of the manifest.

    Raises:
        CorruptShard: it is not what was written.
    """
    with (folder / row["shard"]).open("rb") as file:
        file.seek(row["json_offset"])
        content = file.read(row["json_bytes"])
    if (got := zlib.crc32(content)) != row["json_crc32"]:
        expected = row["json_crc32"]
        raise CorruptShard(
            f"{folder / row['shard']}: {row['key']}.json: expected crc32 {expected:08x}, got {got:08x}"
        )
    described = json.loads(content)
    if not isinstance(described, dict):
        raise CorruptShard(f"{folder / row['shard']}: {row['key']}.json: expected an object")
    return described
