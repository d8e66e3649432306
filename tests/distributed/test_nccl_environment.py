"""The settings of NCCL's watchdog: it must not act before our message."""

from pathlib import Path

import pytest

from mhimdist.distributed.worker_group import Group, _trainer, _WorkerTask, nccl_environment
from mhimdist.training.folds import Fold

NAMES = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC")


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("timeout_s", [0.5, 300.0, 3600.0])
def test_the_watchdog_leaves_time_for_an_exchange_and_a_wait_for_the_device(timeout_s):
    handling, heartbeat_s = (nccl_environment(timeout_s)[name] for name in NAMES)
    assert handling == "0"  # neither tears down nor aborts
    # The monitor kills a process so long after an exchange was late by `timeout_s`.
    assert timeout_s + int(heartbeat_s) > 2 * timeout_s
    assert int(heartbeat_s) >= 480


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    assert nccl_environment(300.0)["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_workers_on_gpus_get_the_settings_when_they_start(tmp_path: Path, gpus):
    fold = Fold(
        "it", None, None, 1, tmp_path, is_tested=True
    )  # nothing of it is read before the workers start
    trainer = _trainer(_WorkerTask(fold, tmp_path, tmp_path, Group((2, 2), gpus=gpus, timeout_s=300.0)))
    given = trainer.run_config.worker_runtime_env.get("env_vars", {})
    assert given == (nccl_environment(300.0) if gpus else {})
