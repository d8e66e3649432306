import io
import json
import shutil
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState
from ray.tune.logger import LoggerCallback
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from mhimdist.cluster.nodes import Share
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.search import proposals, storage
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.search.study import SweepStudy
from mhimdist.sweep import live_trials
from mhimdist.sweep.driver import Driver
from mhimdist.sweep.folder import SweepFolder
from mhimdist.sweep.live_trials import Capacity
from mhimdist.sweep.memory import TrialShares
from mhimdist.sweep.ray_hooks import (
    DriverCallback,
    StopOnceSaved,
    StudyScheduler,
    StudySearcher,
    guard_callback,
)
from mhimdist.sweep.silence import Silence
from mhimdist.sweep.watch import Watch

BASE = preset("c16", "abmil").override({"epochs": 3})
SIZES_N = np.array([100, 400, 300, 50])


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
    opened = SweepStudy(
        sweep, space, proposals.examine(space, BASE), storage.sqlite_url(tmp_path / "study.db")
    )
    return _drive(opened, folder, said)


def _drive(
    study: SweepStudy, folder: SweepFolder, said: io.StringIO, clock: Callable[[], float] = time.monotonic
) -> Driver:
    return Driver(
        study,
        folder,
        Watch(Console(file=said, width=200), num_trials=4),
        folder.clock(),
        [],
        capacity=Capacity(lambda: 3),
        shares=TrialShares(Share(1, 0.25, 100), Share(1, 1, 350)),
        sizes_N=SIZES_N,
        silence=Silence(10.0, clock=clock),
    )


def _result(**changes) -> dict:
    folds = json.dumps({"fold 1": 0.8})
    result = {"epoch": 3, "validation_score": 0.8, "folds": folds, "num_epochs": 3, "is_finished": True}
    return result | changes


OUT_OF_MEMORY = {"failed": "MemoryError: full", "is_finished": False}


def test_no_more_run_at_once_than_planned_and_every_trial_ends_once(driver):
    assert [driver.suggest(name)["number"] for name in "abc"] == [0, 1, 2]
    assert driver.suggest("d") is None
    driver.ended("a", _result(), error=False)
    assert driver.suggest("d")["number"] == 3
    assert driver.suggest("e") is None
    for name in "bcd":
        driver.ended(name, _result(), error=False)
    driver.ended("d", _result(), error=False)  # reported twice
    assert driver.suggest("e") == Searcher.FINISHED
    assert [trial.state for trial in driver.study.trials] == [TrialState.COMPLETE] * 4
    assert driver.num_live == 0


def _run_out_of_memory(driver, trial_id) -> None:
    driver.ended(trial_id, OUT_OF_MEMORY, error=False)


def test_a_trial_out_of_memory_is_given_more_until_it_fails_alone_and_the_others_are_not(driver, said):
    for name in "abc":
        driver.suggest(name)
    for trial_id, following, memory_bytes in (("b", "d", 200), ("d", "e", 350)):
        _run_out_of_memory(driver, trial_id)
        given = driver.suggest(following)
        assert (given["number"], given["share"]) == (
            1,
            {"cpus": 1, "gpus": 0.25, "memory_bytes": memory_bytes},
        )
        assert driver.suggest("x") is None  # three at once, as before
    assert said.getvalue().count("trial 1 ran out of memory: it runs again with 0 MiB to itself") == 2
    _run_out_of_memory(driver, "e")  # with all the memory of a node, and steps that cannot be smaller
    assert driver.study.trials[1].state == TrialState.FAIL
    assert driver.study.trials[1].user_attrs["reason"] == "MemoryError: full"
    assert driver.study.trials[1].user_attrs["starts"] == 1
    given = driver.suggest("f")
    assert given["number"] == 3
    assert "share" not in given
    for name in "acf":
        driver.ended(name, _result(), error=False)
    assert driver.suggest("g") == Searcher.FINISHED
    assert [trial.number for trial in driver.study.trials] == [0, 1, 2, 3]


def test_a_trial_alone_on_a_share_of_a_gpu_is_given_more_of_it_before_its_steps_shrink(driver, said):
    """Its cap has refused the memory, not a neighbour: the rest of the GPU is free."""
    driver.study.sweep = driver.study.sweep.model_copy(update={"num_trials": 1})
    driver.suggest("a")
    for trial_id, following, gpus in (("a", "b", 0.5), ("b", "c", 1)):
        driver.ended(trial_id, {"failed": "OutOfMemoryError: CUDA out of memory", "done": True}, error=False)
        given = driver.suggest(following)
        assert (given["number"], given["share"]["gpus"]) == (0, gpus)
        assert f"trial 0 ran out of memory: it runs again with {gpus:g} GPU to itself" in said.getvalue()
    driver.ended("c", {"failed": "OutOfMemoryError: CUDA out of memory", "done": True}, error=False)
    assert driver.study.trials[0].state == TrialState.FAIL  # with a whole GPU, and steps as small as they get


