"""A sweep whose trials run out of memory: one only beside others, one always, by real allocations."""

import importlib
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from optuna.trial import TrialState

from data_prep import digits
from mhimdist.config.presets import preset
from mhimdist.search import storage
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep import ray_hooks
from mhimdist.sweep.ray_hooks import ACTOR_ERROR, RayChangedWarning, surviving_the_memory_monitor
from mhimdist.sweep.run import run_sweep
from mhimdist.sweep.trial import FoldRun

pytestmark = pytest.mark.ray
BASE = preset("c16", "abmil").override(
    {"model.hidden_dim": 16, "model.attention_dim": 8, "epochs": 3, "device": "cpu"}
)
TESTS = Path(__file__).parents[1]
TOO_WIDE = 10**10  # its weights alone are 640 GB
HUNGRY = 0.25
OTHERS = (0.5, 0.75)


def space(s: Space) -> None:
    s.choice("loss.alpha", [BASE.loss.alpha, HUNGRY, *OTHERS])
    s.choice("model.hidden_dim", [16, TOO_WIDE])
    s.require(
        lambda c: c.model.hidden_dim == 16 or c.loss.alpha == OTHERS[0], "be of the four that are tried"
    )


def _starve_hungry(folder: Path) -> None:
    """In a worker of Ray: a trial with `HUNGRY` finds a GPU's memory full while another trial trains."""
    train = FoldRun.next_epoch

    def next_epoch(self):
        mine = folder / str(os.getpid())
        mine.touch()
        try:
            if self.fold.config.loss.alpha == HUNGRY:
                time.sleep(0.5)
                if len(list(folder.iterdir())) > 1:
                    (folder.parent / "refusals").open("a").write(f"{mine.name}\n")
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return train(self)
        finally:
            time.sleep(0.3)
            mine.unlink()

    FoldRun.next_epoch = next_epoch


def test_ray_has_the_private_names_that_are_changed_for_its_memory_monitor():
    """If this fails: look how the new Ray handles an `OutOfMemoryError`, and change or delete the patch."""
    modules, missing = ray_hooks._modules_to_patch()
    assert missing == [], f"Ray {ray.__version__} has changed: `surviving_the_memory_monitor` does nothing"
    assert [module.__name__ for module in modules] == list(ray_hooks.ERROR_MODULES)


@pytest.mark.faults(33)
def test_rays_memory_monitor_ends_one_trial_and_not_the_sweep():
    """Ray Tune alone ends the whole sweep; once it does not, delete `surviving_the_memory_monitor`."""
    actor_manager, tune_controller = map(importlib.import_module, ray_hooks.ERROR_MODULES)
    killed = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")
    errors = []

    def fail() -> None:
        manager = actor_manager.RayActorManager.__new__(actor_manager.RayActorManager)
        manager._failed_actor_ids, manager._cleanup_actor = set(), lambda tracked_actor: None
        actor = SimpleNamespace(actor_id=7, _on_error=lambda actor, error: errors.append(("actor", error)))
        task = SimpleNamespace(
            _tracked_actor=actor, _on_error=lambda actor, error: errors.append(("task", error))
        )
        manager._actor_task_failed(task, killed)
        assert manager._failed_actor_ids == {7}

    def fail_after_its_actor_was_cleaned_up() -> None:
        manager = SimpleNamespace(schedule_actor_task=lambda on_error, **named: on_error("actor", killed))
        controller = SimpleNamespace(
            _actor_manager=manager, _trial_to_actor={"trial": "actor"}, _actor_to_trial={}
        )
        tune_controller.TuneController._schedule_trial_task(
            controller, "trial", "train", on_error=lambda trial, error: errors.append((trial, error))
        )

    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        fail()
    with pytest.raises(AssertionError, match="OutOfMemoryError"):
        fail_after_its_actor_was_cleaned_up()
    with surviving_the_memory_monitor():
        assert isinstance(killed, tune_controller.RayActorError)
        fail()
        fail_after_its_actor_was_cleaned_up()
    assert errors == [("actor", killed), ("task", killed), ("trial", killed)]
    assert actor_manager.RayActorError is tune_controller.RayActorError is ray.exceptions.RayActorError


@pytest.mark.parametrize("missing", ["ray.tune.execution.gone", f"ray.tune.stopper.{ACTOR_ERROR}"])
def test_with_a_ray_of_other_names_a_sweep_warns_and_runs_without_the_patch(missing, monkeypatch):
    here = ray_hooks.ERROR_MODULES[0]
    monkeypatch.setattr(ray_hooks, "ERROR_MODULES", (here, missing.removesuffix(f".{ACTOR_ERROR}")))
    with (
        pytest.warns(RayChangedWarning, match=f"^Ray {ray.__version__} has no {missing}, which") as warned,
        surviving_the_memory_monitor(),
    ):
        assert importlib.import_module(here).RayActorError is ray.exceptions.RayActorError
    assert len(warned) == 1


@pytest.mark.slow
def test_a_trial_that_fits_beside_fewer_completes_and_one_that_never_fits_fails_alone(tmp_path, capsys):
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    active = tmp_path / "active"
    active.mkdir()
    sweep = Sweep(
        home=tmp_path,
        name="full",
        num_trials=5,
        sampler="grid",
        scheduler="none",
        cpus_per_run=0.5,
        at_once=3,
        final_seeds=1,
        max_failures=0,
        warm_presets=False,
        train=BASE,
    )
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "worker_process_setup_hook": lambda: _starve_hungry(active),
            "env_vars": {
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(TESTS), str(TESTS.parent)])
            },
        },
    )
    try:
        folder = run_sweep(sweep, space, data=data)
    finally:
        ray.shutdown()
    said = capsys.readouterr().out
    trials = {
        (t.params["loss.alpha"], t.params["model.hidden_dim"]): t
        for t in storage.read(storage.sqlite_url(folder / "study.db"), "full")
    }
    assert len(trials) == 5
    full = trials.pop((OTHERS[0], TOO_WIDE))
    assert full.state == TrialState.FAIL
    assert "can't allocate memory" in full.user_attrs["reason"]
    assert {t.state for t in trials.values()} == {TrialState.COMPLETE}
    refusals = (tmp_path / "refusals").read_text().splitlines()
    assert refusals
    # Twice the memory, then all: all of it leaves no trial beside the hungry one, and is still too little.
    for trial, times in ((full, 2), (trials[HUNGRY, 16], len(refusals))):
        assert trial.user_attrs["starts"] == 1
        assert said.count(f"trial {trial.number} ran out of memory: it runs again with ") == times
    assert "CUDA out of memory" not in (folder / "report.html").read_text()
