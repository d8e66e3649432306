"""The processes that train one run together, and the values that they exchange.

`Workers` is a run of one process. `DistributedWorkers` communicates through `torch.distributed`, which must
be initialised by the code that starts the processes (Ray Train, torchrun, a test). The trainer sees no
difference.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mhimdist.errors import WorkerLostError

_POLL_S = 0.0005
"""Seconds between two looks at a device that another worker may keep waiting."""
_GIVING_UP_S = 5.0
"""Seconds by which workers may give up later than their timeout says."""


class Workers:
    """A run of one process.

    Attributes:
        rank: this process's number, counted from 0.
        world_size: number of processes.
    """

    rank = 0
    world_size = 1

    def share_first(self, values: Tensor) -> None:
        """Overwrite a tensor, on the device of the run, with that of worker 0."""

    def add_up(self, values: Tensor) -> None:
        """Replace a tensor, on the device of the run, by its sum over the workers.

        A CUDA graph can record this.
        """

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the workers; each of them gets the sum."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank."""
        return [value]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Per flag, whether any worker has raised it."""
        return flags

    def from_first(self, value: Any) -> Any:
        """The value of worker 0."""
        return value

    def meet(self) -> None:
        """Return once all workers have come here; a wait for the device would not find a lost one."""

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait until the device has reached an event; `meet` comes first."""
        event.synchronize()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Name the workers that do not answer, if the block fails because of them."""
        yield


class DistributedWorkers(Workers):
    """The workers of the default process group; this process is one of them."""

    def __init__(self, timeout_s: float = 1800.0) -> None:
        """Join the group; all workers must.

        Args:
            timeout_s: seconds to wait for a worker that does not answer.
        """
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.timeout_s = timeout_s
        # Decisions travel on the CPU, apart from the gradients: they must not make a GPU wait.
        self._control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def share_first(self, values: Tensor) -> None:
        """See `Workers.share_first`."""
        dist.broadcast(values, src=0)

    def add_up(self, values: Tensor) -> None:
        """See `Workers.add_up`."""
        dist.all_reduce(values)

    def sum(self, values: Tensor) -> Tensor:
        """See `Workers.sum`."""
        total = values.cpu().clone()
        dist.all_reduce(total, group=self._control)
        return total

    def gather(self, value: Any) -> list[Any]:
        """See `Workers.gather`; the values are pickled, and only processes of one run exchange them."""
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self._control)
        return gathered

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """See `Workers.any`."""
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._control)
        return tuple(bool(flag) for flag in raised)

    def from_first(self, value: Any) -> Any:
        """See `Workers.from_first`."""
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._control)
        return held[0]

    def meet(self) -> None:
        """See `Workers.meet`.

        Raises:
            WorkerLostError: a worker is lost or does not come in time.
        """
        with self.watched():
            dist.all_reduce(torch.zeros(1), group=self._control)

    def wait(self, event: torch.cuda.Event) -> None:
        """See `Workers.wait`; `event.synchronize` would never return if a worker was lost after `meet`.

        Raises:
            WorkerLostError: the device did not get there in time: it waits for another worker's gradients.
        """
        deadline = time.monotonic() + self.timeout_s
        while not event.query():
            if time.monotonic() > deadline:
                raise self._lost()
            time.sleep(_POLL_S)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See `Workers.watched`.

        Raises:
            WorkerLostError: a collective operation failed; the message names the missing ranks.
        """
        try:
            yield
        except RuntimeError as error:
            if not re.search(r"gloo|NCCL|[Tt]imed out|closed by peer|pair closure|Broken pipe", str(error)):
                raise
            raise self._lost() from error

    def _lost(self) -> WorkerLostError:
        return WorkerLostError(
            f"worker {self.rank} of {self.world_size} gave up waiting: {self._missing()} "
            f"(timeout {self.timeout_s:g} s); start the run again to resume from its last checkpoint"
        )

    def _missing(self) -> str:
        """Find out who is lost: whoever does not write to the group's store that it gave up, too.

        The control group cannot tell: it is broken once a worker has died. Some workers notice that at once,
        others after the timeout.
        """
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        deadline = time.monotonic() + self.timeout_s + _GIVING_UP_S
        store = dist.distributed_c10d._get_default_store()
        try:
            store.set(f"gave_up/{self.rank}", "")
            while len(others) > 1 and time.monotonic() < deadline:
                others = [rank for rank in others if not store.check([f"gave_up/{rank}"])]
                time.sleep(0.1)
        except RuntimeError:  # the store has ended with worker 0, which holds it
            others = [0] if 0 in others else others
        return f"no answer from rank(s) {', '.join(map(str, others))}" if others else "the exchange failed"
