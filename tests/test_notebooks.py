"""The notebooks of docs/notebooks run from the first cell to the last, and are kept without outputs."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from job_scripts import ROOT
from nbclient import NotebookClient

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
TIMEOUT_S = 1200


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a notebook in this folder, and return what its cells print."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MHIMDIST_HOME", str(folder))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    return printed + f"{len(pictures)} pictures\n"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_without_outputs(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_every_notebook_stands_in_the_contents():
    contents = (ROOT / "docs" / "index.md").read_text()
    assert set(NOTEBOOKS) == set(re.findall(r"^notebooks/(\w+)$", contents, flags=re.MULTILINE))


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT_S)
def test_a_model_of_ones_own_learns(tmp_path, monkeypatch):
    printed = run("own_model", tmp_path, monkeypatch)
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert 0.5 < float(re.search(r"test AUC ([\d.]+)", printed)[1]) <= 1


@pytest.mark.slow  # the notebook above is as quick, and shows that notebooks run
@pytest.mark.timeout(TIMEOUT_S)
def test_a_model_is_looked_at(tmp_path, monkeypatch):
    printed = run("look_at_a_model", tmp_path, monkeypatch)
    assert 0.5 < float(re.search(r"test AUC ([\d.]+)", printed)[1]) <= 1
    assert "digits are positive; they get" in printed
    assert len(re.findall(r"^epoch \d+: \d+% hidden", printed, flags=re.MULTILINE)) >= 1
    assert printed.endswith("2 pictures\n")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_a_first_sweep(tmp_path, monkeypatch):
    printed = run("first_sweep", tmp_path, monkeypatch)
    assert re.search(r"^trials 3$", printed, flags=re.MULTILINE)
    assert (tmp_path / "runs" / "first" / "report.html").exists()
