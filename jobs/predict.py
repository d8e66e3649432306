#!/usr/bin/env python
"""Predict slides with the trained models of a fold, a cross-validation or a sweep; labels are optional."""

from data_prep.digits import ensure
from mhimdist.prediction.options import Prediction
from mhimdist.prediction.run import run_prediction
from mhimdist.process import run


def main() -> None:
    job = Prediction.from_command_line(about=__doc__)
    run_prediction(job, data=ensure(job.data, job.home))


if __name__ == "__main__":
    run(main)
