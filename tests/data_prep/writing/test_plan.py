import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from forked import fork, limit_addresses, status_of

from data_prep.readers.folders import find_features
from data_prep.readers.sources import Source
from data_prep.shard import shard
from data_prep.tables.labels import SlideLabel
from data_prep.writing.plan import PlannedBag, plan_bags, plan_shards, write_shard
from mhimdist.data.manifest import Manifest
from mhimdist.errors import DataError


def planned(folder: Path, **slides: np.ndarray) -> list[PlannedBag]:
    for slide, features in slides.items():
        np.save(folder / f"{slide}.npy", features)
    labels = [SlideLabel(slide, slide, "x") for slide in slides]
    return plan_bags(labels, find_features(folder), ["x"], "float16", seed=0)[0]


def test_a_shard_takes_the_bytes_that_were_planned(tmp_path: Path) -> None:
    features = {"a": np.ones((3, 4)), "b" * 120: np.ones((50, 4)), "c": np.ones((1, 4))}
    bags = planned(tmp_path, **features)
    (plan,) = plan_shards(bags, 2**30)
    assert plan.num_bytes == sum(bag.tar_bytes for bag in bags)
    written = write_shard(plan, tmp_path)
    # A tar ends with two empty blocks, rounded up to 20 of them.
    assert written.shard.bytes == -(-(plan.num_bytes + 1024) // 10240) * 10240


def test_room_for_one_bag_at_least(tmp_path: Path) -> None:
    bags = planned(tmp_path, **{name: np.ones((10, 4)) for name in "abc"})
    each = bags[0].tar_bytes
    for shard_bytes, expected in (
        (1, [1, 1, 1]),
        (2 * each - 1, [1, 1, 1]),
        (2 * each, [2, 1]),
        (10**9, [3]),
    ):
        assert [len(plan.bags) for plan in plan_shards(bags, shard_bytes)] == expected
    assert [plan.name for plan in plan_shards(bags, 1, first=7)][:2] == [
        "shard-000007.tar",
        "shard-000008.tar",
    ]


def test_two_encoders_of_one_width_are_refused(tmp_path: Path) -> None:
    for slide, encoder in (("a", "uni"), ("b", "resnet50")):
        torch.save({"features": torch.ones(3, 4), "encoder": encoder}, tmp_path / f"{slide}.pt")
    labels = [SlideLabel(slide, slide, "x") for slide in "ab"]
    with pytest.raises(
        DataError, match=r"expected features of one encoder, got two: '.' is of '.*', '.' of '.*'"
    ):
        plan_bags(labels, find_features(tmp_path), ["x"], "float16", seed=0)


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    (plan,) = plan_shards(planned(tmp_path, a=np.ones((3, 4))), 2**30)
    np.save(tmp_path / "a.npy", np.ones((4, 4)))
    with pytest.raises(DataError, match=r"a\.npy: changed: expected 3 x 4, got 4 x 4"):
        write_shard(plan, tmp_path)
    assert not list(tmp_path.glob("*.tar*"))


def test_a_source_that_lost_its_coordinates_is_refused(tmp_path: Path) -> None:
    torch.save({"features": torch.ones(3, 4), "coords": torch.zeros(3, 2).long()}, tmp_path / "a.pt")
    bags, bad = plan_bags([SlideLabel("a", "a", "x")], find_features(tmp_path), ["x"], "float16", seed=0)
    (plan,) = plan_shards(bags, 2**30)
    assert (bad, "coords" in bags[0].num_bytes) == ([], True)
    torch.save({"features": torch.ones(3, 4)}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt: changed: expected coords, found none"):
        write_shard(plan, tmp_path)
    assert not list(tmp_path.glob("*.tar*"))


def test_a_plan_depends_on_the_sources(tmp_path: Path) -> None:
    (plan,) = plan_shards(planned(tmp_path, a=np.ones((3, 4))), 2**30)
    before = plan.digest()
    assert plan.digest() == before
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    assert plan.digest() != before


@pytest.mark.faults(11)
@pytest.mark.parametrize("place", [0, 299])
@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float16", np.nan, "1 of its features are NaN or infinite"),
        ("float16", -np.inf, "1 of its features are NaN or infinite"),
        ("float16", 65520.0, "a value of 65520 does not fit float16"),
        ("float16", -1e6, "a value of 1e.06 does not fit float16"),
        ("bfloat16", 3.4e38, "does not fit bfloat16"),
    ],
)
def test_bad_values_are_found_in_any_block(
    place: int, dtype: str, value: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.writing.plan.CHUNK_BYTES", 256)
    features = np.ones((300, 4), np.float32)
    features[place, 3] = value
    np.save(tmp_path / "a.npy", features)
    source = {"a": Source(tmp_path / "a.npy", "npy")}
    bags, _ = plan_bags([SlideLabel("a", "a", "x")], source, ["x"], dtype, seed=0)
    (plan,) = plan_shards(bags, 2**30)
    with pytest.raises(DataError, match=message):
        write_shard(plan, tmp_path)
    assert not list(tmp_path.glob("*.tar*"))


def test_the_largest_float16_is_kept(tmp_path: Path) -> None:
    (plan,) = plan_shards(planned(tmp_path, a=np.array([[65519.0, -65519.0]])), 2**30)
    assert write_shard(plan, tmp_path).shard.num_bags == 1


def shard_in_little_memory(room: int, said: Path, *folders: Path) -> list[str]:
    """What happens with each folder in a process that may take `room` further bytes of addresses."""
    for folder in folders:
        (folder / "labels.csv").write_text("a,x\n")

    def limited() -> None:
        limit_addresses(room)
        for folder in folders:
            try:
                shard(folder / "features", folder / "labels.csv", folder / "out", workers=1)
                print("written")
            except DataError as error:
                print(error)

    assert status_of(fork(limited, said)) == 0, said.read_text()
    return said.read_text().splitlines()


@pytest.mark.faults(14)
def test_a_giant_bag_needs_little_memory(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    # More than twice CAMELYON16's largest bag; a hole in a file costs nothing to write.
    np.lib.format.open_memmap(tmp_path / "features/a.npy", "w+", np.float32, (100_000, 1024)).flush()
    room = 4 * 100_000 * 1024 + 100 * 2**20  # the map of the file, and 100 MiB
    assert shard_in_little_memory(room, tmp_path / "said", tmp_path) == ["written"]
    assert Manifest.read(tmp_path / "out").info.shards[0].bytes > 2 * 100_000 * 1024


@pytest.mark.faults(9)
def test_bombs_are_refused_within_little_memory(tmp_path: Path) -> None:
    files = {name: tmp_path / name / f"features/a.{name}" for name in ("npy", "npz", "h5", "pt")}
    for path in files.values():
        path.parent.mkdir(parents=True)
    np.lib.format.open_memmap(files["npy"], "w+", np.float32, (2, 4)).flush()
    content = files["npy"].read_bytes()
    files["npy"].write_bytes(content.replace(b"(2, 4), }         ", b"(2000000000, 4), }"))
    np.savez_compressed(files["npz"], features=np.zeros((2**20, 64), np.float32))
    with h5py.File(files["h5"], "w") as file:
        file.create_dataset("features", (10**12, 1024), "f4", chunks=(1000, 1024), compression="gzip")
    torch.save(torch.zeros(1).expand(10**12, 1024), files["pt"])
    folders = (path.parents[1] for path in files.values())
    said = shard_in_little_memory(100 * 2**20, tmp_path / "said", *folders)
    for path, line, expected in zip(
        files.values(),
        said,
        (
            r"its header says \(2000000000, 4\) float32, 32000000128 bytes, but it has 160",
            "claims 268435584 bytes of features.npy, but stores",
            "claims 4096000000000000 bytes of features, but stores 0",
            "claims 1000000000000 x 1024 features, more than it stores",
        ),
        strict=True,
    ):
        assert re.match(f"{path}: {expected}", line)
        assert sorted(other.name for other in path.parents[1].iterdir()) == ["features", "labels.csv"]
