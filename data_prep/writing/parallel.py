"""Running one function over many tasks: in threads of this process, or on workers of a Ray cluster."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # a container sees its own group at the root


class StoppedError(Exception):
    """A task was ended early because another one failed or the command was interrupted."""


def in_cluster() -> bool:
    """Whether this process belongs to a Ray cluster: it is a job, or RAY_ADDRESS is set."""
    return "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def num_cores() -> int:
    """Number of cores this process may use: those that it is bound to, up to its container's share."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # there is no such file, or no limit ("max")
        quota, period = map(int, _CPU_MAX.read_text().split())
        cores = min(cores, max(1, math.ceil(quota / period)))
    return cores


def results(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    *,
    workers: int | None = None,
    distributed: bool = False,
) -> Iterator[Result]:
    """Yield `function(*task)` for every task, in the order in which the tasks finish.

    Threads suffice on one machine: the slow work in a shard (hashing, checksums, conversion, reading and
    writing) releases Python's lock.

    Args:
        function: a function of this package, so that workers can import it. In threads it also gets `stop`,
            an event after which it should soon raise `StoppedError`.
        tasks: the arguments of each call.
        workers: number of tasks that run at a time; None means one per core, of this machine (`num_cores`)
            or of the cluster.
        distributed: whether Ray's workers run the tasks.

    Raises:
        Exception: the first error that the function raised; tasks that still run are stopped.
    """
    if distributed and tasks:
        yield from _on_ray(function, tasks, workers)
    elif (count := min(workers or num_cores(), len(tasks))) <= 1:
        for task in tasks:
            yield function(*task)
    else:
        yield from _in_threads(function, tasks, count)


def _in_threads(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[Result]:
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as threads:
        futures = [threads.submit(function, *task, stop=stop) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the command's answer to SIGTERM; Ray would end the command on the spot."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _on_ray(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int | None
) -> Iterator[Result]:
    import ray  # importing it takes seconds, longer than a small folder does

    from mhimdist.cluster.connect import Nodes, connect, refuse_open_cluster

    refuse_open_cluster()
    with _own_sigterm():
        connect()
    limit = workers or max(1, sum(int(node.cpus) for node in Nodes().look()))
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
