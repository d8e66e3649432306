#!/usr/bin/env python
"""Cross-validate AB-MIL and DSMIL, with and without MHIM, on a classic benchmark such as MUSK1."""

from pathlib import Path

from pydantic import Field

from data_prep.classic import ensure
from mhimdist.config.presets import preset
from mhimdist.cross_validation.compare import run_cross_validation
from mhimdist.cross_validation.options import Candidate, CrossValidation
from mhimdist.process import run

# DSMIL's authors: 40 epochs of Adam at 2e-4 with this decay. The network is sized for 166 features.
BASE = {"epochs": 40, "optimizer.learning_rate": 2e-4, "optimizer.weight_decay": 5e-3}
NETWORK = {"model.hidden_dim": 128, "model.dropout": 0.0}
MODELS = ("abmil", "dsmil")


class Classic(CrossValidation):
    file: Path | None = Field(None, description="the benchmark's file, as data_prep.classic takes it")

    @property
    def candidates(self) -> list[Candidate]:
        trains = [self.train.override({"model.name": name, **NETWORK}) for name in MODELS]
        jobs = [CrossValidation(train=train) for train in trains]
        return [candidate for job in jobs for candidate in job.candidates]


def main() -> None:
    job = Classic.from_command_line(
        about=__doc__,
        name="classic",
        data="musk1",
        train=preset("c16", "abmil").override(BASE),
        folds=10,
        seeds=(1, 2, 3, 4, 5),
    )
    run_cross_validation(job, data=ensure(job.data, job.home, file=job.file))


if __name__ == "__main__":
    run(main)
