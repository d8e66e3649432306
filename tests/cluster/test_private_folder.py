"""The private folder of a cluster: locked while its owner lives, removed by the next one after a kill."""

import subprocess
import sys
from pathlib import Path

import pytest

from mhimdist.cluster.children import private_folder

HOLD = """
import time
from mhimdist.cluster import children
children.MAX_TEMP_ROOT_BYTES = 1000
with children.private_folder() as folder:
    (folder / "log").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("tempfile.tempdir", str(root))
    monkeypatch.setattr("mhimdist.cluster.children.MAX_TEMP_ROOT_BYTES", 1000)
    return root


def holding(root: Path) -> tuple[subprocess.Popen[str], Path]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env={"TMPDIR": str(root)}
    )
    assert holder.stdout is not None
    return holder, Path(holder.stdout.readline().strip())


def test_it_is_private_and_goes_at_the_end(root):
    with private_folder() as folder:
        assert folder.parent == root
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "token").touch()
    assert list(root.iterdir()) == []


def test_the_next_owner_removes_what_a_killed_one_left_and_nothing_else(root):
    for other in ("mhim-1000", "mhim-abc", "mine"):
        (root / other).mkdir()
    living, its = holding(root)
    killed, left = holding(root)
    killed.kill()
    killed.wait()
    assert (left / "log").exists()
    with private_folder() as folder:
        assert not left.exists()
        assert {path.name for path in root.iterdir()} == {
            *("mhim-1000", "mhim-abc", "mine", its.name, folder.name)
        }
    living.kill()
    living.wait()
    for process in (living, killed):
        process.stdout.close()


def test_what_another_user_left_stays(root, monkeypatch):
    living, its = holding(root)
    living.kill()
    living.wait()
    living.stdout.close()
    monkeypatch.setattr("os.geteuid", lambda: 4711)  # as another user
    with private_folder():
        assert its.exists()
