import multiprocessing
import os
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import (
    CLASSES,
    NUM_FEATURES,
    SLIDES,
    coords_of,
    forge_manifest,
    shard_folder,
    write_features,
)

from mhimdist.data import mapped_shards
from mhimdist.data.bags import bag_id
from mhimdist.data.format import escape_key
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, CorruptShard, DataError, ManifestError

pytestmark = pytest.mark.numeric


@pytest.fixture
def features(tmp_path: Path) -> dict[str, np.ndarray]:
    return write_features(tmp_path)


@pytest.fixture
def shards(tmp_path: Path, features: dict[str, np.ndarray]) -> Path:
    return shard_folder(tmp_path, name="small")


def flip(path: Path, offset: int) -> None:
    """Flip one bit of the byte at an offset of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_the_table_of_bags(shards: Path) -> None:
    bags = BagShards(shards)
    assert len(bags) == len(SLIDES)
    assert sorted(bags.slides) == sorted(SLIDES)
    assert bags.keys == tuple(map(escape_key, bags.slides))
    number = [SLIDES.index(slide) for slide in bags.slides]
    assert bags.cases == tuple(f"case {i // 2}" for i in number)
    assert bags.labels_N.tolist() == [i % 2 for i in number]
    assert bags.sizes_N.tolist() == [3 + 2 * i for i in number]
    assert bags.ids_N.tolist() == [bag_id(key) for key in bags.keys]
    assert {array.dtype for array in (bags.labels_N, bags.sizes_N, bags.ids_N)} == {np.dtype(np.int64)}
    assert (bags.name, bags.classes, bags.num_features) == ("small", CLASSES, NUM_FEATURES)
    assert bags.digest == Manifest.read(shards).content_sha256


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_load_packs_the_rows_in_the_order_asked_for(
    stored: str, dtype: torch.dtype, tmp_path: Path, features: dict[str, np.ndarray]
) -> None:
    bags = BagShards(shard_folder(tmp_path, dtype=stored))
    rows = [4, 0, 5, 0]
    batch = bags.load(rows, dtype)
    expected = torch.cat([torch.from_numpy(features[bags.slides[row]]) for row in rows])
    assert batch.features_TD.dtype == dtype
    assert torch.equal(batch.features_TD, expected.to(dtype))
    assert batch.offsets_B1.tolist() == [0, *np.cumsum(bags.sizes_N[rows])]
    assert batch.labels_B.tolist() == bags.labels_N[rows].tolist()
    assert batch.ids_B.tolist() == bags.ids_N[rows].tolist()
    assert batch.keys == tuple(bags.keys[row] for row in rows)
    for row in range(len(bags)):
        assert torch.equal(
            bags.load([row], dtype).features_TD, torch.from_numpy(features[bags.slides[row]]).to(dtype)
        )


def test_a_batch_of_no_bags(shards: Path) -> None:
    batch = BagShards(shards).load([])
    assert batch.features_TD.shape == (0, NUM_FEATURES)
    assert batch.offsets_B1.tolist() == [0]
    assert len(batch) == 0


def test_one_bag_in_its_stored_dtype_is_not_copied(shards: Path) -> None:
    bags = BagShards(shards)
    first, second = (bags.load(np.array([2]), torch.float16).features_TD for _ in range(2))
    assert first.data_ptr() == second.data_ptr()
    assert first.data_ptr() % 64 == 0
    assert bags.load([2, 2], torch.float16).features_TD.data_ptr() != first.data_ptr()


def test_the_files_stay_as_they_are_when_features_are_overwritten(shards: Path) -> None:
    before = {path: path.read_bytes() for path in shards.iterdir()}
    BagShards(shards).load([0], torch.float16).features_TD.zero_()
    assert {path: path.read_bytes() for path in shards.iterdir()} == before


def test_a_given_buffer_is_filled(shards: Path) -> None:
    bags = BagShards(shards)
    buffer = torch.full((100, NUM_FEATURES), torch.nan)
    batch = bags.load([1, 3], out=buffer)
    assert batch.features_TD.data_ptr() == buffer.data_ptr()
    assert torch.equal(batch.features_TD, bags.load([1, 3]).features_TD)
    for bad in (buffer[:5], buffer.double(), buffer[:, 1:]):
        with pytest.raises(DataError, match=r"out: expected torch\.float32, at least \d+ x 8, got"):
            bags.load([1, 3], out=bad)


def test_side_arrays(shards: Path) -> None:
    bags = BagShards(shards)
    for row, slide in enumerate(bags.slides):
        coords, instance_labels = bags.coords(row), bags.instance_labels(row)
        if SLIDES.index(slide) % 2:
            size = int(bags.sizes_N[row])
            assert coords.dtype == np.int32
            assert np.array_equal(coords, coords_of(size))
            assert instance_labels.dtype == np.uint8
            assert np.array_equal(instance_labels, np.arange(size) % 2)
            assert not coords.flags.writeable
            assert not instance_labels.flags.writeable
        else:
            assert coords is None
            assert instance_labels is None


def test_rows_of_keys(shards: Path) -> None:
    bags = BagShards(shards)
    rows = bags.rows_of([bags.keys[3], bags.keys[0]])
    assert rows.tolist() == [3, 0]
    assert rows.dtype == np.int64
    with pytest.raises(DataError, match=r"has no bag 'nobody' \(1 of 2 unknown\)"):
        bags.rows_of([bags.keys[0], "nobody"])


@pytest.mark.parametrize("row", [-1, len(SLIDES), 10**9])
def test_rows_out_of_range_are_refused(row: int, shards: Path) -> None:
    bags = BagShards(shards)
    for read in (lambda: bags.load([0, row]), lambda: bags.coords(row), lambda: bags.instance_labels(row)):
        with pytest.raises(DataError, match=rf"has rows 0 to {len(SLIDES) - 1}, got {row}"):
            read()


def test_an_unknown_way_to_verify_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match="verify: expected 'first_read' or 'never', got 'always'"):
        BagShards(shards, verify="always")


def test_pickled_it_is_only_its_path(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)
    bags = BagShards("shards", verify="never")
    expected = bags.load([0, 1]).features_TD
    data = pickle.dumps(bags)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert copy.verify == "never"
    assert torch.equal(copy.load([0, 1]).features_TD, expected)


def _sum_in_child(bags: BagShards, connection) -> None:
    connection.send([float(bags.load([row]).features_TD.sum()) for row in range(len(bags))])


def test_a_forked_process_reads_on(shards: Path) -> None:
    bags = BagShards(shards)
    expected = [float(bags.load([row]).features_TD.sum()) for row in range(len(bags))]
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(target=_sum_in_child, args=(bags, there))
    child.start()
    assert here.poll(300)
    assert here.recv() == expected
    child.join(300)
    assert child.exitcode == 0


def test_threads_read_together(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_shards, "MAX_OPEN_SHARDS", 1)
    bags = BagShards(shards)
    expected = [BagShards(shards).load([row]).features_TD for row in range(len(bags))]
    rows = np.random.default_rng(0).integers(len(bags), size=400)
    with ThreadPoolExecutor(8) as pool:
        for row, batch in zip(rows, pool.map(lambda row: bags.load([row]), rows), strict=True):
            assert torch.equal(batch.features_TD, expected[row])


def test_only_so_many_shards_stay_mapped(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_shards, "MAX_OPEN_SHARDS", 2)
    bags = BagShards(shards)
    kept = [bags.load([row], torch.float16).features_TD for row in range(len(bags))]
    assert len(bags._mapped._maps) == 2
    # Tensors that were handed out outlive their map.
    fresh = BagShards(shards)
    assert all(
        torch.equal(tensor, fresh.load([row], torch.float16).features_TD) for row, tensor in enumerate(kept)
    )


@pytest.mark.faults(1)
@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_caught_on_first_read(seed: int, shards: Path) -> None:
    bags = BagShards(shards)
    generator = np.random.default_rng(seed)
    row = Manifest.read(shards).rows.to_pylist()[int(generator.integers(len(bags)))]
    kinds = [kind for kind in ("features", "coords", "instance_labels") if row[f"{kind}_bytes"]]
    kind = str(generator.choice(kinds))
    flip(shards / row["shard"], row[f"{kind}_offset"] + int(generator.integers(row[f"{kind}_bytes"])))
    number = bags.keys.index(row["key"])
    read = {
        "features": lambda: bags.load([number]),
        "coords": lambda: bags.coords(number),
        "instance_labels": lambda: bags.instance_labels(number),
    }[kind]
    for _ in range(2):  # a failed check does not count as passed
        with pytest.raises(CorruptShard, match=rf"{row['shard']}: {row['key']}\.{kind}\.npy: "):
            read()


def test_a_member_is_checked_once(shards: Path) -> None:
    row = Manifest.read(shards).rows.to_pylist()[0]
    bags = BagShards(shards)
    bags.load([0])
    state = (shards / row["shard"]).stat()
    flip(shards / row["shard"], row["features_offset"] + 130)
    # As if nobody had written to it: what has changed is checked again.
    os.utime(shards / row["shard"], ns=(state.st_atime_ns, state.st_mtime_ns))
    bags.load([0])
    BagShards(shards, verify="never").load([0])
    with pytest.raises(CorruptShard, match=r"expected crc32 [0-9a-f]{8}, got [0-9a-f]{8}"):
        BagShards(shards).load([0])


def test_an_array_header_that_disagrees_is_caught_where_the_crc32_does_not(shards: Path) -> None:
    row = Manifest.read(shards).rows.to_pylist()[0]
    path = shards / row["shard"]
    payload = slice(row["features_offset"], row["features_offset"] + row["features_bytes"])
    content = bytearray(path.read_bytes())
    content[payload] = content[payload].replace(b"'<f2'", b"'|O2'")
    path.write_bytes(content)
    crc32 = zlib.crc32(content[payload])
    forge_manifest(shards, rows=lambda rows: rows[0].update(features_crc32=crc32))
    with pytest.raises(CorruptShard, match=r"expected the header of an array of \(\d+, 8\) float16"):
        BagShards(shards).load([0])


@pytest.mark.faults(4)
def test_shards_that_are_not_those_of_the_manifest_are_listed_together(shards: Path) -> None:
    (shards / "shard-000000.tar").rename(shards / "shard-000007.tar")
    (shards / "shard-000001.tar").write_bytes(b"")
    with pytest.raises(ManifestError) as error_info:
        BagShards(shards)
    message = str(error_info.value)
    assert "shard-000000.tar: missing" in message
    assert "shard-000001.tar: expected " in message
    assert "shard-000007.tar: not in the manifest" in message


@pytest.mark.faults(3)
def test_a_shard_cut_off_after_opening_is_refused_before_it_is_mapped(shards: Path) -> None:
    bags = BagShards(shards)
    for path in shards.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(CorruptShard, match=r"shard-\d+\.tar: expected \d+ bytes, got 0"):
        bags.load([0])
