import json

import numpy as np
import pytest
from written_runs import MASKED, PLAIN, write_cross_validation, write_fold, write_prediction

from mhimdist.comparison.entries import read_entries
from mhimdist.errors import ComparisonError
from mhimdist.report.comparison import Row
from mhimdist.training.result import Result

BOTH = {"MHIM (abmil)": (MASKED, 1.5), "abmil": (PLAIN, 1.0)}


@pytest.fixture
def run(tmp_path):
    return write_cross_validation(tmp_path / "runs" / "cv", BOTH)


def test_a_cross_validation_is_its_configurations_in_the_order_of_its_table(run):
    first, second = read_entries(run)
    assert (first.name, second.name) == ("MHIM (abmil)", "abmil")
    assert (first.protocol, first.dataset, first.size) == ("strict", "digits", "3 folds x 2 seeds")
    assert [(n.seed, n.fold) for n in first.networks] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert [(n.num_train, n.num_test) for n in first.networks] == [(40, 20)] * 6
    assert {key for n in first.networks for key in n.keys} == {f"s{i:03d}" for i in range(60)}
    assert "seed" not in first.settings
    differing = {path for path in first.settings if first.settings[path] != second.settings.get(path)}
    assert "teacher.kind" in differing
    assert "optimizer.learning_rate" not in differing


def test_one_configuration_is_chosen_by_name(run):
    (only,) = read_entries(f"{run}::abmil")
    assert only.name == "abmil"
    with pytest.raises(ComparisonError, match=r"no configuration 'x'; it has MHIM \(abmil\), abmil"):
        read_entries(f"{run}::x")


def test_a_name_is_looked_up_among_the_runs(run, monkeypatch):
    monkeypatch.setenv("MHIMDIST_HOME", str(run.parent.parent))
    assert [entry.name for entry in read_entries("cv")] == ["MHIM (abmil)", "abmil"]
    with pytest.raises(ComparisonError, match="expected an existing folder"):
        read_entries("nowhere")


def test_without_a_table_the_settings_tell_configurations_apart(tmp_path):
    other = MASKED.override({"optimizer.learning_rate": 1e-3})
    final = {"a": (MASKED, 1.0), "b": (PLAIN, 1.0), "c": (other, 1.0)}
    run = write_cross_validation(tmp_path / "sweep", final, with_table=False, holder="final", folds=2)
    names = [entry.name for entry in read_entries(run)]
    assert sorted(name[:12] for name in names) == ["MHIM (abmil)", "MHIM (abmil)", "abmil"]
    assert len(set(names)) == 3
    masked = next(name for name in names if name.startswith("MHIM"))
    (chosen,) = read_entries(f"{run}::{masked[-6:]}")
    assert chosen.name == masked
    assert chosen.dataset == "data set dddddddd"


def test_folds_of_an_earlier_command_are_left_out(run):
    """The table knows the folds of the last command; those with other splits stay in the folder."""
    (entry, _) = read_entries(run)
    write_cross_validation(run.parent / "more", BOTH, folds=4, seeds=(1,))
    for fold in (run.parent / "more" / "folds").iterdir():
        fold.rename(run / "folds" / f"{fold.name}-more")
    assert read_entries(run)[0].networks[0].keys == entry.networks[0].keys
    assert len(read_entries(run)[0].networks) == 6
    (run / "table.json").unlink()
    with pytest.raises(ComparisonError, match="one split per fold and seed"):
        read_entries(run)


def test_rows_of_equal_configurations_share_their_folds(run):
    table = json.loads((run / "table.json").read_text())
    table["rows"].append({**table["rows"][0], "name": "the same"})
    (run / "table.json").write_text(json.dumps(table))
    first, _, same = read_entries(run)
    assert same.name == "the same"
    assert [each.keys for each in same.networks] == [each.keys for each in first.networks]


def test_a_single_fold_is_one_network(run):
    (entry,) = read_entries(next((run / "folds").glob("fold-2-seed-1-1*")))
    assert (entry.name, entry.size, len(entry.networks)) == ("abmil", "1 fold x 1 seed", 1)


