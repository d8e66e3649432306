import html5lib
import numpy as np
import pytest
from html_pages import Page
from outcome_bags import GRADES, LABELS, followed, graded, labelled, valued
from sklearn import metrics as sk

from mhimdist.errors import UndefinedError
from mhimdist.pages.tasks import regression, survival
from mhimdist.pages.tasks.multilabel import multilabel_sections
from mhimdist.pages.tasks.ordinal import ordinal_sections
from mhimdist.pages.tasks.regression import regression_sections
from mhimdist.pages.tasks.survival import survival_sections
from mhimdist.report import page
from mhimdist.report.blocks import Section
from mhimdist.statistics.survival_curves import kaplan_meier

pytestmark = pytest.mark.usefixtures("without_plotly")
HOSTILE = "<script>alert(1)</script>"


def page_of(sections: list[Section]) -> Page:
    html = page.render(
        "report.html",
        title="page",
        kind="run",
        lead="page",
        banners=[],
        headline=[],
        sections=[each for each in sections if each.body],
    )
    html5lib.HTMLParser(strict=True).parse(html)  # raises at the first error
    return Page(html)


def traces(found: Page, figure: int) -> dict[str, dict[str, object]]:
    return {str(each["name"]): each for each in found.figures[figure]["data"] if "name" in each}


def test_grades_have_a_table_a_confusion_and_their_calibration():
    networks = [graded(fold, seed) for fold in (0, 1) for seed in (1, 2)]
    found = page_of(ordinal_sections({"MHIM": networks}, GRADES))
    kappas = [sk.cohen_kappa_score(n.labels_N, n.predicted_N, weights="quadratic") for n in networks]
    seeds = [np.mean(kappas[::2]), np.mean(kappas[1::2])]
    head, row = found.rows["results-measures"]
    assert head[:2] == ["configuration", "quadratic weighted kappa"]
    assert row[1].startswith(f"{np.mean(seeds):.3f} ± {np.std(seeds):.3f}")
    assert "over the seeds" in found.text
    counts = sum(sk.confusion_matrix(n.labels_N, n.predicted_N, labels=range(4)) for n in networks) / 2
    shown = [[float(cell.split("\n")[0].rstrip("%")) for cell in row[1:]] for row in _numbers(found)]
    assert np.array(shown) == pytest.approx(counts)
    assert f"Kappa: {np.mean(kappas):.3f}" in found.text
    assert len(found.figures) == 1


def _numbers(found: Page) -> list[list[str]]:
    """The confusion's cells without their shares."""
    return [[cell.split("\n")[0] for cell in row] for row in found.rows["confusion-0"][1:]]


def test_one_grade_and_no_probabilities_are_said():
    network = graded()
    network.labels_N[:] = network.predicted_N[:] = 2
    bare = type(network)(**{**network.__dict__, "probabilities_NC": None})
    found = page_of(ordinal_sections({"x": [bare]}, GRADES))
    assert "Kappa is undefined" in found.text
    assert found.rows["results-measures"][1][1] == "-"
    assert not found.figures


def test_values_have_a_scatter_with_the_identity_and_residuals():
    networks = [valued(fold) for fold in (0, 1)]
    found = page_of(regression_sections({"MHIM": networks}, unit="points"))
    scatter, residuals = found.figures
    lines = traces(found, 0)
    assert lines["identity"]["x"] == lines["identity"]["y"]
    truth = np.concatenate([each.targets_NK[:, 0] for each in networks])
    predicted = np.concatenate([each.predicted_NK[:, 0] for each in networks])
    slope = np.polyfit(predicted, truth, 1)[0]
    assert f"fitted: slope {slope:.2f}" in lines
    assert scatter["data"][-1]["x"] == pytest.approx(predicted, rel=1e-4)
    assert residuals["data"][-1]["y"] == pytest.approx(predicted - truth, abs=2e-3)
    assert scatter["layout"]["xaxis"]["title"]["text"] == "predicted HRD score (points)"
    assert found.rows["calibration-table"][1][2] == f"{slope:.3f}"


def test_several_targets_have_their_own_rows_and_missing_ones_are_named():
    network = valued(columns=("HRD", "TMB"))
    network.targets_NK[:, 1] = np.nan
    found = page_of(regression_sections({"x": [network]}))
    assert found.rows["results-targets"][0][1] == "HRD: Pearson's r"
    assert found.rows["results-targets"][1][3] == "-"
    assert "TMB: no test slide has a value" in found.text
    assert [row[1] for row in found.rows["calibration-table"][1:]] == ["HRD"]
    assert regression.calibration_line(np.arange(3.0), np.ones(3)) is None


def test_labels_have_curves_and_their_missing_cells_are_counted():
    network = labelled()
    found = page_of(multilabel_sections({"MHIM": [network]}))
    for k, row in enumerate(found.rows["labels-0"][1:]):
        cells = network.targets_NK[:, k]
        known = ~np.isnan(cells)
        assert row[:4] == [
            LABELS[k],
            f"{np.nansum(cells):.0f}",
            f"{(cells == 0).sum()}",
            f"{np.isnan(cells).sum()}",
        ]
        auc = sk.roc_auc_score(cells[known], network.probabilities_NK[known, k])
        assert row[4].startswith(f"{auc:.3f}")
        assert f"{LABELS[k]}: AUC {auc:.3f}" in traces(found, 0)
        brier = sk.brier_score_loss(cells[known], network.probabilities_NK[known, k])
        assert found.rows["calibration-table"][k + 1][2] == f"{brier:.4f}"
    assert "At least one network" not in found.text


