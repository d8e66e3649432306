"""Folders to report on, written without training."""

from collections.abc import Callable
from pathlib import Path

import pytest
from page_folders import write_predictions, write_whole_run

from mhimdist.report import page


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation of two configurations; tests must not change it."""
    return write_whole_run(tmp_path_factory.mktemp("runs") / "cv")


@pytest.fixture
def make_predictions(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of predictions below the test's own folder."""
    return lambda name="predicted", **options: write_predictions(tmp_path / name, **options)


@pytest.fixture
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove plotly.js from the page: it is 4.8 MB of the text that the tests read."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
