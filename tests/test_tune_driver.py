import io
import json

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from rich.console import Console

from mhimdist import samplers, study
from mhimdist.presets import preset
from mhimdist.report.live import Watch
from mhimdist.space import Space
from mhimdist.study import SweepStudy
from mhimdist.sweep import Sweep
from mhimdist.sweep_folder import SweepFolder
from mhimdist.tune_driver import Driver

BASE = preset("c16", "abmil").override({"epochs": 3})


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.0, 1.0)


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def driver(tmp_path, said) -> Driver:
    sweep = Sweep(home=tmp_path, num_trials=4, max_failures=1, scheduler="none", train=BASE)
    folder = SweepFolder(sweep)
    folder.path.mkdir(parents=True)
    opened = SweepStudy(sweep, space, samplers.examine(space, BASE), study.sqlite_url(tmp_path / "study.db"))
    watch = Watch(Console(file=said, width=200), num_trials=4, at_once=3)
    return Driver(opened, folder, watch, folder.clock(), [], at_once=3)


def _result(**changes) -> dict:
    units = json.dumps({"fold 1": 0.8})
    result = {"epoch": 3, "validation_auc": 0.8, "units": units, "num_epochs": 3, "is_finished": True}
    return result | changes


OUT_OF_MEMORY = {"failed": "MemoryError: full", "is_out_of_memory": True, "is_finished": False}


def test_no_more_run_at_once_than_planned_and_every_trial_ends_once(driver):
    assert [driver.suggest(name)["number"] for name in "abc"] == [0, 1, 2]
    assert driver.suggest("d") is None
    driver.ended("a", _result(), error=False)
    assert driver.suggest("d")["number"] == 3
    assert driver.suggest("e") is None
    for name in "bcd":
        driver.ended(name, _result(), error=False)
    driver.ended("d", _result(), error=False)  # said twice
    assert driver.suggest("e") == Searcher.FINISHED
    assert [trial.state for trial in driver.study.trials] == [TrialState.COMPLETE] * 4
    assert driver.num_live == 0


def test_out_of_memory_lowers_the_number_at_once_and_the_trial_runs_again(driver, said):
    for name in "abc":
        driver.suggest(name)
    driver.ended("b", _result(**OUT_OF_MEMORY), error=False)
    assert driver.suggest("d") is None  # two are still running
    assert "trial 1 ran out of memory: from now on 2 trials at once, and it runs again" in said.getvalue()
    driver.ended("a", _result(), error=False)
    assert driver.suggest("d")["number"] == 1
    driver.ended("d", _result(**OUT_OF_MEMORY), error=False)  # again: it fails alone
    assert driver.study.trials[1].state == TrialState.FAIL
    assert driver.study.trials[1].user_attrs["reason"] == "MemoryError: full"


def test_a_lost_process_starts_its_trial_again_but_not_for_ever(driver, said):
    driver.suggest("a")
    driver.ended("a", None, error=True)
    driver.lost(0, "ActorDiedError: the node is gone")
    assert "trial 0: its process was lost; it goes on from its last checkpoint" in said.getvalue()
    assert driver.suggest("b")["number"] == 0
    driver.ended("b", None, error=True)
    assert driver.study.trials[0].state == TrialState.FAIL
    assert "lost 2 times" in driver.study.trials[0].user_attrs["reason"]


def test_a_trial_whose_node_ran_out_of_memory_makes_room(driver, said):
    for name in "abc":
        driver.suggest(name)
    driver.ended("c", None, error=True)
    driver.lost(2, "ray.exceptions.OutOfMemoryError: task was killed")
    assert "was killed because its node ran out of memory: from now on 2 trials" in said.getvalue()
    assert driver.suggest("d") is None


def test_a_value_that_is_not_finite_fails_alone(driver):
    driver.suggest("a")
    driver.ended("a", _result(validation_auc=float("inf")), error=False)
    assert driver.study.trials[0].state == TrialState.FAIL
    assert driver.watch.best is None
