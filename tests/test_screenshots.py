"""docs/screenshots.py draws a page with a real browser, and refuses what it cannot draw."""

import runpy
from pathlib import Path

import pytest
from browser import CHROMIUM, NEEDED
from job_scripts import ROOT
from PIL import Image

SCRIPT = str(ROOT / "docs" / "screenshots.py")


@pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)
def test_a_report_becomes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = "<section><h2>Other</h2></section><section><h2>Learning curves</h2></section>"
    style = "<style>body{margin:0} h2{margin:0;height:400px;background:#0a0}</style>"
    page = f"<head>{style}</head><body>{sections}"
    script = "<script>document.body.style.background = '#00a'</script>"
    (tmp_path / "report.html").write_text(f"<!doctype html><html>{page}{script}</body></html>")
    monkeypatch.setattr("sys.argv", [SCRIPT, "--sweep", str(tmp_path), "--out", str(tmp_path / "report.png")])
    runpy.run_path(SCRIPT, run_name="__main__")
    with Image.open(tmp_path / "report.png") as image:
        assert image.size == (1210, 1108)
        pixels = image.convert("RGB")
        assert pixels.getpixel((600, 200)) == (0, 170, 0)
        assert pixels.getpixel((600, 900)) == (0, 0, 170)


def test_a_folder_without_a_report_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [SCRIPT, "--sweep", str(tmp_path)])
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")
    with pytest.raises(SystemExit, match=r"report\.html: expected a report; give the folder of a finished"):
        runpy.run_path(SCRIPT, run_name="__main__")


def test_the_picture_of_the_readme_has_the_size_that_the_script_takes() -> None:
    with Image.open(ROOT / "docs" / "report.png") as image:
        assert image.size == (1210, 1108)
    assert (ROOT / "docs" / "report.png").stat().st_size < 300_000
