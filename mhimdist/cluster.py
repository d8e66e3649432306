"""How a job joins Ray, and what a run takes of it."""

import logging
import os

import ray
import torch


def connect() -> None:
    """Join the cluster that runs this job; alone, start a local one and never join a stranger's."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # ours is a line a run
    # What processes of Ray print stays in its logs: ours say what matters by results, files and exceptions.
    if ray.is_initialized():
        return
    if _is_asked_to_join():
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    else:
        ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)


def resources(cpus: float, gpus: float | None) -> dict[str, float]:
    """What a run takes, `{"cpu": ..., "gpu": ...}`.

    Args:
        cpus: CPU cores.
        gpus: share of a GPU; None is a quarter where the cluster has GPUs.
    """
    if gpus is None:
        gpus = 0.25 if has_gpus() else 0.0
    return {"cpu": cpus, "gpu": gpus}


def has_gpus() -> bool:
    """Whether runs find GPUs: those of the cluster; of this machine where none has been started yet."""
    if not ray.is_initialized() and not _is_asked_to_join():
        return torch.cuda.is_available()
    connect()
    return bool(ray.cluster_resources().get("GPU"))


def _is_asked_to_join() -> bool:
    return "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
