#!/usr/bin/env python
"""Fill Tables 1 to 5 of the MHIM-MIL paper on CAMELYON16-like bags."""

from functools import partial

from data_prep.digits import DATA_SETS, ensure
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.paper.ablation import run_ablation
from mhimdist.paper.options import Ablation
from mhimdist.process import run

# The authors' settings, sized for the embedded digits, whose bags are 1/20 of CAMELYON16's.
DIGITS = {"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4, "epochs": 25}
DIGITS_TRANSMIL = {**DIGITS, "model.num_landmarks": 32}
# All rows in under 2 hours on 2 cores.
QUICK = {"seeds": (2021,), "transmil_folds": 1, "transmil_epochs": 15}


def base(model: str, *, dataset: str, data: str) -> TrainConfig:
    config = preset(dataset, model)
    if data not in DATA_SETS:
        return config
    return config.override(DIGITS_TRANSMIL if model == "transmil" else DIGITS)


def main() -> None:
    job = Ablation.from_job(
        quick=QUICK,
        about=__doc__,
        name="ablate_c16",
        data="digits-c16",
        folds=3,
        seeds=(2021, 2022, 2023),
        validation_share=0.15,
        paper_validation_share=0.0,
    )
    run_ablation(job, partial(base, dataset=job.preset, data=job.data), data=ensure(job.data, job.home))


if __name__ == "__main__":
    run(main)
