"""One function over many tasks: in threads of this process, or on the workers of a Ray cluster."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # a container's own group stands at the root of what it sees


class StoppedError(Exception):
    """A task ended early because another one failed or the command was interrupted."""


def in_cluster() -> bool:
    """Whether this process belongs to a Ray cluster: it is a job, or RAY_ADDRESS is set."""
    return "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, at most its container's share."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # none here, or no limit ("max")
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
    """`function(*task)` of every task, as they are finished.

    Threads serve one machine well: what takes time in a shard (hashing, checksums, conversion, reading and
    writing) lets go of Python's lock.

    Args:
        function: of this package, so that workers can import it. In threads it is also given `stop`, an event
            after which it should raise `StoppedError` soon.
        tasks: its arguments.
        workers: how many run at a time; None is as many as there are cores, of this machine (`num_cores`)
            or the cluster.
        distributed: have Ray's workers run them.

    Raises:
        Exception: what the function raised first; tasks that still run are stopped.
    """
    if distributed and tasks:
        yield from _on_ray(function, tasks, workers)
    elif (count := min(workers or num_cores(), len(tasks))) <= 1:
        for task in tasks:
            yield function(*task)
    else:
        yield from _in_threads(function, tasks, count)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch's own threads off: pieces of a shard are too small for them, and other shards need the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    """Keep what the command does at a SIGTERM; Ray would end it where it stands."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _on_ray(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int | None
) -> Iterator[Result]:
    import ray  # it takes seconds, which a small folder does not

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
