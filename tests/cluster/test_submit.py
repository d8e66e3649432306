"""A job's upload leaves out the ignored files, and a too large one is refused before it is sent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mhimdist.cluster.submit import check, measure
from mhimdist.errors import SubmitError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "tune.py").write_text("print('swept')\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shard.tar").write_bytes(bytes(3 * 2**20))
    (tmp_path / "notes.bin").write_bytes(bytes(2**20))
    (tmp_path / ".rayignore").write_text("/data/\n")
    return tmp_path


def _submit(project, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mhimdist.cluster.submit", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_ignored_folders_do_not_count(project):
    upload = measure(project)
    assert {name for name, _ in upload.largest} == {"notes.bin", ".rayignore", "jobs/tune.py"}
    assert upload.num_files == 3
    assert 2**20 < upload.num_bytes < 1.1 * 2**20


def test_too_much_is_refused_and_the_largest_files_are_named(project):
    assert check(project, limit_bytes=2 * 2**20).largest[0] == ("notes.bin", 2**20)
    (project / ".rayignore").unlink()
    with pytest.raises(
        SubmitError, match=r"4\.0 MiB in 3 files.*2\.0 MiB at most.*data/shard.tar \(3\.0 MiB\)"
    ):
        check(project, limit_bytes=2 * 2**20)


def test_many_small_files_are_named_by_their_folder(project):
    features = project / "slides" / "features"
    features.mkdir(parents=True)
    for i in range(400):
        (features / f"{i}.npy").write_bytes(bytes(8192))
    (project / "slides" / "labels.csv").write_bytes(bytes(100))
    upload = measure(project)
    assert upload.folders[0] == ("slides/features/", 400, 400 * 8192)
    assert "slides/" not in [name for name, *_ in upload.folders]
    with pytest.raises(
        SubmitError, match=r"the largest folders are slides/features/ \(3\.1 MiB in 400\), jobs/"
    ):
        check(project, limit_bytes=2 * 2**20)


def test_this_repository_stays_far_below_the_limit():
    upload = check(ROOT)
    assert upload.num_bytes < 20 * 2**20
    assert not any(
        name.startswith((".venv", "data/", "runs/", "cache/", ".git/")) for name, _ in upload.largest
    )


def test_an_open_cluster_is_refused_unless_it_is_meant(project):
    refused = _submit(project, "--check", "jobs/tune.py", RAY_AUTH_MODE="disabled")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: RAY_AUTH_MODE is 'disabled', expected 'token': ")
    meant = _submit(project, "--check", "--insecure", "jobs/tune.py", RAY_AUTH_MODE="disabled")
    assert (meant.returncode, meant.stderr) == (0, "")


def test_the_command_checks_only_when_asked_to(project):
    done = _submit(project, "--check", "jobs/tune.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"3 files, 1.0 MiB to upload from {project}\n"


def test_a_missing_script_is_named_before_anything_is_sent(project):
    done = _submit(project, "jobs/tuna.py")
    assert done.returncode == 1
    assert done.stderr == f"error: {project} has no jobs/tuna.py; give a script in the working directory\n"
