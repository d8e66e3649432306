import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import html5lib
import numpy as np
import pytest
from html_pages import Page
from page_folders import HOSTILE, write_paper_tables, write_predictions, write_whole_run
from sklearn import metrics as sk
from written_runs import PLAIN, write_cross_validation

import mhimdist as mh
from mhimdist.errors import ConfigError, DataError, ReportError
from mhimdist.pages.subject import read_subject
from mhimdist.pages.write import ReportJob, render_report, run_report

pytestmark = pytest.mark.usefixtures("without_plotly")


def page_of(folder: Path, **options: object) -> Page:
    html = render_report(read_subject(folder), **options)  # type: ignore[arg-type]
    html5lib.HTMLParser(strict=True).parse(html)  # raises at the first error
    return Page(html)


@pytest.fixture(scope="module")
def report(whole_run: Path) -> Page:
    """The page of `whole_run` with every option, for most tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mhimdist.report.page.get_plotlyjs", lambda: "")
        return page_of(whole_run, temperature=True)


def test_a_cross_validation_has_every_section(report: Page) -> None:
    names = [attributes["id"] for tag, attributes in report.elements if tag == "section"]
    assert names == [
        *("results", "curves", "decisions", "calibration", "learning", "stability", "masking"),
        *("cost", "protocol", "settings", "environment"),
    ]
    assert len(report.figures) == 14
    for figure in report.figures:
        assert figure["data"]
        assert any(trace.get("x") for trace in figure["data"])


def test_the_table_has_the_means_of_the_folds(report: Page, whole_run: Path) -> None:
    (head, first, second) = report.rows["results-strict"]
    assert head[1:3] == ["AUC", "accuracy"]
    assert [first[0], second[0]] == ["MHIM3 folds × 2 seeds", "AB-MIL3 folds × 2 seeds"]
    by_seed: dict[int, list[float]] = {}
    for fold in sorted((whole_run / "folds").glob("*-0strict")):
        result = json.loads((fold / "result.json").read_text())
        auc = sk.roc_auc_score(result["labels"], np.array(result["probabilities"])[:, 1])
        by_seed.setdefault(result["seed"], []).append(auc)
    means = [np.mean(values) for values in by_seed.values()]
    assert first[1].startswith(f"{np.mean(means):.3f} ± {np.std(means):.3f}")
    assert re.fullmatch(r"0\.\d{3}–[01]\.\d{3}", first[1].splitlines()[1])
    assert len(report.rows["folds"]) == 1 + 12


def test_confusion_is_counted_over_the_folds_of_a_seed(report: Page) -> None:
    (_, normal, tumor) = report.rows["confusion-1"]
    counts = [float(cell.partition("\n")[0]) for row in (normal, tumor) for cell in row[1:]]
    assert sum(counts) == pytest.approx(60)
    assert "Mean number of slides over 2 seeds" in report.text


def test_calibration_says_what_it_was_fitted_on(report: Page) -> None:
    names = [row[0] for row in report.rows["calibration-table"][1:]]
    assert names == ["MHIM", "MHIM, scaled", "AB-MIL", "AB-MIL, scaled"]
    assert "temperature scaling was fitted on the validation cases" in report.text
    assert "no test case took part" in report.text


def test_masking_and_teacher_come_from_the_history(report: Page) -> None:
    assert report.rows["masking-table"][1:] == [
        ["MHIM", "50.00% to 50.00%", "6.00% to 1.00%", "0.00% to 0.00%", "50.00% to 50.00%"]
    ]
    assert report.rows["telemetry-table"][1:] == [
        ["MHIM", "0.450", "0.500", "0.925", "0.600", "0.200", "0.000", "0.500"]
    ]
    student, teacher = report.rows["stability-table"][1:]
    assert (student[0], student[1], teacher[1]) == ("MHIM", "student", "teacher")
    assert teacher[2] == "0.0400"
    assert report.rows["cost-table"][1][2:] == ["6", "6", "2.0 s", "1 min 12 s"]


def test_configuration_data_and_versions_are_told(report: Page) -> None:
    text = " ".join(report.text.split())
    assert "d" * 64 in text
    assert "Strict protocol: validation cases of the training fold select the epoch" in text
    assert ["teacher.kind", "init_momentum", "none"] in report.rows["differences"]
    assert '"high_pool_share"' in text
    assert f"mhimdist {mh.__version__}" in text


def test_the_paper_protocol_warns_first_and_fits_nothing_on_test_cases(tmp_path: Path) -> None:
    run = write_whole_run(tmp_path / "cv", protocol="paper")
    page = page_of(run, temperature=True)
    banner = page.text.index("the test fold selects the epoch")
    assert banner < page.text.index("Results")
    assert "no cases are left to fit it on" in page.text
    assert [row[0] for row in page.rows["calibration-table"][1:]] == ["MHIM", "AB-MIL"]


def test_a_run_has_a_page(whole_run: Path) -> None:
    page = page_of(next((whole_run / "folds").glob("fold-2-seed-1-0*")))
    assert page.rows["results-strict"][1][0].startswith("MHIM (abmil)")
    assert [row[1].replace("\N{NO-BREAK SPACE}", " ") for row in page.rows["folds"][1:]] == ["fold 2, seed 1"]


def test_a_run_that_was_not_tested_shows_its_training(whole_run: Path, tmp_path: Path) -> None:
    fold, copy = next((whole_run / "folds").glob("fold-2-seed-1-0*")), tmp_path / "fold-2-seed-1"
    copy.mkdir()
    for name in ("config.json", "split.json", "history.jsonl"):
        (copy / name).write_text((fold / name).read_text())
    page = page_of(copy)
    names = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert names == ["learning", "stability", "masking", "cost", "protocol", "settings", "environment"]
    assert "Validation AUC 0.9" in " ".join(page.text.split())


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("classes", [("normal", "tumor"), ("a", "b", "c")])
def test_predictions_have_a_page(
    make_predictions: Callable[..., Path], classes: tuple[str, ...], labelled: bool
) -> None:
    page = page_of(make_predictions(classes=classes, labelled=labelled), temperature=True)
    assert len(page.rows["every-slide"]) == 41
    assert page.rows["every-slide"][1][-1] == "0.062"
    assert len(page.rows["every-case"]) == 21
    assert page.rows["every-case"][1][1] == "2"
    assert ("results-strict" in page.rows or "results-predictions" in page.rows) == labelled
    assert [row[0] for row in page.rows["models"][1:]] == [f"runs/cv/folds/fold-{i}" for i in (1, 2, 3)]
    assert "mean over 3 models" in page.text


def test_the_slides_nearest_to_the_decision_come_first(make_predictions: Callable[..., Path]) -> None:
    folder = make_predictions()
    about = json.loads((folder / "prediction.json").read_text()) | {"threshold": 0.75}
    (folder / "prediction.json").write_text(json.dumps(about))
    rows = page_of(folder).rows["every-slide"][1:]
    gaps = [abs(float(row[5]) - 0.75) for row in rows]
    assert gaps == sorted(gaps)
    wrong = [row[3].endswith("\nwrong") for row in rows]
    assert wrong == [row[2] != row[3].partition("\n")[0] for row in rows]


def test_the_final_runs_of_a_sweep_do_not_replace_its_report(tmp_path: Path) -> None:
    run = write_cross_validation(tmp_path / "sweep", {"best": (PLAIN, 1.0)}, holder="final")
    assert mh.write_report(run) == run / "final.html"
    assert page_of(run).rows["results-strict"][1][0].startswith("best")


def test_the_papers_tables_keep_their_layout(tmp_path: Path) -> None:
    page = page_of(write_paper_tables(tmp_path / "paper", HOSTILE))
    assert page.rows["paper-0"] == [["Module", "AUC"], ["base", "90.00 ± 0.10"]]
    names = [row[0].partition("3 folds")[0] for row in page.rows["results-strict"][1:]]
    assert names == ["abmil", HOSTILE]
    assert "Table 3 <b>" in page.text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "p", classes=("normal", HOSTILE), name=HOSTILE)
    page = page_of(folder)
    assert not [tag for tag, _ in page.elements if tag == "b"]
    scripts = [attributes.get("type", "") for tag, attributes in page.elements if tag == "script"]
    assert len([kind for kind in scripts if not kind]) == 2, "plotly and the page's own"
    (slide, case, *_) = page.rows["every-slide"][1]
    assert slide.startswith(HOSTILE)
    assert case.startswith(HOSTILE)
    for figure in page.figures:
        for text in re.findall(r'"(?:text|name|hovertemplate)": "([^"]*)"', json.dumps(figure)):
            assert "<script" not in text
            assert "<b>" not in text.replace("<b></b>", "")


def test_hostile_configurations_stay_text(tmp_path: Path) -> None:
    run = write_cross_validation(tmp_path / "cv", {HOSTILE: (PLAIN, 1.0)}, dataset=HOSTILE, prefix=HOSTILE)
    page = page_of(run)
    assert HOSTILE in page.rows["results-strict"][1][0]
    assert not [tag for tag, _ in page.elements if tag == "b"]


def test_subgroups_divide_the_test_slides(whole_run: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    lines = [f"s{i:03d}.svs,{'old' if i < 20 else 'new' if i < 50 else ''}" for i in range(60)]
    table.write_text("\n".join(["slide,scanner", *lines]))
    page = page_of(whole_run, subgroups=[f"{table}:scanner"])
    rows = page.rows["subgroups-table"]
    assert rows[0][1] == "scanner"
    assert [row[1:4] for row in rows[1:4]] == [
        ["new", "30", "30"],
        ["old", "20", "20"],
        ["(no value)", "10", "10"],
    ]
    assert all(0 <= float(row[4]) <= 1 for row in rows[1:])
    with pytest.raises(ReportError, match=r"expected a column 'age', found slide, scanner"):
        page_of(whole_run, subgroups=[f"{table}:age"])
    with pytest.raises(ReportError, match="expected a table and a column"):
        page_of(whole_run, subgroups=["scanner"])
    with pytest.raises(DataError, match=r"none\.csv"):
        page_of(whole_run, subgroups=[f"{tmp_path}/none.csv:scanner"])
    table.write_text("slide,scanner\nother,old\n")
    with pytest.raises(ReportError, match="expected rows of the test slides"):
        page_of(whole_run, subgroups=[f"{table}:scanner"])


def test_the_file_is_whole_and_equal_each_time(whole_run: Path, tmp_path: Path) -> None:
    first, second = (mh.write_report(whole_run, tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_text() == second.read_text()
    page = Page(first.read_text())
    assert not page.attributes("src")
    assert not page.attributes("href")


def test_plotly_is_inside_once_and_the_page_is_small(
    whole_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # of `without_plotly`
    path = mh.write_report(whole_run, tmp_path / "report.html", temperature=True)
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 8e6
    assert html.count("plotly.js v") == 1
    assert not re.search(r"[\x00-\x08\x0b\x0e-\x1f]", html), "HTML forbids them"


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="expected an existing folder"):
        mh.write_report(tmp_path / "none")
    with pytest.raises(ReportError, match="found none of them"):
        mh.write_report(tmp_path)
    (tmp_path / "history.jsonl").write_text('{"epoch": 0}\n{"epoch"')
    with pytest.raises(ReportError, match=r"history\.jsonl, line 2: expected the record of an epoch"):
        mh.write_report(tmp_path)


def test_the_command_writes_one_page_per_folder(
    whole_run: Path, make_predictions: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted = make_predictions()
    run = next((whole_run / "folds").glob("fold-2-seed-1-0*"))
    monkeypatch.setattr(sys, "argv", ["report.py", str(predicted), "--out", str(tmp_path / "one.html")])
    assert run_report(ReportJob.from_command_line()) == [tmp_path / "one.html"]
    with pytest.raises(ConfigError, match="expected one folder for one file"):
        run_report(ReportJob(folders=[str(predicted), str(run)], out=tmp_path / "two.html"))
