"""A small run as a program, with one process per worker, for tests that kill it.

python tests/train_once.py FOLDER RANK WORLD_SIZE [SIGNAL STEP]

It sends itself the signal after STEP steps: on a busy machine another process could send it too late.
"""

import itertools
import os
import signal
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from memory_bags import gaussian_bags

from mhimdist.config.execution import Saving
from mhimdist.config.train import load_config
from mhimdist.errors import PreemptedError
from mhimdist.process import run
from mhimdist.training.trainer import Trainer
from mhimdist.training.workers import DistributedWorkers, Workers

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "masking": {"high": {"start": 0.1, "kind": "cosine"}, "high_pool_share": 0.5, "random": 0.3},
        "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 12,
        "device": "cpu",
    }
)


def main() -> None:
    folder, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    workers = Workers()
    if world_size > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo",
            init_method=f"file://{os.environ['MEETING_PLACE']}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        workers = DistributedWorkers(60)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    bags = gaussian_bags(num_bags=134)
    saving = Saving(every_s=0.01)
    trainer = Trainer(
        CONFIG, bags, bags.holdout(), folder, workers=workers, saving=saving, stop=lambda: bool(asked)
    )
    if len(sys.argv) > 4:
        _send_itself(trainer, int(sys.argv[4]), int(sys.argv[5]))
    print("started", flush=True)
    try:
        for _ in trainer.epochs():
            pass
    except PreemptedError:
        _leave(world_size)
        raise
    print("finished", flush=True)
    _leave(world_size)


def _send_itself(trainer: Trainer, number: int, step: int) -> None:
    train_on, steps = trainer._train_on, itertools.count(1)

    def counted(*arguments, **named) -> None:
        train_on(*arguments, **named)
        if next(steps) == step:
            os.kill(os.getpid(), number)

    trainer._train_on = counted


def _leave(world_size: int) -> None:
    """Leave the process group, as Ray Train does; otherwise its threads would outlive the memory they use."""
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    run(main)
