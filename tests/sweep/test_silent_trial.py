"""A trial whose process is stopped: the sweep names it, and ends once the process goes on."""

import threading
import time
from contextlib import suppress

import psutil
import pytest
import ray
from optuna.trial import TrialState

from data_prep import digits
from mhimdist.config.presets import preset
from mhimdist.search import storage
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep import silence
from mhimdist.sweep.run import run_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]
BASE = preset("c16", "abmil").override(
    {
        "model.hidden_dim": 16,
        "model.attention_dim": 8,
        "epochs": 6,
        "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
        "device": "cpu",
    }
)


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.01, 1.0, log=True)


@pytest.fixture
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _trial() -> psutil.Process | None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "Trainable.train" in " ".join(process.cmdline()):
                return process
    return None


@pytest.mark.faults(22, 46)
def test_a_trial_that_is_stopped_is_named_and_the_sweep_ends_once_it_goes_on(
    cluster, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(silence, "NAMED_S", 5.0)
    monkeypatch.setattr(silence, "NAMED_EPOCHS", 1)
    data = digits.build("digits-c16", tmp_path / "digits-c16", scale=0.01)
    sweep = Sweep(
        home=tmp_path,
        name="silent",
        num_trials=1,
        folds=2,
        scheduler="none",
        between_folds=False,
        final_seeds=1,
        train=BASE,
    )
    said: list[str] = []
    is_over = threading.Event()

    def stop_until_it_is_named() -> None:
        while (process := _trial()) is None:
            if is_over.wait(0.02):
                return
        process.suspend()
        try:
            deadline = time.monotonic() + 300
            while "trial 0 has reported nothing for" not in "".join(said) and time.monotonic() < deadline:
                time.sleep(0.5)
                said.append(capfd.readouterr().out)
        finally:
            process.resume()

    thread = threading.Thread(target=stop_until_it_is_named)
    thread.start()
    try:
        run_sweep(sweep, space, data=data)
    finally:
        is_over.set()
        thread.join()
    assert "trial 0 has reported nothing for" in "".join(said)
    (trial,) = storage.read(storage.sqlite_url(tmp_path / "runs" / "silent" / "study.db"), "silent")
    assert trial.state == TrialState.COMPLETE