def test_unfinished_runs_and_notes_are_told(tmp_path):
    run = write_cross_validation(tmp_path / "cv", BOTH)
    table = json.loads((run / "table.json").read_text())
    table["rows"][0]["runs"] = 5
    (run / "table.json").write_text(json.dumps(table))
    fold = next((run / "folds").glob("fold-1-seed-1-0*")) / "result.json"
    fold.write_text(json.dumps(json.loads(fold.read_text()) | {"note": "outside weights"}))
    assert read_entries(run)[0].notes == ("5 of 6 runs are finished", "outside weights")
    assert read_entries(run)[1].notes == ()


def test_what_was_not_tested_cannot_be_compared(tmp_path):
    fold = tmp_path / "trial" / "fold-1-seed-1"
    write_fold(
        fold, PLAIN, fold=1, seed=1, keys=["a", "b"], cases=["a", "b"], labels=[0, 1],
        probabilities=np.eye(2), train=["c"],
    )  # fmt: skip
    result = json.loads((fold / "result.json").read_text())
    result |= {name: [] for name in ("keys", "cases", "labels", "probabilities")}
    (fold / "result.json").write_text(json.dumps(result))
    with pytest.raises(ComparisonError, match="not tested, as a search tests none"):
        read_entries(tmp_path / "trial")
    with pytest.raises(ComparisonError, match=r"found no fold-\*/result.json"):
        read_entries(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"labels": [0]}, "got 20 slides, 1 labels"),
        ({"labels": [7] * 20}, "none of the 2 classes"),
        ({"labels": ["x"] * 20}, "not numbers"),
        ({"probabilities": [[float("nan"), 0.0]] * 20}, "not finite"),
        ({"keys": ["same"] * 20}, "'same' twice"),
        ({"test": None}, "it has no test"),
    ],
)
def test_damaged_results_are_named(run, change, why):
    file = next((run / "folds").glob("fold-1-seed-1-0*")) / "result.json"
    result = json.loads(file.read_text()) | change
    file.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    with pytest.raises(ComparisonError, match=why) as raised:
        read_entries(run)
    assert str(file) in str(raised.value)
    file.write_text("[]")
    with pytest.raises(ComparisonError, match="expected a JSON object"):
        read_entries(run)
    file.write_text("{")
    with pytest.raises(ComparisonError, match="cannot be read"):
        read_entries(run)


def test_a_folder_of_predictions_is_one_network(tmp_path):
    labels = ["normal", "tumour", None, "tumour"]
    folder = write_prediction(tmp_path / "p", labels, [0.1, 0.9, 0.5, 0.3])
    (entry,) = read_entries(folder)
    assert (entry.name, entry.protocol, entry.dataset, entry.size) == ("p", "strict", "other", "predictions")
    assert entry.notes == ("w", "left out, as the label is unknown: 1 slide")
    (network,) = entry.networks
    assert network.keys == ("s000", "s001", "s003")
    assert network.scores.labels_N.tolist() == [0, 1, 1]
    assert network.scores.probabilities_NC[:, 1].tolist() == [0.1, 0.9, 0.3]
    assert network.threshold == 0.4


def test_damaged_predictions_are_named(tmp_path):
    folder = write_prediction(tmp_path / "p", [None, None], [0.1, 0.9])
    with pytest.raises(ComparisonError, match="no slide has a known label"):
        read_entries(folder)
    (folder / "prediction.json").write_text(json.dumps({"classes": ["normal", "third"]}))
    with pytest.raises(ComparisonError, match="found no probability_third"):
        read_entries(folder)
    (folder / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(ComparisonError, match="cannot be read"):
        read_entries(folder)


def test_the_figures_are_those_of_the_tables(run):
    """The mean AUC of a side is what the table of the cross-validation has."""
    rows = json.loads((run / "table.json").read_text())["rows"]
    for entry, row in zip(read_entries(run), rows, strict=True):
        results = [
            Result(**json.loads((fold / "result.json").read_text()))
            for fold in (run / "folds").glob(f"fold-*-{rows.index(row)}strict")
        ]
        assert Row(entry.name, "strict", results, 6).spread("auc")[0] == pytest.approx(row["auc"])
        assert len(entry.networks) == len(results)