def test_a_gpu_that_is_full_makes_a_trial_share_it_with_fewer(driver, said):
    for name in "ab":
        driver.suggest(name)
    for trial_id, following, gpus in (("b", "c", 0.5), ("c", "d", 1)):
        driver.ended(trial_id, {"failed": "OutOfMemoryError: CUDA out of memory", "done": True}, error=False)
        assert driver.suggest(following)["share"] == {"cpus": 1, "gpus": gpus, "memory_bytes": 100}
        assert f"trial 1 ran out of memory: it runs again with {gpus:g} GPU to itself" in said.getvalue()


def test_nodes_that_come_and_go_change_how_many_run_at_once(driver, said, monkeypatch):
    fitting = [5]
    driver.capacity.count = lambda: fitting[0]
    for name in "abc":
        driver.suggest(name)
    assert driver.suggest("d") is None
    driver.tick({0, 1, 2})
    assert driver.suggest("d") is None  # the nodes were counted a moment ago
    monkeypatch.setattr(live_trials, "RECOUNT_S", 0.0)
    driver.tick({0, 1, 2})
    assert driver.suggest("d")["number"] == 3
    assert "the cluster's nodes have changed: 5 trials at once" in said.getvalue()
    fitting[0] = 2
    driver.tick({0, 1, 2, 3})
    driver.ended("a", {"failed": "ValueError: no", "done": True}, error=False)
    driver.study.sweep = driver.study.sweep.model_copy(update={"num_trials": 9})
    assert driver.suggest("e") is None


def test_a_trial_that_is_alone_takes_smaller_steps_before_it_fails(driver, said):
    driver.study.sweep = driver.study.sweep.model_copy(
        update={"train": BASE.override({"bags_per_step": 4, "optimizer.rate_rule": "sqrt"})}
    )
    driver.suggest("a")
    left = driver.folder.trial(0) / "fold-1-seed-1" / "checkpoints"
    left.mkdir(parents=True)
    for trial_id, max_instances in (("b", 425), ("c", 400)):
        _run_out_of_memory(driver, {"b": "a", "c": "b"}[trial_id])
        assert f"begins again with steps of at most {max_instances} instances" in said.getvalue()
        assert not left.parent.exists()
        assert driver.suggest(trial_id)["number"] == 0
        assert driver.study.config(0).max_instances == max_instances
        config = TrainConfig.model_validate_json((driver.folder.trial(0) / "config.json").read_text())
        assert config.max_instances == max_instances
    _run_out_of_memory(driver, "c")  # a step is no smaller than the largest bag
    assert driver.study.trials[0].state == TrialState.FAIL


def _lose(driver, trial_id, reason="ActorDiedError: its worker process has died") -> None:
    driver.note_error(trial_id, reason)
    driver.ended(trial_id, None, error=True)


@pytest.mark.faults(33)
def test_a_lost_process_starts_its_trial_again_but_not_for_ever(driver, said):
    driver.suggest("a")
    _lose(driver, "a")
    assert "trial 0 lost its process; it resumes from its last checkpoint" in said.getvalue()
    assert driver.suggest("b")["number"] == 0
    _lose(driver, "b", "ray.exceptions.ActorDiedError: The actor died.\nIts node was lost to a hoover.\n")
    assert driver.study.trials[0].state == TrialState.FAIL
    reason = driver.study.trials[0].user_attrs["reason"]
    assert reason.startswith("its process was lost 2 times in a row: ")
    assert reason.endswith("(Its node was lost to a hoover.)")


def test_a_trial_that_progresses_in_between_may_lose_any_number_of_processes(driver):
    for epoch, name in enumerate("abcdefgh", 1):
        assert driver.suggest(name)["number"] == 0
        for again in range(1, epoch + 1):  # it reports its earlier epochs again, without training
            driver.decide(name, _result(epoch=again, is_finished=False))
        _lose(driver, name)
    assert driver.suggest("i")["number"] == 0
    for again in range(1, 9):
        driver.decide("i", _result(epoch=again, is_finished=False))
    _lose(driver, "i")
    assert driver.study.trials[0].state == TrialState.FAIL


