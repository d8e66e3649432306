"""Limits of control groups of both versions."""

from pathlib import Path

import pytest

from mhimdist.data import cgroups


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def write(folder: Path, **contents: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_version_2_takes_the_smallest_limit_on_the_way_up(tmp_path: Path, root: Path):
    (tmp_path / "own").write_text("0::/jobs/mine\n")
    write(root / "jobs" / "mine", memory__max="max\n", cpu__max="max 100000\n", pids__max="900\n")
    write(root / "jobs", memory__max="5000\n", cpu__max="150000 100000\n", pids__max="max\n")
    how = {"root": root, "own": tmp_path / "own"}
    assert cgroups.least("memory", ("memory.limit_in_bytes", "memory.max"), **how) == 5000
    assert cgroups.least("pids", ("pids.max", "pids.max"), **how) == 900
    assert cgroups.cpus(**how) == 1.5


def test_version_1_has_a_folder_per_controller_and_numbers_for_none(tmp_path: Path, root: Path):
    (tmp_path / "own").write_text("7:memory:/docker/a\n5:cpu,cpuacct:/docker/a\n1:name=systemd:/\n")
    write(root / "memory", memory__limit_in_bytes="9223372036854771712\n")
    # In a container the group is at the root, whatever the path says.
    write(root / "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    how = {"root": root, "own": tmp_path / "own"}
    assert cgroups.least("memory", ("memory.limit_in_bytes", "memory.max"), **how) is None
    assert cgroups.cpus(**how) is None
    write(root / "memory", memory__limit_in_bytes="12345\n")
    write(root / "cpu", cpu__cfs_quota_us="50000\n")
    assert cgroups.least("memory", ("memory.limit_in_bytes", "memory.max"), **how) == 12345
    assert cgroups.cpus(**how) == 0.5


def test_without_groups_there_is_no_limit(tmp_path: Path):
    how = {"root": tmp_path, "own": tmp_path / "none"}
    assert cgroups.cpus(**how) is None
    assert cgroups.least("memory", ("a", "b"), **how) is None
