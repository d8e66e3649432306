"""A sample of each bag: which instances, from where, and how many bytes it takes."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from case_shards import case_shards
from memory_bags import gaussian_bags

from mhimdist.config.train import Loading, load_config
from mhimdist.data.bags import BagSource
from mhimdist.data.cases import CaseBags
from mhimdist.data.format import NPY_HEADER_BYTES
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.remote import RemoteFolder
from mhimdist.data.resident import resident
from mhimdist.data.scattered import PAGE_BYTES
from mhimdist.data.shard_cache import ShardCache
from mhimdist.data.shards import BagShards
from mhimdist.data.sub_bags import SampleSize, SubBags, trained_on, whole_bags
from mhimdist.errors import CorruptShard
from mhimdist.ops.draws import Draws

pytestmark = pytest.mark.numeric
SIZE = SampleSize(most=10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case_shards(tmp_path_factory.mktemp("sub"))[0]


def test_sizes() -> None:
    sizes_N = np.array([1, 9, 10, 11, 1000])
    assert SampleSize(10).of_bags(sizes_N).tolist() == [1, 9, 10, 10, 10]
    assert SampleSize(share=0.1).of_bags(sizes_N).tolist() == [1, 1, 1, 2, 100]
    assert SampleSize(10, 0.3).of_bags(sizes_N).tolist() == [1, 3, 3, 4, 10]
    assert SampleSize.of(load_config({})) is None
    assert SampleSize.of(load_config({"instances_share": 0.5})) == SampleSize(None, 0.5)
    whole = gaussian_bags(4)
    assert trained_on(whole, load_config({})) is whole
    assert whole_bags(whole) is whole_bags(trained_on(whole, load_config({"instances_per_bag": 3}))) is whole


def test_a_sample_depends_on_seed_epoch_and_bag_alone(shards: Path) -> None:
    whole = BagShards(shards)
    drawn = {
        (seed, epoch): [SubBags(whole, SIZE, Draws(seed, epoch)).instances(row) for row in range(len(whole))]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    for each in drawn.values():
        for row, chosen in enumerate(each):
            assert len(set(chosen.tolist())) == len(chosen) == min(10, whole.sizes_N[row])
            assert (np.diff(chosen) > 0).all()
            assert 0 <= chosen[0] <= chosen[-1] < whole.sizes_N[row]
    texts = {str(each) for each in drawn.values()}
    assert len(texts) == 4
    sub = SubBags(whole, SIZE, Draws(1, 1))
    for rows in ([4, 2, 7], [7], [2, 4]):
        packed = sub.load(rows)
        for row, part_KD in zip(rows, packed.features_TD.split(packed.sizes()), strict=True):
            assert torch.equal(part_KD, whole.load([row]).features_TD[drawn[1, 1][row]])
        assert packed.ids_B.tolist() == whole.ids_N[rows].tolist()
        assert packed.keys == tuple(whole.keys[row] for row in rows)
        assert packed.labels_B.tolist() == whole.labels_N[rows].tolist()


def test_every_instance_is_drawn_equally_often() -> None:
    bags, counts_N = gaussian_bags(1), None
    num_epochs, num_all = 3000, int(bags.sizes_N[0])
    for epoch in range(num_epochs):
        chosen = SubBags(bags, SIZE, Draws(5, epoch)).instances(0)
        counts_N = np.bincount(chosen, minlength=num_all) + (0 if counts_N is None else counts_N)
    share = 10 / num_all
    deviations = (counts_N - num_epochs * share) / math.sqrt(num_epochs * share * (1 - share))
    assert np.abs(deviations).max() < 4


@pytest.mark.parametrize("loading", [Loading(), Loading(read_ahead=False), Loading(reader="dali")])
@pytest.mark.parametrize("cache", ["none", "ram", "device"])
@pytest.mark.parametrize("of_cases", [False, True])
def test_every_reader_reads_the_same_samples(
    shards: Path, loading: Loading, cache: str, of_cases: bool
) -> None:
    if loading.reader == "dali":
        pytest.importorskip("nvidia.dali")
    whole: BagSource = CaseBags(BagShards(shards)) if of_cases else BagShards(shards)
    steps = [[1], [], [4, 0, 7], [2], [5, 6], *([row] for row in range(len(whole.keys)))]
    draws = Draws(3, 2)
    sub = SubBags(resident(whole, cache), SIZE, draws)
    plain = SubBags(whole, SIZE, draws)
    for dtype in (torch.float16, torch.float32):
        with read_ahead(sub, steps, dtype=dtype, loading=loading) as batches:
            for batch, rows in zip(batches, steps, strict=True):
                parts = [whole.load([row], dtype).features_TD[plain.instances(row)] for row in rows]
                expected_TD = torch.cat(parts) if parts else torch.empty(0, whole.num_features, dtype=dtype)
                assert torch.equal(batch.features_TD, expected_TD)
                assert batch.sizes() == tuple(plain.sizes_N[rows].tolist())


def test_bags_that_are_read_whole_only_are_sampled_after_it() -> None:
    whole = gaussian_bags(6)
    sub = SubBags(whole, SampleSize(share=0.25), Draws(0, 0))
    packed = sub.load([3, 1])
    expected = [whole.features[row][sub.instances(row)] for row in (3, 1)]
    assert torch.equal(packed.features_TD, torch.cat(expected))


def bytes_read(sub: SubBags, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes that the kernel hands out for a batch; a shard that is mapped would be an error."""
    total = []
    preadv, pread = os.preadv, os.pread

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        total.append(preadv(descriptor, buffers, offset))
        return total[-1]

    def header(*arguments: int) -> bytes:
        total.append(NPY_HEADER_BYTES)
        return pread(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", counted)
        patched.setattr(os, "pread", header)
        patched.setattr("mhimdist.data.mapped_shards.mmap.mmap", None)
        sub.load(rows)
    return sum(total)


def test_only_the_rows_of_the_sample_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "features").mkdir()
    lines = ["slide,label"]
    generator = np.random.default_rng(0)
    for i, size in enumerate((4000, 3000, 2500, 10)):
        features_ND = generator.standard_normal((size, 512)).astype(np.float16)
        np.save(tmp_path / "features" / f"s{i}.npy", features_ND)
        lines.append(f"s{i},{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    from data_prep.shard import shard

    shard(tmp_path / "features", tmp_path / "labels.csv", tmp_path / "shards")
    whole = BagShards(tmp_path / "shards")
    sub = SubBags(whole, SampleSize(most=200), Draws(0, 0))
    large = [row for row in range(4) if whole.sizes_N[row] > 10]
    row_bytes = 512 * 2
    most = 0
    for row in large:
        first = whole._members["features"]["offset"][row] + NPY_HEADER_BYTES + sub.instances(row) * row_bytes
        most += len({page for at in first for page in (at // PAGE_BYTES, (at + row_bytes - 1) // PAGE_BYTES)})
    read = bytes_read(sub, large, monkeypatch)
    headers = len(large) * NPY_HEADER_BYTES
    assert 3 * 200 * row_bytes + headers <= read <= most * PAGE_BYTES + headers
    assert read < 0.4 * whole.sizes_N.sum() * row_bytes
    again = bytes_read(sub, large, monkeypatch)
    assert again == read - headers  # the headers are checked once
    epochs = [SubBags(whole, SampleSize(most=200), Draws(0, epoch)) for epoch in (1, 2)]
    assert all(bytes_read(each, large, monkeypatch) <= 3 * 200 * 2 * PAGE_BYTES for each in epochs)


def test_a_damaged_header_is_found(shards: Path, tmp_path: Path) -> None:
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bags = BagShards(tmp_path)
    row = int(bags.sizes_N.argmax())
    path = tmp_path / bags._shards[row]
    content = bytearray(path.read_bytes())
    content[int(bags._members["features"]["offset"][row]) + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptShard, match=r"features\.npy: expected the header of an array of"):
        SubBags(bags, SIZE, Draws(0, 0)).load([row])
    trusting = BagShards(tmp_path, verify="never")
    assert len(SubBags(trusting, SIZE, Draws(0, 0)).load([row]).features_TD) == 10


def test_a_remote_shard_is_fetched_and_then_read_by_rows(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in shards.iterdir():
        files.pipe(f"/sub-bags/{path.name}", path.read_bytes())
    cache = ShardCache(tmp_path / "cache")
    remote = BagShards("memory://sub-bags", shard_cache=cache)
    fetched = []
    stream = RemoteFolder.stream
    monkeypatch.setattr(
        RemoteFolder, "stream", lambda folder, name: fetched.append(name) or stream(folder, name)
    )
    local, draws = BagShards(shards), Draws(2, 1)
    row = int(local.sizes_N.argmax())
    for _ in range(2):
        got = SubBags(remote, SIZE, draws).load([row])
        assert torch.equal(got.features_TD, SubBags(local, SIZE, draws).load([row]).features_TD)
    assert fetched == [local._shards[row]]
