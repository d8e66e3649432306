import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import loading

pytestmark = pytest.mark.long


# webdataset leaves the tar open.
@pytest.mark.filterwarnings(r"ignore:Exception ignored in.*\.tar:pytest.PytestUnraisableExceptionWarning")
def test_loading_against_its_peers(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(loading, "NUM_FEATURES", 8)
    monkeypatch.setattr(loading, "TURN_S", 0.01)
    asked = []
    run = subprocess.run

    def in_this_process(command: list[str], **options: Any) -> Any:
        if "--memory-of" not in command:  # the loaders start processes of their own
            return run(command, **options)
        asked.append(command[-1])
        peak = loading.peak_rss_anon(loading.loaders(Path(command[4]))[command[-1]])
        return SimpleNamespace(stdout=json.dumps(max(peak, 1 << 20)))

    monkeypatch.setattr(subprocess, "run", in_this_process)
    monkeypatch.setattr(
        sys, "argv", ["loading", "--json", "--bags", "6", "--rounds", "1", "--folder", str(tmp_path)]
    )
    loading.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [loading.OURS, *loading.PEERS, loading.IN_TURN, "DALI", "chunked h5", "cache=ram"]
    assert asked == names
    assert list(result["bags_per_s"]) == list(result["peak_rss_anon_mib"])
    assert set(result["bags_per_s"]) == set(names)
    assert all(rate > 0 for rate in result["bags_per_s"].values())
    assert (result["num_bags"], result["rounds"]) == (6, 1)
    ratios = (
        "ratio_torch_load",
        "ratio_webdataset",
        "rss_anon_ratio_torch_load",
        "rss_anon_ratio_webdataset",
    )
    assert all(result[name] > 0 for name in (*ratios, "first_epoch_bags_per_s"))
    assert set(result["first_epoch"]) == {"warm", "cold"}
    assert all(ratio > 0 for each in result["first_epoch"].values() for ratio in each.values())
    assert result["first_epoch_ratio_torch_load"] == result["first_epoch"]["warm"]["ratio_torch_load"]
    readers = {loading.OURS, loading.IN_TURN}
    ratios_of_both = {f"ratio_read_ahead{end}" for end in ("", "_low", "_high")}
    both = readers | {f"step_ms: {name}" for name in readers} | ratios_of_both
    more = {"DALI", "cache=ram"}
    assert set(result["one_core"]) == both | more | {f"step_ms: {name}" for name in more}
    assert result["one_core"] == result["with_a_step"]["one core"]["later"]["processor"]
    assert set(result["with_a_step"]) == {"one core", "all cores, one thread", "all cores"}
    for kinds in result["with_a_step"].values():
        assert set(kinds) == {"first", "cold", "later"}
        for clocks in kinds.values():
            assert set(clocks) == {"wall", "processor"}
            assert all(both <= set(rates) and min(rates.values()) > 0 for rates in clocks.values())
