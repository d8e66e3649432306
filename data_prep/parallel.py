"""One function over many tasks: in this process, or on the workers of a Ray cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_cluster() -> bool:
    """Whether this process belongs to a Ray cluster: a job, or RAY_ADDRESS is set."""
    return "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def results(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], *, workers: int | None
) -> Iterator[Result]:
    """`function(*task)` of every task, as they are finished.

    Args:
        function: of this package, so that workers can import it.
        tasks: its arguments.
        workers: how many run at a time; 1 is this process, more are Ray's: in its cluster where this process
            belongs to one, else on this machine. None is all cores of the cluster, and 1 without one.

    Raises:
        Exception: what the function raised first; tasks that still run are cancelled.
    """
    workers = workers if workers is not None else None if in_cluster() else 1
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield function(*task)
        return
    yield from _on_ray(function, tasks, workers)


def _on_ray(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int | None
) -> Iterator[Result]:
    import ray  # it takes seconds, which a small folder does not

    from mhimdist.cluster import connect

    was_connected = ray.is_initialized()
    connect()
    limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote = ray.remote(function)
    waiting = list(reversed(tasks))
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(remote.remote(*waiting.pop()))
            (done,), running = ray.wait(running, num_returns=1)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
    finally:
        for task in running:
            ray.cancel(task, force=True)
        if not was_connected and not in_cluster():
            ray.shutdown()
