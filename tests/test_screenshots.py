"""docs/screenshots.py draws pages and terminals with a real browser, and refuses what it cannot draw."""

import runpy
from pathlib import Path

import pytest
from browser import CHROMIUM, NEEDED
from job_scripts import ROOT
from PIL import Image, ImageChops, ImageStat

PAGES = ROOT / "docs"
SCRIPT = str(PAGES / "screenshots.py")


@pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)
def test_a_report_becomes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = "<section><h2>Other</h2></section><section><h2>Learning curves</h2></section>"
    style = "<style>body{margin:0} h2{margin:0;height:400px;background:#0a0}</style>"
    page = f"<head>{style}</head><body>{sections}"
    script = "<script>document.body.style.background = '#00a'</script>"
    (tmp_path / "report.html").write_text(f"<!doctype html><html>{page}{script}</body></html>")
    monkeypatch.setattr("sys.argv", [SCRIPT, "report", "--sweep", str(tmp_path), "--out", str(tmp_path)])
    runpy.run_path(SCRIPT, run_name="__main__")
    with Image.open(tmp_path / "report.png") as image:
        assert image.size == (1210, 1108)
        pixels = image.convert("RGB")
        assert pixels.getpixel((600, 200)) == (0, 170, 0)
        assert pixels.getpixel((600, 900)) == (0, 0, 170)


def test_a_folder_without_a_report_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [SCRIPT, "report", "--sweep", str(tmp_path)])
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")
    with pytest.raises(SystemExit, match=r"report\.html: expected a report; give the folder of a finished"):
        runpy.run_path(SCRIPT, run_name="__main__")


@pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)
def test_a_terminal_becomes_a_picture_of_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [SCRIPT, "help", "--out", str(tmp_path)])
    runpy.run_path(SCRIPT, run_name="__main__")
    with Image.open(tmp_path / "help.png") as image, Image.open(PAGES / "help.png") as shown:
        drawn, kept = image.convert("RGB"), shown.convert("RGB")
    assert drawn.getpixel((0, 0)) == kept.getpixel((0, 0)) == (41, 41, 41)
    assert 600 < drawn.width < 900
    assert 400 < drawn.height < 600
    if drawn.size == kept.size:  # the same fonts: what the pages show is what the command prints today
        difference = ImageStat.Stat(ImageChops.difference(drawn, kept)).mean
        assert max(difference) < 0.5


def test_an_unknown_picture_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", [SCRIPT, "halp"])
    with pytest.raises(SystemExit):
        runpy.run_path(SCRIPT, run_name="__main__")
    assert "no picture 'halp'; valid: report, cross_validation, compare, " in capsys.readouterr().err


def test_every_picture_is_on_a_page_and_small() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "README.md", *PAGES.glob("*.md")))
    for name in runpy.run_path(SCRIPT)["PICTURES"]:
        assert f"{name}.png)" in pages
        with Image.open(PAGES / f"{name}.png") as image:
            assert 700 <= image.width <= 1210
        assert (PAGES / f"{name}.png").stat().st_size < 300_000
    with Image.open(PAGES / "report.png") as image:
        assert image.size == (1210, 1108)
