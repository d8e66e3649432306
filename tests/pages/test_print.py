import re
from pathlib import Path

import pytest
from page_folders import HOSTILE, write_predictions, write_whole_run
from written_runs import PLAIN, write_cross_validation

from mhimdist.errors import DiskFullError
from mhimdist.pages.print import write_figures
from mhimdist.pages.subject import read_subject


@pytest.mark.long
def test_the_figures_are_vectors_and_equal_each_time(whole_run: Path, tmp_path: Path) -> None:
    subject = read_subject(whole_run)
    first, second = write_figures(subject, tmp_path / "a"), write_figures(subject, tmp_path / "b")
    names = ["roc", "precision-recall", "reliability", "thresholds", "learning", "stability"]
    assert [path.stem for path in first] == names
    for one, other in zip(first, second, strict=True):
        content = one.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/Subtype /Image" not in content
        assert re.search(rb"/MediaBox \[ 0 0 24\d\.\d+ 216 \]", content), "the width of a column"
        assert content == other.read_bytes()


@pytest.mark.long
def test_each_protocol_has_its_figures(tmp_path: Path) -> None:
    run = write_whole_run(tmp_path / "cv")
    paper = write_cross_validation(tmp_path / "paper", {"AB-MIL": (PLAIN, 0.5)}, protocol="paper")
    for fold in (paper / "folds").iterdir():
        fold.rename(run / "folds" / fold.name)
    (run / "table.json").unlink()
    names = {path.name for path in write_figures(read_subject(run), tmp_path / "pdf")}
    assert {"roc-strict.pdf", "roc-paper.pdf", "stability-strict.pdf"} <= names
    assert "stability-paper.pdf" not in names, "there is no history to draw"


def test_hostile_names_and_three_classes_are_drawn(tmp_path: Path) -> None:
    folder = write_predictions(
        tmp_path / f"_$\\frac{{{HOSTILE.replace('/', '')[:9]}", classes=("a", "b", "c")
    )
    assert [path.stem for path in write_figures(read_subject(folder), tmp_path / "pdf")] == ["reliability"]
    unlabelled = write_predictions(tmp_path / "unlabelled", labelled=False)
    assert write_figures(read_subject(unlabelled), tmp_path / "none") == []


def test_a_full_disk_is_named(whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(DiskFullError, match=r"roc\.pdf"):
        write_figures(read_subject(whole_run), tmp_path / "pdf")
