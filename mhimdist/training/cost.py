"""The cost of training a configuration: parameters, time per epoch, peak memory. No Ray here."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from mhimdist.config.method import Loss, Teacher
from mhimdist.config.models import Pooling
from mhimdist.config.tasks import TaskSettings
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.training.network import network_for
from mhimdist.training.trainer import Trainer

_SAMPLE_EVERY_S = 0.005


@dataclass(frozen=True)
class Cost:
    """The cost of training one configuration.

    Attributes:
        num_parameters: parameters of the student.
        train_s: seconds of the second epoch's training steps.
        epoch_s: seconds of the second epoch with its validation.
        peak_bytes: on a GPU the most that torch had allocated; on a CPU the most by which the process's
            resident memory exceeded its value before the networks were built, sampled every 5 ms.
        device: "cuda" or "cpu".
        num_threads: compute threads.
    """

    num_parameters: int
    train_s: float
    epoch_s: float
    peak_bytes: int
    device: str
    num_threads: int


def measure(
    config: TrainConfig,
    bags: BagSource,
    split: Split,
    num_threads: int,
    *,
    before_measured: Callable[[], None] = lambda: None,
) -> Cost:
    """Train two epochs and measure the second; call it in a process that has trained nothing before.

    A teacher that should be pre-trained starts from random weights, which cost the same.

    Args:
        config: what to measure.
        bags: the data set.
        split: the split of one fold.
        num_threads: compute threads.
        before_measured: called between the two epochs.
    """
    torch.set_num_threads(num_threads)
    _warm_up(bags, split, config.task)
    config = config.model_copy(update={"epochs": 2})
    with _resident_peak() as peak:
        pretrained = None
        if config.teacher.is_pretrained:
            pretrained = network_for(config.model_copy(update={"seed": 0}), bags, split)
        trainer = Trainer(config, bags, split, pretrained=pretrained)
        on_gpu = trainer.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(trainer.device)
        epochs = trainer.epochs()
        first = next(epochs)
        before_measured()
        *_, last = first, *epochs
        if on_gpu:
            peak["bytes"] = torch.cuda.max_memory_allocated(trainer.device)
    return Cost(
        num_parameters=sum(parameter.numel() for parameter in trainer.student.parameters()),
        train_s=last.train_s,
        epoch_s=last.epoch_s,
        peak_bytes=peak["bytes"],
        device=trainer.device.type,
        num_threads=num_threads,
    )


def _warm_up(bags: BagSource, split: Split, task: TaskSettings) -> None:
    """Load what does not belong to the network into memory: the files' pages, and the training code."""
    for key in (*split.train, *split.validation):
        bags.load(bags.rows_of([key]).tolist())
    smallest = TrainConfig(
        model=Pooling(hidden_dim=1),
        teacher=Teacher(kind="none"),
        loss=Loss(alpha=0),
        epochs=1,
        task=task,
        bags_per_step=2,  # some tasks compare the bags of a step
    )
    for _ in Trainer(smallest, bags, split).epochs():
        pass


@contextmanager
def _resident_peak() -> Iterator[dict[str, int]]:
    """Yield a mapping whose "bytes" holds the most by which this process grew inside the block."""
    process, stopped, peak = psutil.Process(), threading.Event(), {"bytes": 0}
    before = process.memory_info().rss

    def watch() -> None:
        while not stopped.wait(_SAMPLE_EVERY_S):
            peak["bytes"] = max(peak["bytes"], process.memory_info().rss - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()
