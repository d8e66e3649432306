"""Data that change while they are read: an error of ours, and neither a signal nor other bags."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from feature_folders import shard_folder, write_features

from mhimdist.data.manifest import Manifest
from mhimdist.data.opening import open_bags
from mhimdist.data.shards import BagShards
from mhimdist.errors import CorruptShard, ManifestError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return shard_folder(tmp_path)


READ = """
import os, sys
from pathlib import Path
from mhimdist.data.shards import BagShards
from mhimdist.process import run
def main():
    bags = BagShards(Path(sys.argv[1]), verify=sys.argv[2])
    for row in range(len(bags)):
        bags.load([row], bags.dtype)
    for path in Path(sys.argv[1]).glob("*.tar"):
        os.truncate(path, 512)
    bags.load([int(sys.argv[3])])
run(main)
"""


@pytest.mark.faults(3, 41)
@pytest.mark.parametrize("verify", ["first_read", "never"])
def test_a_mapped_shard_that_is_cut_is_an_error_and_no_signal(verify: str, shards: Path) -> None:
    row = len(Manifest.read(shards).rows) - 1
    done = subprocess.run(
        [sys.executable, "-c", READ, shards, verify, str(row)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, (done.returncode, -signal.SIGBUS, done.stderr)
    assert done.stderr.startswith(f"error: {shards}/shard-0000")
    assert "bytes, got 512" in done.stderr


@pytest.mark.faults(41)
def test_a_shard_that_is_overwritten_after_its_check_is_checked_again(shards: Path) -> None:
    bags = BagShards(shards)
    for row in range(len(bags)):
        bags.load([row])
    first = Manifest.read(shards).rows.to_pylist()[0]
    with (shards / first["shard"]).open("r+b") as file:
        file.seek(first["features_data_offset"])
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(CorruptShard, match="expected crc32"):
        bags.load([0])


def test_a_shard_that_is_only_touched_is_read_on(shards: Path) -> None:
    bags = BagShards(shards)
    before = bags.load([0]).features_TD.clone()
    for path in shards.glob("*.tar"):
        os.utime(path)
    assert bags.load([0]).features_TD.equal(before)
    assert sum(bags._mapped.changes.values()) == 1


def swap(shards: Path) -> None:
    """Put a data set of the same slides with other features in the place of this one."""
    other = shards.parent / "other"
    other.mkdir()
    write_features(other, seed=1)
    made = shard_folder(other)
    shards.rename(shards.with_name("before"))
    made.rename(shards)


@pytest.mark.faults(41)
def test_another_process_compares_the_digest(shards: Path) -> None:
    bags = BagShards(shards)
    sent = pickle.dumps(bags)
    assert pickle.loads(sent).digest == bags.digest
    swap(shards)
    with pytest.raises(ManifestError, match=rf"has changed since .*: expected the data set {bags.digest}"):
        pickle.loads(sent)
    with pytest.raises(ManifestError, match="has changed since"):
        open_bags(shards, digest=bags.digest)
    assert open_bags(shards).digest != bags.digest


def test_samples_are_read_from_a_shard_as_it_is_now(shards: Path) -> None:
    bags = BagShards(shards)
    instances = [np.array([1, 3])]
    before = bags.scattered([0], instances, bags.dtype)
    first = Manifest.read(shards).rows.to_pylist()[0]
    with (shards / first["shard"]).open("r+b") as file:
        file.seek(first["features_offset"])
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(CorruptShard, match="expected the header of an array"):
        bags.scattered([0], instances, bags.dtype)
    with (shards / first["shard"]).open("r+b") as file:
        file.seek(first["features_offset"])
        file.write(b"\x93NUM")
    assert bags.scattered([0], instances, bags.dtype).equal(before)
    os.truncate(shards / first["shard"], 512)
    with pytest.raises(CorruptShard, match="bytes, got 512"):
        bags.scattered([0], instances, bags.dtype)
