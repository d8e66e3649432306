"""Remote stores without credentials or network: an error in time, and no abort of the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPEN = """
import sys
from mhimdist.data.shards import BagShards
from mhimdist.process import run
run(lambda: BagShards(sys.argv[1]))
"""


@pytest.mark.faults(48)
@pytest.mark.slow
@pytest.mark.parametrize(
    "url", ["abfs://data@account.dfs.core.windows.net/shards", "gs://bucket/shards?sig=s3cret"]
)
def test_a_store_that_does_not_answer_is_named(url: str, tmp_path: Path) -> None:
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AZURE_", "GOOGLE_", "GCE_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", OPEN, url],
        env={**env, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {url.partition('?')[0]}")
    assert "s3cret" not in done.stderr
