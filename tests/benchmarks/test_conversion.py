import json
import sys

import pytest
import torch

from benchmarks import conversion
from mhimdist.data.devices import read_dtype


def test_every_conversion_is_timed(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        sys, "argv", ["conversion", "--json", "--rows", "30", "--features", "8", "--repeats", "2"]
    )
    conversion.main()
    torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["features"]) == (30, 8)
    # Both what a step on a GPU may need, and what is read for it instead.
    for stored in conversion.DTYPES:
        for dtype in (torch.float32, torch.bfloat16):
            for target in (dtype, read_dtype({stored}, dtype, "cuda")):
                names = (str(found).removeprefix("torch.") for found in (stored, target))
                assert result["ms"][" to ".join(names)] >= 0
    assert result["ms"]["float16 to float32 by numpy"] >= 0
    assert len(result["ms"]) == len(conversion.DTYPES) ** 2 + 1


def test_the_readers_way_is_raced_against_the_others(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    arguments = "--ways", "--json", "--rows", "200", "--repeats", "3"
    monkeypatch.setattr(sys, "argv", ["conversion", *arguments])
    conversion.main()
    torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out)
    names = {f"{who}, {what} memory" for who in ("torch", "numpy") for what in ("reused", "new")}
    assert set(result["bag"]) == set(result["in_cache"]) == names
    for each in (*result["bag"].values(), *result["in_cache"].values()):
        assert each["median_ms"] >= each["quickest_ms"] > 0
    assert result["cpu"]
    # More than a value per cycle: torch converts several at once. NumPy converts one by one.
    assert result["in_cache"]["torch, reused memory"]["values_per_ns"] > 2
