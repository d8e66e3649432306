#!/usr/bin/env python
"""Cross-validate MHIM-MIL on TCGA as in the paper: 4 folds by patient (65 : 10 : 25), one seed."""

from data_prep.digits import DATA_SETS, ensure
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.compare import run_cross_validation
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.process import run

# The authors' settings, sized for the embedded digits, whose bags are 1/20 of a slide's.
DIGITS = {"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4, "epochs": 25}
DIGITS_TRANSMIL = {**DIGITS, "model.num_landmarks": 32}


def base(model: str, data: str) -> TrainConfig:
    config = preset("tcga", model)
    if data not in DATA_SETS:
        return config
    return config.override(DIGITS_TRANSMIL if model == "transmil" else DIGITS)


def main() -> None:
    job = CrossValidation.of_model(
        base,
        about=__doc__,
        name="train_tcga",
        model="abmil",
        data="digits-tcga",
        folds=4,
        seeds=(2021,),
        validation_share=0.13,  # of the patients that do not test: 10 of 75
        paper_validation_share=0.13,
    )
    run_cross_validation(job, data=ensure(job.data, job.home))


if __name__ == "__main__":
    run(main)
