"""jobs/classic.py on small molecules, without Ray: bags of one instance, features narrower than layers."""

import csv
import runpy
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from job_scripts import ROOT

from data_prep.classic import BENCHMARKS, Benchmark
from mhimdist.cross_validation import compare as compare_module
from mhimdist.data.opening import open_bags
from mhimdist.training.fold import run_fold

pytestmark = pytest.mark.long

SIZES = (1, 2, 1, 5, 1, 3, 40, 1, 2, 1, 1, 2, 7, 1, 1, 2)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs the job on 16 bags of which 9 train; returns the lines of its table."""
    monkeypatch.setitem(BENCHMARKS, "musk1", Benchmark(("other", "musk"), 6, len(SIZES), 8, "molecules"))
    generator = np.random.default_rng(0)
    lines = [
        [bag % 2, bag, *(generator.normal(bag % 2, 1, 6) * 100).round()]
        for bag, size in enumerate(SIZES)
        for _ in range(size)
    ]
    with (tmp_path / "small.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)

    def run_folds(experiment, folds, data, stopping):
        for fold in sorted(folds.values(), key=lambda fold: not fold.is_plain):
            run_fold(fold, open_bags(data, fold.config.loading), experiment.first_stages, 1)
        return {digest: fold.ended_result() for digest, fold in folds.items()}

    monkeypatch.setattr(compare_module, "run_folds", run_folds)
    monkeypatch.setattr(compare_module, "stoppable", lambda experiment: nullcontext())

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["classic.py", *options])
        runpy.run_path(str(ROOT / "jobs" / "classic.py"), run_name="__main__")
        with (tmp_path / "runs" / "classic" / "table.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    shared = ("--home", str(tmp_path), "--file", str(tmp_path / "small.csv"), "--train.epochs", "2")
    return lambda *options: run(*shared, *options)


@pytest.mark.parametrize("batches", [("--train.bags-per-step", "1"), ("--train.bags-per-step", "4")])
def test_every_row_of_the_smallest_data_is_finite(batches, job):
    rows = job("--folds", "3", "--run-folds", "1", "--seeds", "1", "--protocol", "both", *batches)
    assert [row["name"] for row in rows if row["protocol"] == "strict"] == [
        "MHIM (abmil)",
        "abmil",
        "MHIM (dsmil)",
        "dsmil",
    ]
    assert len(rows) == 8
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 1
        assert 0 <= float(row["auc"]) <= 1
