"""Two runs at the same time on one GPU, to see how much they slow each other down. No Ray here."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from statistics import mean
from threading import BrokenBarrierError
from typing import Any

import torch

from mhimdist.config.train import TrainConfig
from mhimdist.data.opening import open_bags
from mhimdist.data.remote import Location
from mhimdist.data.splits import Split
from mhimdist.data.stored import BagOf
from mhimdist.errors import SweepError
from mhimdist.training.cost import measure

LONGEST_WAIT_S = 1800.0
"""Seconds that one run waits until the other one is ready, too."""

_barrier: Any = None  # in a run's process; multiprocessing hands it over only when the process starts


def epoch_s(
    data: Location,
    config: TrainConfig,
    split: Split,
    num_threads: int,
    bag_of: BagOf = "slide",
    digest: str | None = None,
) -> float:
    """Mean seconds of an epoch with its validation, of two runs whose measured epochs begin together.

    Both run on the device of this process, each in a process of its own.

    Args:
        data: folder of shards, or its URL.
        config: what to measure.
        split: the split of one fold.
        num_threads: compute threads of each run.
        bag_of: what one bag of the data is.
        digest: of the data set, as in `open_bags`.

    Raises:
        SweepError: one of them failed; the message has the reason.
    """
    gc.collect()
    torch.cuda.empty_cache()
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(2, context, initializer=_keep, initargs=(context.Barrier(2),)) as pool:
        runs = [pool.submit(_measure, data, config, split, num_threads, bag_of, digest) for _ in range(2)]
        errors = [error for run in runs if (error := run.exception())]
    if errors:
        # The run that only waited for the other one does not know the reason.
        error = next((e for e in errors if not isinstance(e, BrokenBarrierError)), errors[0])
        raise SweepError(
            "two runs of the base configuration failed beside each other on one GPU, where one alone was "
            f"calibrated: give each a GPU by gpus_per_run 1 ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]})"
        )
    return mean(run.result() for run in runs)


def _keep(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _measure(
    data: Location, config: TrainConfig, split: Split, num_threads: int, bag_of: BagOf, digest: str | None
) -> float:
    try:
        bags = open_bags(data, config.loading, config.features, bag_of=bag_of, digest=digest)
        return measure(
            config, bags, split, num_threads, before_measured=lambda: _barrier.wait(LONGEST_WAIT_S)
        ).epoch_s
    except BaseException:
        _barrier.abort()
        raise
