"""A killed prediction goes on where it was, and never mixes models or data."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait

import numpy as np
import pyarrow.parquet as pq
import pytest
from job_scripts import ROOT
from trained_folds import config_of, make_shards, train_folds

import mhimdist as mh
from mhimdist import files
from mhimdist.data.shards import BagShards
from mhimdist.errors import CheckpointError, DataError, RunLockedError
from mhimdist.prediction import ensemble
from mhimdist.prediction.records import RECORD_FILE

SLOW = """
import sys, time
from mhimdist.data.shards import BagShards
load = BagShards.load
def slow(self, *args, **options):
    time.sleep(0.05)
    return load(self, *args, **options)
BagShards.load = slow
import mhimdist as mh
from mhimdist.process import run
run(lambda: mh.predict(sys.argv[1], sys.argv[2], sys.argv[3], threads=1))
"""


def _recorded(out):
    file = out / RECORD_FILE
    return max(file.read_bytes().count(b"\n") - 1, 0) if file.exists() else 0


@pytest.fixture
def loaded(monkeypatch):
    """The rows that were loaded."""
    rows, load = [], BagShards.load

    def noting(self, asked, *args, **options):
        rows.extend(asked)
        return load(self, asked, *args, **options)

    monkeypatch.setattr(BagShards, "load", noting)
    return rows


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_stopped_prediction_computes_only_what_is_left(number, status, trained, shards, tmp_path, loaded):
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", SLOW, str(trained), str(shards.folder), str(out)]
    started = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while _recorded(out) < 5:
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.01)
    os.kill(started.pid, number)
    assert started.wait() == status, started.stderr.read()
    started.stderr.close()
    done = _recorded(out)
    assert 5 <= done < len(shards)
    assert not (out / "prediction.json").exists()
    mh.predict(trained, shards.folder, out)
    assert len(loaded) == len(shards) - done
    whole = mh.predict(trained, shards.folder, tmp_path / "whole")
    assert pq.read_table(out / "predictions.parquet") == pq.read_table(whole / "predictions.parquet")


def test_half_a_line_is_computed_again(trained, shards, tmp_path, loaded):
    out = mh.predict(trained, shards.folder, tmp_path / "out")
    before = pq.read_table(out / "predictions.parquet")
    record = out / RECORD_FILE
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:11]) + lines[11][:20])
    loaded.clear()
    mh.predict(trained, shards.folder, out)
    assert len(loaded) == len(shards) - 10
    assert record.read_bytes().count(b"\n") == 1 + len(shards)
    assert pq.read_table(out / "predictions.parquet") == before


def test_scores_that_are_missing_are_made_again(trained, shards, tmp_path, loaded):
    out = mh.predict(trained, shards.folder, tmp_path / "out", scores=True)
    (out / "scores" / "slide-3.parquet").unlink()
    loaded.clear()
    mh.predict(trained, shards.folder, out, scores=True)
    assert [shards.slides[row] for row in loaded] == ["slide-3"]
    assert (out / "scores" / "slide-3.parquet").exists()


def test_other_models_and_other_data_are_refused(trained, shards, tmp_path, loaded):
    out = mh.predict(trained, shards.folder, tmp_path / "out", scores=True)
    train_folds(tmp_path / "other", shards, config_of(seed=7, epochs=1))
    with pytest.raises(CheckpointError, match=r"predictions of other models; give another --out, or --fresh"):
        mh.predict(tmp_path / "other", shards.folder, out)
    others = make_shards(tmp_path / "others", seed=3)
    with pytest.raises(CheckpointError, match="predictions of other data"):
        mh.predict(trained, others.folder, out)
    loaded.clear()
    mh.predict(tmp_path / "other", shards.folder, out, fresh=True)
    assert len(loaded) == len(shards)
    assert not (out / "scores").exists()


def test_fresh_deletes_predictions_and_nothing_else(trained, shards, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(CheckpointError, match="--fresh does not delete it"):
        mh.predict(trained, shards.folder, tmp_path / "mine", fresh=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_damaged_record_is_named(trained, shards, tmp_path):
    out = mh.predict(trained, shards.folder, tmp_path / "out")
    record = out / RECORD_FILE
    record.write_bytes(record.read_bytes().replace(b'"rows"', b'"sowr"', 1))
    with pytest.raises(CheckpointError, match=r"members\.jsonl is damaged"):
        mh.predict(trained, shards.folder, out)


@pytest.mark.faults(31)
def test_two_commands_do_not_share_a_folder(trained, shards, tmp_path):
    lock = files.Lock(tmp_path / ".lock", signed=True)
    with lock, pytest.raises(RunLockedError, match="is being written by process"):
        mh.predict(trained, shards.folder, tmp_path)


def test_a_bad_slide_keeps_what_was_predicted_before(trained, shards, tmp_path, monkeypatch):
    # Four slides are computed at a time and end at the same moment, the bad one among them.
    monkeypatch.setattr(ensemble, "wait", lambda running, **_: wait(running))
    folder = tmp_path / "features"
    folder.mkdir()
    for row in range(4):
        features_ND = shards.load([row]).features_TD.numpy().copy()
        if row == 2:
            features_ND[3, 1] = np.nan
        np.save(folder / f"s{row}.npy", features_ND)
    with pytest.raises(DataError, match=r"s2\.npy: slide 's2': 1 features of its instances 0 to \d+ are NaN"):
        mh.predict(trained, folder, tmp_path / "out", threads=4)
    assert _recorded(tmp_path / "out") == 3
    out = mh.predict(trained, folder, tmp_path / "out", skip_bad=True)
    assert pq.read_table(out / "predictions.parquet")["slide"].to_pylist() == ["s0", "s1", "s3"]
    document = json.loads((out / "prediction.json").read_text())
    assert list(document["left_out"]) == ["s2"]
    assert any("1 slides were left out" in warning for warning in document["warnings"])