def test_a_label_of_one_kind_is_named():
    networks = [labelled(fold) for fold in (0, 1)]
    networks[0].targets_NK[:, 1] = 1
    found = page_of(multilabel_sections({"x": networks}))
    assert "At least one network tested both kinds of 2 of the 3 labels only" in found.text
    assert "in 1 of 2 networks" in found.rows["labels-0"][2][4]
    networks[1].targets_NK[:, 1] = 1
    found = page_of(multilabel_sections({"x": networks}))
    assert found.rows["labels-0"][2][4] == "-\none kind only"
    nothing = labelled()
    nothing.targets_NK[:] = np.nan
    assert "there is no curve" in page_of(multilabel_sections({"x": [nothing]})).text


def test_survival_has_curves_of_its_groups_with_numbers_at_risk():
    networks = [followed(fold) for fold in (0, 1)]
    found = page_of(survival_sections({"MHIM": networks}, unit="months"))
    assert len(found.figures) == 4
    groups = survival.grouped(networks)
    assert sum(len(times) for times in groups.times.values()) == 80, "two slides a case count once"
    for name, curve in groups.curves.items():
        drawn = traces(found, 0)[name]
        assert drawn["y"] == pytest.approx(curve.survival_U, rel=1e-4)
        (at_risk,) = [
            each["text"]
            for each in found.figures[0]["data"]
            if each["mode"] == "text" and each["y"][0] == name  # type: ignore[index]
        ]
        assert at_risk[0] == str(len(groups.times[name]))
        assert at_risk[2] == str((groups.times[name] >= 20).sum())
    assert groups.text in found.text
    low, high = found.rows["groups-0"][1:]
    assert (low[0], high[0]) == ("low risk", "high risk")
    assert low[4] == "< 0.001"
    assert high[3] == f"{groups.curves['high risk'].median:.4g} months"
    assert "without a model" in traces(found, 2)
    assert "Censoring is estimated on the test cases" not in found.text


def test_every_seed_has_its_groups():
    networks = [followed(0, seed) for seed in (1, 2)]
    found = page_of(survival_sections({"x": networks}))
    assert [row[0] for row in found.rows["groups-0"][1:]] == [
        *("low risk, seed 1", "high risk, seed 1", "low risk, seed 2", "high risk, seed 2")
    ]
    assert "Seed 1; the table has the other seeds" in found.text


def test_what_is_not_known_of_survival_is_left_out_and_said():
    network = followed(with_training=False)
    bare = type(network)(**{**network.__dict__, "survival_NT": None, "cuts": np.empty(0)})
    found = page_of(survival_sections({"x": [bare]}))
    assert "Censoring is estimated on the test cases" in found.text
    assert len(found.figures) == 1, "the AUC over time needs neither"
    assert found.rows["results-measures"][1][4] == "-"
    one_group = type(network)(**{**network.__dict__, "cuts": np.array([99.0])})
    found = page_of(survival_sections({"x": [one_group]}))
    assert "No log-rank test: expected two groups" in found.text
    assert found.rows["groups-0"][1][4] == "-"
    with pytest.raises(UndefinedError, match=r"as many cut points for every network, got \[1, 2\]"):
        survival.grouped([followed(0), followed(1, num_groups=3)])


def test_survival_until_the_horizon_is_held_against_the_cases():
    network = followed(num=400)
    horizon, points = survival.calibration_points([network])
    assert sum(point.count for point in points) == 200
    assert [point.predicted for point in points] == sorted(point.predicted for point in points)
    by_case = network.survival_NT[::2] / 2 + network.survival_NT[1::2] / 2
    at = np.array([np.interp(horizon, network.grid_T, row) for row in by_case])
    lowest = at <= np.quantile(at, 0.2)
    curve = kaplan_meier(network.times_N[::2][lowest], network.events_N[::2][lowest])
    assert points[0].observed == pytest.approx(float(curve.at(np.array([horizon]))[0]))
    assert points[0].low < points[0].observed < points[0].high


def test_names_of_others_are_only_text():
    grades = (HOSTILE, *GRADES[1:])
    values = valued(columns=(HOSTILE,))
    pages = [
        page_of(ordinal_sections({HOSTILE: [graded()]}, grades)),
        page_of(regression_sections({HOSTILE: [values]}, unit=HOSTILE)),
        page_of(survival_sections({HOSTILE: [followed(num=40)]}, unit=HOSTILE)),
    ]
    for found in pages:
        assert HOSTILE in found.text
        assert "alert(1)" not in [text for tag, each in found.elements if tag == "script" for text in each]


def test_a_case_whose_slides_differ_in_follow_up_is_left_out_of_the_curves_and_named_so():
    network = followed()
    torn = followed()
    torn.times_N[1] += 1  # the second slide of the first case
    torn.events_N[2] = not torn.events_N[3]
    groups = survival.grouped([torn])
    assert (groups.num_torn, survival.grouped([network]).num_torn) == (2, 0)
    cases = [int(curve.at_risk_U[0]) for curve in groups.curves.values()]
    assert sum(cases) == len(set(torn.cases)) - 2
    found = page_of(survival_sections({"MHIM": [torn]}, unit="months"))
    assert "Left out: 2 cases whose slides differ in time or event." in found.text
    torn.times_N[:] += np.arange(len(torn.times_N)) % 2
    torn.times_N[1] += 1
    assert survival.calibration_points([torn])[1] == []
    assert "MHIM: no risk groups" in page_of(survival_sections({"MHIM": [torn]}, unit="months")).text
