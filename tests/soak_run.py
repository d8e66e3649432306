"""A training run as a program, for the soak: python tests/soak_run.py FOLDER SHARDS SEED.

Beside the folder it writes FOLDER.steps, the bags of every step, and FOLDER.process, what each epoch needed.
"""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import torch

from mhimdist.config.execution import Saving
from mhimdist.config.train import TrainConfig, load_config
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split, holdout
from mhimdist.process import run
from mhimdist.training.trainer import Trainer

EPOCHS = 40


def config(seed: int) -> TrainConfig:
    return load_config(
        {
            "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
            "masking": {"high": {"start": 0.1, "kind": "cosine"}, "high_pool_share": 0.5, "random": 0.3},
            "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
            "optimizer": {"learning_rate": 5e-3},
            "epochs": EPOCHS,
            "early_stopping": {"patience": None},
            "seed": seed,
            "device": "cpu",
        }
    )


def split(bags: BagShards) -> Split:
    return holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.3, validation_share=0.3, seed=0)


def main() -> None:
    folder, data, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    asked: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    bags = BagShards(data)
    trainer = Trainer(
        config(seed), bags, split(bags), folder, saving=Saving(every_s=0.05), stop=lambda: bool(asked)
    )
    steps, needs = (os.open(f"{folder}.{name}", os.O_APPEND | os.O_CREAT | os.O_WRONLY) for name in KINDS)
    train_on, process = trainer._train_on, psutil.Process()

    def logged(packed, *arguments) -> None:
        train_on(packed, *arguments)
        row = {"epoch": len(trainer.history), "step": trainer.run.step, "keys": list(packed.keys)}
        note(steps, row)

    trainer._train_on = logged
    print("started", flush=True)
    for record in trainer.epochs():
        row = {
            "pid": process.pid,
            "epoch": record.epoch,
            "rss": process.memory_info().rss,
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }
        note(needs, row)


def note(file: int, row: dict) -> None:
    """Append a line; one that a full disk has torn is ended by the next, and the run by its error."""
    line = f"\n{json.dumps(row)}".encode()
    if os.write(file, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


KINDS = ("steps", "process")

if __name__ == "__main__":
    run(main)
