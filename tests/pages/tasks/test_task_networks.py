from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from outcome_bags import GRADES, LABELS, followed, graded, labelled, valued

from mhimdist.pages.tasks.networks import network_of, task_figures, task_sections
from mhimdist.statistics import regression


def _task(name, *, classes=(), columns=(), unit="", learnt=None, **methods):
    info = SimpleNamespace(columns=columns, unit=unit)
    return SimpleNamespace(name=name, classes=classes, info=info, learnt=learnt or {}, **methods)


def _judged(network, predictions_NP, targets_NK=None, labels_N=None):
    return SimpleNamespace(
        labels_N=labels_N, targets_NK=targets_NK, predictions_NP=predictions_NP, cases=network.cases
    )


def test_grades_are_decided_by_the_task():
    network = graded()
    task = _task("ordinal", classes=GRADES, decide=lambda *_: [GRADES[g] for g in network.predicted_N])
    judged = _judged(network, network.probabilities_NC, labels_N=network.labels_N)
    found = network_of(task, judged, {}, keys=network.keys, seed=1)
    assert found.weighed.once() == network.weighed.once()
    names = [section.name for section in task_sections(task, {"x": [found]})]
    assert names == ["results", "decisions", "calibration"]


def test_values_and_labels_keep_their_columns():
    network = valued(columns=("HRD", "TMB"))
    task = _task("regression", columns=("HRD", "TMB"), unit="points")
    judged = _judged(network, network.predicted_NK, network.targets_NK)
    found = network_of(task, judged, {}, keys=network.keys, seed=1)
    assert found.weighed.once() == network.weighed.once()
    assert "predicted HRD (points)" in str(task_sections(task, {"x": [found]})[1].body)
    labels = labelled()
    task = _task("multilabel", columns=LABELS)
    judged = _judged(labels, labels.probabilities_NK, labels.targets_NK)
    found = network_of(task, judged, {"thresholds": [0.5] * 3}, keys=labels.keys)
    assert found.weighed.once() == labels.weighed.once()
    assert network_of(task, judged, {}, keys=labels.keys).thresholds_K is None


@pytest.mark.parametrize("is_cox", [False, True])
def test_survival_takes_what_the_task_has_learnt_and_fitted(is_cox):
    network = followed()
    learnt = {"grid": network.grid_T.tolist()}
    task = _task("survival", columns=("months", "died"), unit="months", learnt=learnt)
    task.censoring = network.free
    task.survival_at_grid = lambda _, fitted: (
        None if is_cox and "baseline" not in fitted else network.survival_NT
    )
    targets_N2 = np.stack([network.times_N, network.events_N], axis=1)
    columns = (network.risks_N,) if is_cox else (network.risks_N, *network.survival_NT.T)
    judged = _judged(network, np.stack(columns, axis=1), targets_N2)
    fitted = {"median_risk": float(network.cuts[0]), "baseline": [0.1]}
    found = network_of(task, judged, fitted, keys=network.keys, seed=1)
    assert found.weighed.once() == network.weighed.once()
    assert found.cuts.tolist() == network.cuts.tolist()
    del fitted["baseline"]
    task.censoring = None
    found = network_of(task, judged, fitted, keys=network.keys, seed=1)
    assert (found.survival_NT is None) == is_cox
    assert found.free is None
    task.learnt = {}
    assert network_of(task, judged, {}, keys=network.keys).survival_NT is None


def test_a_task_of_others_has_the_table_of_its_own_measures(tmp_path: Path):
    network = valued()
    task = _task("counting", headings={"mae": "how far off"})
    task.weighed = lambda judged, _: regression.weighed(
        judged.targets_NK, judged.predictions_NP, judged.cases
    )
    judged = _judged(network, network.predicted_NK, network.targets_NK)
    found = network_of(task, judged, {}, keys=network.keys, seed=3)
    (section,) = task_sections(task, {"x": [found]})
    assert "how far off" in section.body
    assert f"{network.weighed.once()['mae']:.3f}" in section.body
    assert task_figures(task, {"x": [found]}, tmp_path) == []


def test_figures_are_of_the_task(tmp_path: Path):
    task = _task("regression", columns=("HRD score",), unit="points")
    assert [path.name for path in task_figures(task, {"x": [valued()]}, tmp_path)] == [
        "values-x-hrd-score.pdf"
    ]