def test_a_trial_whose_node_ran_out_of_memory_gets_more_and_has_not_failed(driver, said):
    names = iter("abcdefgh")
    for _ in range(3):
        last = next(names)
        driver.suggest(last)
    for memory_bytes in (200, 350):
        _lose(driver, last, "ray.exceptions.OutOfMemoryError: Task was killed")
        last = next(names)
        assert driver.suggest(last)["share"]["memory_bytes"] == memory_bytes
    assert said.getvalue().count("because its node ran out of memory: it runs again with ") == 2
    # With all of its node's memory, another program may have taken it: this counts as an ordinary loss.
    _lose(driver, last, "ray.exceptions.OutOfMemoryError: Task was killed")
    assert driver.suggest("h")["number"] == 2
    _lose(driver, "h", "ray.exceptions.OutOfMemoryError: Task was killed")
    assert driver.study.trials[2].state == TrialState.FAIL


def test_a_process_that_is_lost_twice_is_taken_for_a_victim_of_the_kernel(driver, said):
    driver.study.sweep = driver.study.sweep.model_copy(update={"max_failures": 2})
    for name in "ab":
        driver.suggest(name)
    _lose(driver, "b")
    assert "share" not in driver.suggest("c")
    _lose(driver, "c")
    assert "resumes from its last checkpoint, with more memory" in said.getvalue()
    assert driver.suggest("d")["share"]["memory_bytes"] == 200


def test_asked_to_stop_it_proposes_nothing_and_is_over_once_all_are_saved(driver, said):
    driver.suggest("a")
    driver.suggest("b")
    driver.tick({0, 1})
    assert not driver.folder.stop_file.exists()
    driver._is_asked_to_stop = lambda: True
    assert driver.suggest("c") is None
    driver.tick({0, 1})
    assert driver.folder.stop_file.exists()
    assert "asked to stop: saving 2 running trials" in said.getvalue()
    driver.ended("a", {"is_saved": True, "is_finished": False}, error=False)
    driver.tick({1})
    assert not driver.is_over
    assert driver.suggest("d") is None
    driver.tick(set())
    assert driver.is_over
    assert driver.num_live == 2  # the second one waited for a process
    assert [trial.state for trial in driver.study.trials] == [TrialState.RUNNING] * 2


def test_a_failure_in_the_driver_stops_the_sweep_in_order(driver, said, monkeypatch):
    driver.suggest("a")
    driver.suggest("b")
    searcher, scheduler = StudySearcher(driver), StudyScheduler(driver)

    def hiccup(*arguments, **named):
        raise ConnectionError("the database\nis away")

    monkeypatch.setattr(driver.study, "report", hiccup)
    trial = SimpleNamespace(trial_id="a")
    assert scheduler.on_trial_result(None, trial, _result(is_finished=False)) == TrialScheduler.CONTINUE
    searcher.on_trial_complete("a", _result())
    assert searcher.suggest("c") is None
    DriverCallback(driver).on_step_end(1, [SimpleNamespace(status="RUNNING", config={"number": 0})])
    assert driver.folder.stop_file.exists()
    assert (
        "cannot continue (ConnectionError: the database is away): saving 1 running trial" in said.getvalue()
    )
    searcher.on_trial_complete("b", {"is_saved": True, "is_finished": False})
    DriverCallback(driver).on_step_end(2, [])
    assert driver.is_over
    assert StopOnceSaved(driver).stop_all()
    assert [trial.state for trial in driver.study.trials] == [TrialState.RUNNING] * 2
    assert not list(driver.folder.path.glob("trials/*/ended"))
    driver.end_in_order()
    assert [trial.user_attrs["starts"] for trial in driver.study.trials] == [0, 0]


def test_if_no_trial_can_be_asked_to_stop_all_end_at_once(driver, monkeypatch):
    driver.suggest("a")
    driver.error = OSError(28, "No space left on device")
    shutil.rmtree(driver.folder.path)
    driver.tick({0})
    driver.tick({0})
    assert driver.is_over


def test_a_logger_that_fails_stops_the_sweep_in_order(driver):
    class Logger(LoggerCallback):
        seen = 0

        def log_trial_result(self, iteration, trial, result):
            self.seen += 1
            if self.seen == 2:
                raise TimeoutError("the server of the logger")

    logger = guard_callback(Logger(), driver)
    trials = [SimpleNamespace(trial_id="a")]
    for iteration in range(3):
        logger.on_trial_result(iteration=iteration, trials=trials, trial=trials[0], result={})
    assert logger.seen == 3
    assert isinstance(driver.error, TimeoutError)
    assert driver.is_stopping


