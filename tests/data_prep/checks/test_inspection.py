from functools import partial
from pathlib import Path

import numpy as np
import pytest
from feature_folders import forge_manifest, shard_folder, write_features
from PIL import Image

from data_prep.checks import inspection
from data_prep.checks.inspection import BagValues, inspect
from data_prep.inspect import main
from data_prep.shard import shard
from mhimdist.errors import ManifestError
from mhimdist.process import run

pytestmark = pytest.mark.numeric


@pytest.fixture
def features() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    bags = {f"s{i}": generator.standard_normal((5 + 40 * i, 6)).astype(np.float32) for i in range(5)}
    return bags | {
        "same": bags["s1"].copy(),
        "flat": np.full((9, 6), 0.5),
        "rows": np.tile(np.arange(6.0), (8, 1)),
    }


@pytest.fixture
def shards(features: dict[str, np.ndarray], tmp_path: Path) -> Path:
    (tmp_path / "features").mkdir()
    for slide, values in features.items():
        np.save(tmp_path / f"features/{slide}.npy", values)
    lines = [f"{slide},{'ab'[i % 2]},case {i // 2}" for i, slide in enumerate(features)]
    (tmp_path / "labels.csv").write_text("\n".join(["slide,label,case", *lines]))
    return shard_folder(tmp_path, dtype="float32", shard_bytes=6000, description="noise")


@pytest.mark.parametrize("block_bytes", [24, 100, 2**22])
def test_values_are_those_of_the_features(
    block_bytes: int, shards: Path, features: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "BLOCK_BYTES", block_bytes)
    read = []
    found = inspect(shards, workers=2, on_bytes=read.append)
    assert sum(read) == sum(found.manifest.rows["features_bytes"].to_pylist())
    for slide, values in zip(found.manifest.rows["slide"].to_pylist(), found.values, strict=True):
        expected = features[slide].astype(np.float64)
        assert values.mean == pytest.approx(expected.mean(), abs=1e-6)
        assert values.deviation == pytest.approx(expected.std(), abs=1e-6)
        assert (values.lowest, values.highest) == (expected.min(), expected.max())
        assert (values.num_bad, values.constant) == (0, slide in ("flat", "rows"))


def test_odd_bags_are_named(shards: Path) -> None:
    odd = dict(inspect(shards).odd)
    assert odd.pop("flat") == "all of its 9 instances are the same"
    assert odd.pop("rows") == "all of its 8 instances are the same"
    assert odd in ({"same": "has the same features as 's1'"}, {"s1": "has the same features as 'same'"})
    assert dict(inspect(shards, values=False).odd) == odd


def test_a_bag_of_another_scale_is_odd(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    values = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    for slide, scale in {"a": 1, "b": 2, "c": 1, "d": 30, "e": 0.01}.items():
        np.save(tmp_path / f"features/{slide}.npy", scale * values)
    (tmp_path / "labels.csv").write_text("\n".join(f"{slide},x" for slide in "abcde"))
    odd = dict(inspect(shard_folder(tmp_path)).odd)
    assert odd.keys() == {"d", "e"} | (odd.keys() & {"a", "c"})  # the features of those two are the same
    for slide, scale in (("d", 30), ("e", 0.01)):
        assert odd[slide].startswith(
            f"standard deviation {scale * values.std():.3g}; that of the median bag is "
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_that_became_bad_after_sharding_are_counted(dtype: str, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features/a.npy", np.array([[1, 2], [3, 4], [5, 6]], np.float32))
    (tmp_path / "labels.csv").write_text("a,x\n")
    shard(tmp_path / "features", tmp_path / "labels.csv", tmp_path / "out", dtype=dtype)
    row = inspect(tmp_path / "out").manifest.rows.to_pylist()[0]
    itemsize = 4 if dtype == "float32" else 2
    with (tmp_path / "out" / row["shard"]).open("r+b") as file:
        file.seek(row["features_data_offset"] + itemsize)
        file.write(b"\xff" * itemsize)  # a NaN in every type
    found = inspect(tmp_path / "out")
    assert found.values == [BagValues(19 / 5, pytest.approx(np.std([1, 3, 4, 5, 6])), 0.0, 6.0, 1, False)]
    assert found.odd == [("a", "1 of its features are NaN or infinite")]


def test_the_command(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = tmp_path / "p.png"
    run(partial(main, [str(shards), "--picture", str(picture)]))
    text = capsys.readouterr().out
    lines = {line.split("  ")[1].strip(): line for line in text.splitlines() if line.startswith("  ")}
    assert "shards: noise" in text
    assert "8 of 4 cases, 4 of them with more than one" in lines["bags"]
    assert "487 (5 to 165 per bag, median 45)" in lines["instances"]
    assert "6 wide, float32" in lines["features"]
    assert "unknown" in lines["encoder"]
    assert lines["odd bags"].split() == ["odd", "bags", "3"]
    assert "all of its 9 instances are the same" in text
    with Image.open(picture) as image:
        assert image.size == (1430, 975)
        assert len(image.convert("RGB").getcolors(10**6)) > 20


def test_the_command_without_reading(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "bag_values", lambda *_: pytest.fail("read"))
    run(partial(main, [str(shards), "--quick", "--picture", str(tmp_path / "p.svg")]))
    assert "1 (values not read)" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "p.svg").read_text()


def test_many_classes_and_an_ending_that_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_features(tmp_path)
    out = shard_folder(tmp_path)
    forge_manifest(out, info=lambda info: info.update(classes=[*info["classes"], *"cdefgh"]))
    run(partial(main, [str(out), "--picture", str(tmp_path / "p.png")]))
    with pytest.raises(SystemExit):
        run(partial(main, [str(out), "--picture", str(tmp_path / "p.xyz")]))
    assert "p.xyz: expected a picture" in capsys.readouterr().err


def test_what_is_no_data_set(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest at"):
        inspect(tmp_path)
    (shards / "shard-000000.tar").unlink()
    with pytest.raises(ManifestError, match=r"not hold the shards of its manifest: shard-000000\.tar: m"):
        inspect(shards)
