"""A folder that was copied may hold a named pipe or a link to a device: nobody waits at it."""

import os
import shutil
import signal

import pytest
from feature_folders import shard_folder, write_features
from forked import fork, status_of

from data_prep.shard import main as shard_command
from data_prep.verify import main as verify_command
from mhimdist import files
from mhimdist.data.shards import BagShards
from mhimdist.errors import CheckpointError, MhimdistError
from mhimdist.process import run
from mhimdist.training import checkpoint

MOST_S = 60
NO_FILE = "expected a file, got a named pipe or a device"


def said_by(act, tmp_path) -> tuple[int, str]:
    """Status and output of a command in a child, which an alarm ends if it waits."""

    def child() -> None:
        signal.alarm(MOST_S)
        run(act)

    status = status_of(fork(child, tmp_path / "said"))
    return status, (tmp_path / "said").read_text()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write_features(folder)
    return shard_folder(folder)


def _with_a_pipe(shards, tmp_path, name):
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    return folder


@pytest.mark.faults(4, 5)
@pytest.mark.parametrize("name", ["manifest.parquet", ".arriving", "shard-000001.tar", "shard-000001.idx"])
def test_a_pipe_in_a_data_set_is_named(name, shards, tmp_path):
    folder = _with_a_pipe(shards, tmp_path, name)
    status, said = said_by(lambda: verify_command([str(folder)]), tmp_path)
    assert status == 1
    assert name in said
    assert NO_FILE in said
    if not name.endswith(".idx"):  # training reads none
        status, said = said_by(lambda: BagShards(folder), tmp_path)
        assert status == 1
        assert name in said


@pytest.mark.faults(9)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_beside_features_is_named(kind, tmp_path):
    write_features(tmp_path)
    file = tmp_path / "features" / "plain.coords.npy"
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    arguments = ["--features", str(tmp_path / "features"), "--labels", str(tmp_path / "labels.csv")]
    status, said = said_by(lambda: shard_command([*arguments, "--out", str(tmp_path / "out")]), tmp_path)
    assert status == 1
    assert f"{file}: {NO_FILE}" in said


@pytest.mark.faults(28)
def test_a_pipe_in_a_checkpoint_is_named(tmp_path):
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(CheckpointError, match=NO_FILE):
        checkpoint.load(tmp_path)


def test_a_file_that_is_read_as_json_is_no_pipe_and_no_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MhimdistError, match=NO_FILE):
        files.json_object(tmp_path / "pipe", MhimdistError)
    with pytest.raises(MhimdistError, match="Is a directory"):
        files.json_object(tmp_path, MhimdistError)
