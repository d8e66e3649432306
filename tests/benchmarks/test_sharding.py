import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_sharding_against_cp(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/sharding.py", "--json", "--gb", "0.05", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    for name in ("", "_synced", "_float16", "_float16_synced"):
        assert result[f"ratio_cp{name}"] > 0
    for rates in result["runs"].values():
        assert rates["cp_gb_per_s"] > 0
        assert rates["shard_gb_per_s"] > 0
    assert not list(tmp_path.iterdir())
