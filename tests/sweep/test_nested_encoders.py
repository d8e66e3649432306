"""A nested sweep over encoders, without Ray: what its outer folds test, and how it tells encoders apart."""

import json
from pathlib import Path

import pytest
from small_runs import BASE, digits_of_two_encoders

from mhimdist.comparison.compare import compare
from mhimdist.comparison.entries import read_entries
from mhimdist.cross_validation.folds import FoldSet
from mhimdist.cross_validation.options import Candidate
from mhimdist.data.opening import open_bags, with_features
from mhimdist.report.summary import Trial
from mhimdist.search.options import Sweep
from mhimdist.sweep.finals import Finished, _add_refits
from mhimdist.sweep.folder import SweepFolder
from mhimdist.sweep.nested import run_nested
from mhimdist.sweep.task import Task
from mhimdist.training.fold import run_fold

pytestmark = pytest.mark.long

SETS = ("uni", "virchow2")
PLAIN = BASE.first_stage()  # so that each set has one run per outer fold


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a nested sweep whose first outer fold chose one encoder, and the second the other."""
    data = digits_of_two_encoders(tmp_path_factory.mktemp("data"))
    home = tmp_path_factory.mktemp("home")
    train = PLAIN.override({"features": "uni"})
    sweep = Sweep(home=home, name="it", protocol="nested", folds=2, outer_folds=2, final_seeds=1, train=train)
    bags = open_bags(data, None, "uni")

    def train_fold(fold) -> None:
        run_fold(fold, with_features(bags, fold.config.features), home / "cache", 1)

    def search(inside, splits, number, finals):
        own = SweepFolder(inside, finals)
        task = Task(inside, splits, data, own.path / "trials", own.stop_file, outer=number)
        configs = [PLAIN.override({"features": name}) for name in (SETS if number == 1 else SETS[::-1])]
        candidates = [Candidate(f"trial {n}, {each.features}", each) for n, each in enumerate(configs)]
        for n, config in enumerate(configs):
            for fold in own.folds(n, config, splits):
                train_fold(fold)
        planned = FoldSet(inside, candidates, own.finals)
        _add_refits(planned, candidates, task, own, bags)
        for fold in planned.missing().values():
            train_fold(fold)
        tested = {
            candidate.config.features: [
                planned.folds[digest].ended_result() for digest in planned.members[candidate.name, "nested"]
            ]
            for candidate in candidates
        }
        best = Trial(0, "complete", 0.5, {"features": configs[0].features}, [], 1.0)
        return Finished(own.path, best, tested[configs[0].features], (), tested)

    return run_nested(sweep, bags, search, data)


def test_the_table_has_the_search_and_a_row_per_encoder(folder: Path) -> None:
    rows = json.loads((folder / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["tuned abmil", "tuned abmil on uni", "tuned abmil on virchow2"]
    assert [row["runs"] for row in rows] == [2, 2, 2]
    entries = {entry.name: entry for entry in read_entries(folder)}
    assert {name: entry.features for name, entry in entries.items()} == {
        "tuned abmil": "uni or virchow2",
        "tuned abmil on uni": "uni",
        "tuned abmil on virchow2": "virchow2",
    }
    chosen = [network.folder for network in entries["tuned abmil"].networks]
    assert chosen[0] == entries["tuned abmil on uni"].networks[0].folder
    assert chosen[1] == entries["tuned abmil on virchow2"].networks[1].folder


def test_paired_tests_over_all_outer_folds_are_in_the_report(folder: Path) -> None:
    found = json.loads((folder / "comparison.json").read_text())
    names = {"tuned abmil on uni", "tuned abmil on virchow2"}
    assert {entry["name"] for entry in found["configurations"]} == names
    (sentence,) = compare(f"{folder}::tuned abmil on uni", f"{folder}::tuned abmil on virchow2").sentences
    for text in ((folder / "table.md").read_text(), (folder / "report.html").read_text()):
        assert " ".join(sentence.split())[:80] in " ".join(text.split())
