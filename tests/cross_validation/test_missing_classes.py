"""Data with a rare class: refused before anything runs, or told in the tables."""

import csv
import json

import pytest
import torch

from data_prep.shard import shard
from mhimdist.config.presets import preset
from mhimdist.cross_validation.compare import run_cross_validation
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.errors import CheckpointError, SplitError
from mhimdist.search.options import Sweep
from mhimdist.sweep.run import run_sweep

BASE = preset("c16", "abmil").override(
    {"model.hidden_dim": 8, "model.attention_dim": 4, "epochs": 1, "device": "cpu"}
)
LABELS = {"KIRC": 8, "KICH": 8, "KIRP": 3}


@pytest.fixture(scope="module")
def rows():
    return [(f"{label}-{number}", label) for label, count in LABELS.items() for number in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("data")
    (folder / "features").mkdir()
    generator = torch.Generator().manual_seed(0)
    for slide, _ in rows:
        torch.save(torch.randn(6, 4, generator=generator), folder / "features" / f"{slide}.pt")
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slide", "label"), *rows])
    shard(folder / "features", folder / "labels.csv", folder / "shards", workers=1)
    return folder / "shards"


def _split_file(folder, rows, sets_of_rare):
    sets = {"KIRC": ("train", "validation", "test"), "KICH": ("train", "validation", "test")}
    sets["KIRP"] = sets_of_rare
    path = folder / "split.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("slide", "set"))
        for slide, label in rows:
            table.writerow((slide, sets[label][int(slide[-1]) % len(sets[label])]))
    return path


@pytest.mark.slow
def test_tables_say_which_set_lacks_a_class(tmp_path, data, rows, in_this_process, capsys):
    file = _split_file(tmp_path, rows, ("train", "validation"))
    job = CrossValidation(home=tmp_path, name="it", seeds=(1,), split_file=file, train=BASE)
    comparison = run_cross_validation(job, data=data)
    note = "no case of KIRP in test of fold 1: AUC, F1, precision and recall there are means over the classes"
    assert f"WARNING: {note}" in " ".join(capsys.readouterr().out.split())
    assert note in " ".join((job.folder / "table.md").read_text().split())
    for row, record in zip(
        comparison.rows, json.loads((job.folder / "table.json").read_text())["rows"], strict=True
    ):
        assert 0 <= row.spread("auc")[0] <= 1
        assert note in record["note"]
        assert record["results"][0]["missing_classes"] == {"test": ["KIRP"]}


def test_a_cross_validation_is_refused_before_anything_runs(tmp_path, data, rows):
    file = _split_file(tmp_path, rows, ("validation", "test"))
    job = CrossValidation(home=tmp_path, name="it", seeds=(1,), split_file=file, train=BASE)
    with pytest.raises(
        SplitError, match=r"split\.csv: the train set has no case of KIRP, so nothing can learn"
    ):
        run_cross_validation(job, data=data)
    job = CrossValidation(home=tmp_path, name="it", folds=5, train=BASE)
    with pytest.raises(SplitError, match="class KIRP has 3 cases, too few for 5 folds"):
        run_cross_validation(job, data=data)
    weights = tmp_path / "theirs.pt"
    torch.save({"model": {"a": torch.zeros(1)}}, weights)
    job = CrossValidation(
        home=tmp_path, name="it", folds=3, train=BASE.override({"teacher.weights": str(weights)})
    )
    with pytest.raises(CheckpointError, match=r"theirs\.pt: the weights do not fit abmil .*a is unknown"):
        run_cross_validation(job, data=data)
    assert not list(tmp_path.glob("runs/it/folds/*"))


def test_a_sweep_is_refused_before_it_writes_anything(tmp_path, data, rows):
    file = _split_file(tmp_path, rows, ("validation", "test"))
    sweep = Sweep(home=tmp_path, name="it", split_file=file, train=BASE)
    with pytest.raises(
        SplitError, match=r"split\.csv: the train set has no case of KIRP, so nothing can learn"
    ):
        run_sweep(sweep, lambda s: s.uniform("loss.alpha", 0.1, 1.0), data=data)
    sweep = Sweep(home=tmp_path, name="it", test_share=0.2, folds=4, train=BASE)
    with pytest.raises(SplitError, match=r"class KIRP has \d cases?, too few for 4 folds"):
        run_sweep(sweep, lambda s: s.uniform("loss.alpha", 0.1, 1.0), data=data)
    assert not (tmp_path / "runs").exists()
