"""A received data set's list of arriving shards moves and deletes nothing but shards."""

from pathlib import Path

import pytest
from feature_folders import shard_folder, write_features

from data_prep.shard import shard
from mhimdist.data.shards import BagShards
from mhimdist.errors import ManifestError


@pytest.mark.faults(40)
@pytest.mark.parametrize("name", ["../my-other-data-set", "manifest.parquet", "/etc/passwd", "..", ""])
def test_a_forged_list_of_arriving_shards_deletes_nothing(tmp_path: Path, name: str) -> None:
    write_features(tmp_path)
    out = shard_folder(tmp_path)
    mine = tmp_path / "my-other-data-set"
    mine.mkdir()
    (mine / "years of work").write_text("42")
    (out / ".arriving").write_text(f"{name}\n")
    for _ in range(2):
        with pytest.raises(ManifestError, match=r"\.arriving: expected names of shards, got"):
            shard(tmp_path / "features", tmp_path / "labels.csv", out, append=True)
    assert (mine / "years of work").read_text() == "42"
    assert (out / "manifest.parquet").exists()
    with pytest.raises(ManifestError, match=r"expected names of shards"):
        BagShards(out)
