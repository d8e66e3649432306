"""The processes that train one run together, and the values that they exchange.

`Workers` is a run of one process. `DistributedWorkers` communicates through `torch.distributed`, which must
be initialised by the code that starts the processes (Ray Train, torchrun, a test). The trainer sees no
difference.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mhimdist.errors import WorkerLostError


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

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See `Workers.watched`.

        Raises:
            WorkerLostError: a collective operation failed; the message names the missing ranks, as far as
                worker 0 knows them.
        """
        try:
            yield
        except RuntimeError as error:
            if not re.search(r"gloo|NCCL|[Tt]imed out|closed by peer|Broken pipe", str(error)):
                raise
            raise WorkerLostError(
                f"worker {self.rank} of {self.world_size} gave up waiting: {self._missing()} "
                f"(timeout {self.timeout_s:g} s); start the run again to resume from its last checkpoint"
            ) from error

    def _missing(self) -> str:
        try:
            dist.monitored_barrier(self._control, timeout=timedelta(seconds=5), wait_all_ranks=True)
        except RuntimeError as error:
            if found := re.search(r"Ranks? ([\d, ]*\d) failed", str(error)):
                return f"no answer from rank(s) {found[1]}"
        return "another worker is lost"
