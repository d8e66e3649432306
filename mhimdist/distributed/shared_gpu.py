"""A run's share of a GPU: a cap on its memory, so that a greedy run runs out and not its neighbour."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch

from mhimdist.config.train import TrainConfig
from mhimdist.errors import ConfigError

USABLE_GPU_SHARE = 0.9
"""Share of a GPU's memory that runs may fill together; the rest is for what no run accounts for."""

GPU_CONTEXT_BYTES = 600 * 2**20
"""Memory that CUDA takes of a GPU per process, in addition to torch's tensors."""


def tensor_bytes(share: float, total_bytes: int) -> int:
    """Bytes that a run's tensors may take on its share of a GPU: without the CUDA context of its process.

    Args:
        share: of the GPU, in (0, 1).
        total_bytes: the GPU's memory.

    Returns:
        At most 0 if the context alone fills the share.
    """
    return int(USABLE_GPU_SHARE * share * total_bytes) - GPU_CONTEXT_BYTES


@contextmanager
def within_share(config: TrainConfig) -> Iterator[None]:
    """Train on the share of a GPU that Ray has given this task or actor; a whole GPU has no cap.

    The cap stays after the block, because the process keeps its share.

    Args:
        config: of the run; on a CPU nothing is capped.

    Raises:
        ConfigError: the share is too small for a CUDA context.
        torch.OutOfMemoryError: the share's memory ran out; the message has the share and what to do.
    """
    share = _share_of_this_process() if config.device != "cpu" and torch.cuda.is_available() else 0.0
    if not 0 < share < 1:
        yield
        return
    total = torch.cuda.mem_get_info()[1]
    allowed = tensor_bytes(share, total)
    if allowed <= 0:
        least = GPU_CONTEXT_BYTES / (USABLE_GPU_SHARE * total)
        raise ConfigError(
            f"gpus_per_run: {share:.3g} of a GPU of {_gib(total)} leaves no memory beside CUDA's own "
            f"{_gib(GPU_CONTEXT_BYTES)}: give a run more than {least:.3g}"
        )
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.args = (
            f"{error} (the run has {share:.3g} of a GPU, and its tensors {_gib(allowed)} of {_gib(total)}: "
            "raise gpus_per_run, make the model smaller, or its steps by train.max_instances)",
        )
        raise


def _share_of_this_process() -> float:
    return ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
