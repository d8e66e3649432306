"""A list of work in slices over the cluster, each slice a Ray task."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray

from mhimdist.cluster.connect import connect, share_of
from mhimdist.distributed.fold_tasks import why_lost
from mhimdist.errors import MhimdistError, WorkerLostError

Slice = TypeVar("Slice")
Done = TypeVar("Done")
MAX_LOST = 3
"""Times that Ray starts a slice again whose process or node was lost."""


def in_slices(
    work: Callable[[Slice], Done],
    slices: Sequence[Slice],
    *,
    workers: int,
    gpus_per_worker: float | None,
    is_stopped: Callable[[], bool],
) -> Generator[Done]:
    """Run every slice as a task and yield what it returns, in the order in which they end.

    Args:
        work: computes a slice in another process, with one CPU core; it must do the same when it is repeated.
        slices: what `work` takes.
        workers: most tasks at a time.
        gpus_per_worker: share of a GPU per task; None means a quarter if the cluster has GPUs.
        is_stopped: asked twice a second; no further slice starts when it says so, and the running ones end.

    Raises:
        MhimdistError: `work` raised it.
        WorkerLostError: a slice was lost with its process again and again.
    """
    connect()
    logging.getLogger("ray").setLevel(logging.ERROR)  # our own error names the reason
    share = share_of(1.0, gpus_per_worker)
    task: Any = ray.remote(_run).options(**share.options, max_retries=MAX_LOST)
    shared, left = ray.put(work), deque(slices)
    running: list[ray.ObjectRef] = []
    try:
        while left or running:
            while left and len(running) < workers and not is_stopped():
                running.append(task.remote(shared, left.popleft()))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1, timeout=0.5)
            for ref in done:
                yield _result(ref)
    finally:
        for ref in running:
            ray.cancel(ref)


def _run(work: Callable[[Slice], Done], part: Slice) -> Done:
    return work(part)


def _result(ref: ray.ObjectRef) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(cause := error.cause, MhimdistError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise WorkerLostError(f"slides were not predicted: {why_lost(error)}") from None
