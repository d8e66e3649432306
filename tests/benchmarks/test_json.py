"""What the benchmarks print with `--json`, at sizes that say nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def _json(name: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, f"benchmarks/{name}.py", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_train_step():
    pytest.importorskip("torchmil", reason="the benchmark of a step wants torchmil, of the extra bench")
    found = _json("train_step", "--instances", "300", "--rounds", "1")
    assert (found["model"], found["instances"], found["dtype"]) == ("abmil", 300, "float32")
    for ratio in ("naive", "torchmil", "optimiser", "optimiser_alone"):
        assert found[f"ratio_{ratio}"] > 0
    assert 0 < found["naive_gemm_share"] < 1
    assert set(found["ms"]) == {"ours", "naive", "torchmil"}
    for name in ("ours", "naive"):
        parts = found["parts_ms"][name]
        assert {"teacher", "backward", "optimiser", "average"} < set(parts)
        assert sum(parts.values()) == pytest.approx(found["ms"][name], rel=0.5)


@pytest.mark.slow
def test_prediction():
    found = _json("prediction", "--slides", "4", "--rounds", "1")
    assert (found["slides"], found["rounds"]) == (4, 1)
    for name in ("shards", "files", "plain"):
        assert found["slides_per_s"][name] > 0
        assert found["peak_rss_anon_mib"][name] < 1024
    assert found["ratio_shards"] > 0 < found["ratio_files"]
    assert found["largest_difference"] < 1e-5


def test_masking():
    found = _json("masking", "--instances", "300", "--bags", "1", "2", "--rounds", "1")
    assert [(r["instances"], r["bags"], r["heads"]) for r in found["races"]] == [
        (300, bags, heads) for heads in (1, 8) for bags in (1, 2)
    ]
    assert all(race["ratio"] > 0 for race in found["races"])
    assert found["ratio_naive"] is found["ratio_naive_heads"] is None  # no bag of 9,000


@pytest.mark.slow
def test_layers():
    found = _json("layers", "--instances", "300", "--dtype", "bfloat16", "--rounds", "1")
    assert len({race["layer"] for race in found["races"]}) == len(found["races"]) == 7
    for race in found["races"]:
        assert (race["instances"], race["dtype"]) == (300, "bfloat16")
        assert set(race["ms"]) == {"ours", "torch"}
        assert race["ratio"] > 0
    assert [each["layer"] for each in found["memory"]] == ["landmarks gather", "tokens gather"]
    assert all(set(each["peak_mb"]) == {"ours", "torch", "plain"} for each in found["memory"])


@pytest.mark.slow
def test_memory():
    found = _json("memory", "--instances", "300")
    assert set(found["peak_mb"]) == {"naive", "ours float32", "ours bfloat16"}
    assert found["share_of_naive"]["naive"] == 1.0


@pytest.mark.kernels
def test_kernels():
    pytest.importorskip("triton", reason="the kernels want triton, of the extra dev")
    found = _json("kernels")
    assert found["bytes"] == sum(part["bytes"] for part in found["parts"].values())
    assert found["launches"] > found["launches_of_ours"] > 0
    features = found["instances"] * 1024 * 2
    assert found["parts"]["teacher: projection (cuBLAS)"]["bytes"] > features
    assert found["parts"]["teacher: ReLU"]["bytes"] == features  # half as wide, read and written
    assert found["floor_us"] > found["bytes"] / 3.35e6


@pytest.mark.slow
def test_scaling():
    found = _json("scaling", "--instances", "20", "--rounds", "1")
    assert list(found["one_worker_ms"]) == ["1", "2", "4", "8", "16"]
    assert list(found["two_workers_ms"]) == list(found["speed_up_of_two"]) == ["2", "4", "8", "16"]
    assert found["hop_ms"] > 0
    # Hops make ever more workers slower in the end.
    per_s = {workers: speeds["1"] for workers, speeds in found["calculated_bags_per_s"].items()}
    assert list(per_s) == [str(1 << power) for power in range(11)]
    step_ms = {int(workers): 1e3 * int(workers) / speed for workers, speed in per_s.items()}
    added_ms = step_ms[1024] - step_ms[512]
    assert added_ms == pytest.approx(2 * 512 * found["hop_ms"], rel=0.2)