def _fail(driver, trial_id, host, reason="DiskFullError: disk full") -> None:
    driver.suggest(trial_id)
    driver.guarded(
        driver.ended, trial_id, {"failed": reason, "is_finished": False, "hostname": host}, error=False
    )


def test_failures_in_a_row_stop_the_sweep_and_say_where_they_were(driver):
    driver.study.sweep = driver.study.sweep.model_copy(update={"num_trials": 9, "max_failures_in_a_row": 3})
    for name in "ab":
        _fail(driver, name, "node-1")
    driver.suggest("c")
    driver.ended("c", _result(), error=False)
    for name, host in (("d", "node-1"), ("e", "node-2")):
        _fail(driver, name, host)
        assert not driver.is_stopping
    _fail(driver, "f", "node-2")
    assert driver.is_stopping
    assert str(driver.error).startswith(
        "3 trials in a row failed (2 on node-2, 1 on node-1), the last is trial 5: DiskFullError: disk full;"
    )
    assert driver.study.trials[5].user_attrs["reason"] == "DiskFullError: disk full (on node-2)"
    assert [path.parent.name for path in sorted(driver.folder.path.glob("trials/*/ended"))] == [
        f"{number:04d}" for number in range(6)
    ]


@pytest.mark.faults(34)
def test_a_value_that_is_not_finite_fails_alone(driver):
    driver.suggest("a")
    driver.ended("a", _result(validation_score=float("inf")), error=False)
    assert driver.study.trials[0].state == TrialState.FAIL
    assert driver.watch.best is None


def two(s: Space) -> None:
    s.choice("teacher.momentum.kind", ["constant", "cosine"])


def test_a_space_with_no_more_to_try_ends_the_sweep_and_says_so(driver, tmp_path, said):
    url = storage.sqlite_url(tmp_path / "small.db")
    sweep = driver.study.sweep.model_copy(update={"warm_presets": False})
    driver = _drive(SweepStudy(sweep, two, proposals.examine(two, BASE), url), driver.folder, said)
    assert [driver.suggest(name)["number"] for name in "ab"] == [0, 1]
    assert driver.suggest("c") is None  # one of the two may come back
    assert "the space has no more" in said.getvalue()
    assert "the sweep ends with 2 trials of 4" in said.getvalue()
    assert driver.watch.num_trials == 2
    for name in "ab":
        driver.ended(name, _result(), error=False)
    assert "[2/2] trial   1 complete" in said.getvalue()
    assert driver.suggest("d") == Searcher.FINISHED
    assert said.getvalue().count("the space has no more") == 1


@pytest.mark.faults(46)
def test_a_silent_trial_is_named_with_its_process_ended_and_runs_again(driver, said):
    now = [0.0]
    driver = _drive(driver.study, driver.folder, said, clock=lambda: now[0])

    def tick_until(until_s: float) -> list[int]:
        ended = []
        while now[0] < until_s:
            now[0] += 1
            ended += driver.tick({0})
        return ended

    for ray_id, ends in (("a", 700), ("b", 1400)):
        assert driver.suggest(ray_id)["number"] == 0
        process = driver.folder.trial(0) / "process.json"
        assert not process.exists()
        if ray_id == "b":
            process.write_text(json.dumps({"host": "node-7", "pid": 4711}))
        assert tick_until(ends) == [0]
        driver.note_error(ray_id, "Ray's own words for an end by us")
        driver.ended(ray_id, None, error=True)
    named, ended, resumed, *others, failed = said.getvalue().splitlines()
    silent = "trial 0 has reported nothing for"
    unknown, known = "(its process has not begun)", "(process 4711 on node-7)"
    assert (
        named
        == f"{silent} 2 min 11 s {unknown}; the longest epoch took 10 s, and its process is ended "
        + ("after 11 min 30 s")
    )
    assert ended == f"{silent} 11 min 31 s {unknown}; the longest epoch took 10 s: its process is ended"
    assert resumed == "trial 0 lost its process; it resumes from its last checkpoint"
    assert [known in line for line in others] == [True, True]
    reason = "its process was lost 2 times in a row (it has reported nothing for 11 min 31 s (process 4711"
    assert reason in failed
    assert driver.study.trials[0].user_attrs["reason"].endswith("(on node-7)")
