import json
from pathlib import Path

import h5py
import pytest

from benchmarks import sharding


@pytest.mark.slow
def test_sharding_against_cp(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sharding.main(["--json", "--gb", "0.03", "--rounds", "1", "--folder", str(tmp_path)])
    result = json.loads(capsys.readouterr().out)
    kinds, ways = ("", "_float16", "_h5", "_h5_gzip"), ("", "_synced", "_as_run")
    suffixes = [kind + way for kind in kinds for way in ways]
    against_cp = {name for name in result if name.startswith("ratio_cp")}
    assert against_cp == {f"ratio_cp{suffix}" for suffix in suffixes}
    slicing = {name: value for name, value in result.items() if name.startswith("ratio_slicing")}
    assert set(slicing) == {"ratio_slicing_h5", "ratio_slicing_h5_gzip"}
    assert all(ratio > 0 for ratio in slicing.values())
    assert set(result["runs"]) == {f"cp{suffix}" for suffix in suffixes}
    for kind in kinds:
        rates, stages = result["runs"][f"cp{kind}"], result["runs"][f"cp{kind}"]["stages"]
        assert result[f"processor_ratio_cp{kind}"] == round(rates["processor_ratio"], 3) > 0
        assert ("conversion" in stages) == (kind != "_float16")
        assert all(taken > 0 for taken in stages.values())
        *each, together = stages.values()
        assert together == pytest.approx(sum(each))
    for suffix in suffixes:
        rates = result["runs"][f"cp{suffix}"]
        assert result[f"ratio_cp{suffix}"] == round(rates["ratio"], 3) > 0
        assert rates["cp_gb_per_s"] > 0
        assert rates["shard_gb_per_s"] > 0
    assert not list(tmp_path.iterdir())


def test_the_table(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {
        "cp_gb_per_s": 2.0,
        "shard_gb_per_s": 1.0,
        "ratio": 0.5,
        "cp_core_s_per_gb": 0.3,
        "processor_ratio": 0.7,
        "stages": {"reading": 0.1, "sha256": 0.25, "all": 0.35},
    }
    labels = [kind + way for kind in sharding.SOURCES for way in sharding.WAYS]
    monkeypatch.setattr(sharding, "measure", lambda *_: dict.fromkeys(labels, rates))
    sharding.main([])
    header, *rows = capsys.readouterr().out.splitlines()
    *rows, _, title, floor, _, _, _ = rows
    assert title == "Seconds of one core per GB of sources, at least:"
    assert floor == "float32 .pt: reading 0.10, sha256 0.25, all 0.35; cp -r 0.30"
    assert header.split() == ["sources", "forced", "to", "disk", "cp", "-r", "shard", "ratio", "idle"]
    assert rows[0].split() == ["float32", ".pt", "neither", "2.00", "GB/s", "1.00", "GB/s", "0.50", "0.70"]
    assert [row[:30].rstrip() for row in rows[:: len(sharding.WAYS)]] == [
        "float32 .pt",
        "float16 .pt",
        "float32 .h5, chunks of a row",
        "the same by gzip",
    ]
    assert [row[30:46].strip() for row in rows] == ["neither", "both", "sharding"] * 4


def test_h5_files_are_as_clam_writes_them(tmp_path: Path) -> None:
    written = sharding.write_sources(tmp_path, 1, "_h5")
    (path,) = (tmp_path / "features").iterdir()
    assert path.stat().st_size == written
    with h5py.File(path) as file:
        features = file["features"]
        assert (features.chunks, features.compression, features.dtype) == ((1, 1024), None, "float32")
