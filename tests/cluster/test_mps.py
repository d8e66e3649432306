import os

import pytest

from mhimdist.cluster import mps


@pytest.fixture
def pipes(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    return tmp_path


def test_mps_runs_if_its_pipe_is_there_and_its_process_lives(pipes):
    assert not mps.is_running()
    os.mkfifo(pipes / "control")  # a read would block, and a write would reach the daemon
    assert mps.is_running()
    (pipes / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
    assert mps.is_running()


@pytest.mark.parametrize("left", ["4194305", "", "nothing"])  # beyond the largest process id of Linux
def test_the_files_of_a_killed_daemon_do_not_count(pipes, left):
    (pipes / "control").touch()
    (pipes / "nvidia-cuda-mps-control.pid").write_text(left)
    assert not mps.is_running()


def test_a_folder_that_does_not_exist_holds_no_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "gone"))
    assert not mps.is_running()
