"""The jobs that train, as users run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from job_scripts import ROOT, run_here

from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split


def _run(script: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"jobs/{script}", *arguments],
        cwd=ROOT,
        env=os.environ | {"MHIMDIST_HOME": str(home), "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_tcga_four_folds_no_case_in_two_sets_and_a_table(tmp_path):
    done = _run("train_tcga.py", "--train.epochs", "10", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MHIM (abmil)" in done.stdout
    assert "4-fold by" in done.stdout
    folder = tmp_path / "runs" / "train_tcga"
    bags = BagShards(tmp_path / "data" / "digits-tcga")
    case_of = dict(zip(bags.keys, bags.cases, strict=True))
    tested = []
    for fold in range(1, 5):
        split = Split.load(folder / "splits" / f"strict-seed-2021-fold-{fold}.json")
        sets = [{case_of[key] for key in keys} for keys in split.sets.values()]
        assert sum(map(len, sets)) == len(set().union(*sets)) == 80
        assert [len(each) for each in sets] == pytest.approx([52, 8, 20], abs=1)
        tested += sorted(sets[2])
    assert sorted(tested) == sorted(set(bags.cases))
    rows = json.loads((folder / "table.json").read_text())["rows"]
    assert [(row["runs"], row["folds"]) for row in rows] == [(4, 4), (4, 4)]
    assert min(row["auc"] for row in rows) > 0.8


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_subset_of_the_ablation_fills_its_tables(tmp_path):
    quick = ["--quick", "--epochs", "1", "--transmil-epochs", "1", "--run-folds", "1"]
    subset = ["--tables", "1,2,4", "--rows", "Max-pooling,AB-MIL,HAM,TransMIL"]
    done = _run("ablate_c16.py", *quick, *subset, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "runs" / "ablate_c16" / "tables.md").read_text()
    assert text.count("1 fold x 1 seed, 1 epoch") >= 3
    for row in ("| Max-pooling |", "| AB-MIL ", "| HAM ", "| TransMIL "):
        assert row in text
    tables = done.stdout[done.stdout.index("Table 1:") : done.stdout.index("tables: ")]
    assert max(map(len, tables.splitlines())) <= 80


@pytest.mark.parametrize(
    ("script", "arguments", "status", "message"),
    [
        ("train_c16.py", ["--model", "nope"], 1, "error: no preset (c16, nope); valid: (c16, abmil)"),
        ("ablate_c16.py", ["--rows", "GAN"], 1, "error: rows: expected rows of these tables (Max-pooling"),
    ],
)
def test_bad_input_gives_one_clear_line(tmp_path, script, arguments, status, message):
    done = run_here(script, *arguments, home=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", ["train_tcga.py", "ablate_c16.py"])
def test_help_explains_every_option(tmp_path, script):
    done = run_here(script, "--help-all", home=tmp_path)
    assert done.returncode == 0
    options = done.stdout.split("\n  --")[1:]
    assert len(options) > 80
    for option in options:
        assert len(option.split("\n\n")[0].split("(default")[0].split()) > 2, option
