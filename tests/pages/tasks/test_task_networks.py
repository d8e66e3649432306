from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from outcome_bags import GRADES, LABELS, followed, graded, labelled, valued

from mhimdist.errors import ReportError, UndefinedError
from mhimdist.pages.tasks import JudgedNetwork, page_of
from mhimdist.pages.tasks.print import write_drawings
from mhimdist.statistics import regression
from mhimdist.tasks import Task
from mhimdist.tasks.multilabel import Multilabel
from mhimdist.tasks.ordinal import Ordinal
from mhimdist.tasks.regression import Regression
from mhimdist.tasks.survival import Survival


def _task(kind, *, classes=(), columns=(), unit="", learnt=None, **methods):
    info = SimpleNamespace(columns=columns, unit=unit)
    found = {"name": "of a test", "page": kind.page, "classes": classes, "info": info, "learnt": learnt or {}}
    return SimpleNamespace(**found, **methods)


def _network_of(task, judged, fitted, **more):
    return page_of(task).network(JudgedNetwork(task=task, judged=judged, fitted=fitted, **more))


def _judged(network, predictions_NP, targets_NK=None, labels_N=None):
    return SimpleNamespace(
        labels_N=labels_N, targets_NK=targets_NK, predictions_NP=predictions_NP, cases=network.cases
    )


def test_grades_are_decided_by_the_task():
    network = graded()
    task = _task(Ordinal, classes=GRADES, decide=lambda *_: [GRADES[g] for g in network.predicted_N])
    judged = _judged(network, network.probabilities_NC, labels_N=network.labels_N)
    found = _network_of(task, judged, {}, keys=network.keys, seed=1)
    assert found.weighed.once() == network.weighed.once()
    names = [section.name for section in page_of(task).sections(task, {"x": [found]})]
    assert names == ["results", "decisions", "calibration"]


def test_values_and_labels_keep_their_columns():
    network = valued(columns=("HRD", "TMB"))
    task = _task(Regression, columns=("HRD", "TMB"), unit="points")
    judged = _judged(network, network.predicted_NK, network.targets_NK)
    found = _network_of(task, judged, {}, keys=network.keys, seed=1)
    assert found.weighed.once() == network.weighed.once()
    values = page_of(task).sections(task, {"x": [found]})[1]
    assert values.title == "Predicted and true values"
    assert "predicted HRD (points)" in str(values.body)
    labels = labelled()
    task = _task(Multilabel, columns=LABELS)
    judged = _judged(labels, labels.probabilities_NK, labels.targets_NK)
    found = _network_of(task, judged, {"thresholds": [0.5] * 3}, keys=labels.keys)
    assert found.weighed.once() == labels.weighed.once()
    assert _network_of(task, judged, {}, keys=labels.keys).thresholds_K is None


@pytest.mark.parametrize("is_cox", [False, True])
def test_survival_takes_what_the_task_has_learnt_and_fitted(is_cox):
    network = followed()
    learnt = {"grid": network.grid_T.tolist()}
    task = _task(Survival, columns=("months", "died"), unit="months", learnt=learnt)
    task.censoring = network.free
    task.survival_at_grid = lambda _, fitted: (
        None if is_cox and "baseline" not in fitted else network.survival_NT
    )
    targets_N2 = np.stack([network.times_N, network.events_N], axis=1)
    columns = (network.risks_N,) if is_cox else (network.risks_N, *network.survival_NT.T)
    judged = _judged(network, np.stack(columns, axis=1), targets_N2)
    fitted = {"median_risk": float(network.cuts[0]), "baseline": [0.1]}
    found = _network_of(task, judged, fitted, keys=network.keys, seed=1)
    assert found.weighed.once() == network.weighed.once()
    assert found.cuts.tolist() == network.cuts.tolist()
    del fitted["baseline"]
    task.censoring = None
    found = _network_of(task, judged, fitted, keys=network.keys, seed=1)
    assert (found.survival_NT is None) == is_cox
    assert found.free is None
    task.learnt = {}
    assert _network_of(task, judged, {}, keys=network.keys).survival_NT is None


def test_a_task_of_others_has_the_table_of_its_own_measures(tmp_path: Path):
    network = valued()
    task = _task(Task, headings={"mae": "how far off"})
    task.weighed = lambda judged, _: regression.weighed(
        judged.targets_NK, judged.predictions_NP, judged.cases
    )
    judged = _judged(network, network.predicted_NK, network.targets_NK)
    found = _network_of(task, judged, {}, keys=network.keys, seed=3)
    (section,) = page_of(task).sections(task, {"x": [found]})
    assert "how far off" in section.body
    assert f"{network.weighed.once()['mae']:.3f}" in section.body
    assert write_drawings(page_of(task).drawings(task, {"x": [found]}), tmp_path) == []


def test_figures_are_of_the_task(tmp_path: Path):
    task = _task(Regression, columns=("HRD score",), unit="points")
    drawings = page_of(task).drawings(task, {"x": [valued()]})
    assert [path.name for path in write_drawings(drawings, tmp_path)] == ["values-x-hrd-score.pdf"]


def test_three_groups_of_risk_need_the_bags_that_selected():
    network = followed()
    task = _task(Survival, columns=("months", "died"))
    task.censoring = None
    targets_N2 = np.stack([network.times_N, network.events_N], axis=1)
    judged = _judged(network, network.risks_N[:, None], targets_N2)
    found = _network_of(task, judged, {}, keys=network.keys, num_groups=3, validation=judged)
    assert len(found.cuts) == 2
    with pytest.raises(UndefinedError, match="3 groups of risk need the validation bags' risks"):
        _network_of(task, judged, {}, keys=network.keys, num_groups=3)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("nowhere:Page", "expected module:Class that can be imported here, got 'nowhere:Page'"),
        ("json:nothing", "expected module:Class .* got 'json:nothing': module 'json' has no attribute"),
        ("json:JSONDecoder", "expected a class derived from mhimdist.pages.tasks.TaskPage, got <class"),
    ],
)
def test_a_page_that_is_none_is_named(page, message):
    with pytest.raises(ReportError, match=f"the page of of a test: {message}"):
        page_of(_task(SimpleNamespace(page=page)))
