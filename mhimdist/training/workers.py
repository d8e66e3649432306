"""The processes that train one run together, and what they tell each other.

`Workers` is a run of one process; `DistributedWorkers` speaks through `torch.distributed`, which whoever
starts the processes (Ray Train, torchrun, a test) has initialised. The engine sees no difference.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mhimdist.errors import WorkerLostError


class Workers:
    """A run of one process.

    Attributes:
        rank: this process's number.
        world_size: how many there are.
    """

    rank = 0
    world_size = 1

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the workers."""
        return module

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the workers, on every one of them."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """What every worker holds, by rank."""
        return [value]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether some worker has raised it."""
        return flags

    def from_first(self, value: Any) -> Any:
        """What worker 0 holds."""
        return value

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Name the workers that do not answer, where something inside fails because of them."""
        yield


class DistributedWorkers(Workers):
    """The workers of the default process group, one of which this process is."""

    def __init__(self, timeout_s: float = 1800.0) -> None:
        """Join them; all have to.

        Args:
            timeout_s: how long to wait for a worker that does not answer before giving it up.
        """
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.timeout_s = timeout_s
        # Decisions travel on the CPU, apart from the gradients: they must not make a GPU wait.
        self._control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def parallel(self, module: nn.Module) -> nn.Module:
        """See `Workers.parallel`; by DDP, whose mean over workers the loss is scaled for."""
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def sum(self, values: Tensor) -> Tensor:
        """See `Workers.sum`."""
        total = values.cpu().clone()
        dist.all_reduce(total, group=self._control)
        return total

    def gather(self, value: Any) -> list[Any]:
        """See `Workers.gather`; the value travels pickled, among processes of one run."""
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
            WorkerLostError: a collective operation failed; the message names the ranks that are missing, as
                far as worker 0 can tell.
        """
        try:
            yield
        except RuntimeError as error:
            if not re.search(r"gloo|NCCL|[Tt]imed out|closed by peer|Broken pipe", str(error)):
                raise
            raise WorkerLostError(
                f"worker {self.rank} of {self.world_size} gave up waiting: {self._missing()} "
                f"(timeout {self.timeout_s:g} s); the run can be started again from its last checkpoint"
            ) from error

    def _missing(self) -> str:
        try:
            dist.monitored_barrier(self._control, timeout=timedelta(seconds=5), wait_all_ranks=True)
        except RuntimeError as error:
            if found := re.search(r"Ranks? ([\d, ]*\d) failed", str(error)):
                return f"no answer from rank(s) {found[1]}"
        return "another worker is lost"
