"""Distributed, high-throughput training of MHIM-MIL.

`import mhimdist as mh` is enough for a notebook:

    bags = mh.open_bags("data/digits-c16")
    (split, *_) = mh.k_folds(bags.keys, bags.cases, bags.labels_N, num_folds=3, validation_share=0.15, seed=0)
    trainer = mh.open_trainer(mh.preset("c16", "abmil"), bags, split)
    for record in trainer.epochs():
        print(record.epoch, record.loss, record.student_validation_score)
    mh.evaluate(trainer.best_student(), bags, split)

Importing the package loads nothing else: torch, Ray and Optuna load with the first name that needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mhimdist.comparison.compare import compare
    from mhimdist.config.presets import preset
    from mhimdist.config.train import TrainConfig
    from mhimdist.cross_validation.compare import run_cross_validation
    from mhimdist.cross_validation.options import CrossValidation
    from mhimdist.data.opening import open_bags
    from mhimdist.data.splits import Split, holdout, k_folds
    from mhimdist.export.loading import load_student
    from mhimdist.export.run import export_model
    from mhimdist.heatmaps.options import HeatMaps
    from mhimdist.heatmaps.run import heat_maps
    from mhimdist.pages.write import write_report
    from mhimdist.prediction.run import predict
    from mhimdist.search.options import Sweep
    from mhimdist.search.space import Space
    from mhimdist.sweep.run import run_sweep
    from mhimdist.training.evaluation import evaluate
    from mhimdist.training.first_stage import open_trainer

__version__ = "0.1.0"

__all__ = [
    "CrossValidation",
    "HeatMaps",
    "Space",
    "Split",
    "Sweep",
    "TrainConfig",
    "__version__",
    "compare",
    "evaluate",
    "export_model",
    "heat_maps",
    "holdout",
    "k_folds",
    "load_student",
    "open_bags",
    "open_trainer",
    "predict",
    "preset",
    "run_cross_validation",
    "run_sweep",
    "write_report",
]

_MODULES = {
    "CrossValidation": "cross_validation.options",
    "HeatMaps": "heatmaps.options",
    "Space": "search.space",
    "Split": "data.splits",
    "Sweep": "search.options",
    "TrainConfig": "config.train",
    "compare": "comparison.compare",
    "evaluate": "training.evaluation",
    "export_model": "export.run",
    "heat_maps": "heatmaps.run",
    "holdout": "data.splits",
    "k_folds": "data.splits",
    "load_student": "export.loading",
    "open_bags": "data.opening",
    "open_trainer": "training.first_stage",
    "predict": "prediction.run",
    "preset": "config.presets",
    "run_cross_validation": "cross_validation.compare",
    "run_sweep": "sweep.run",
    "write_report": "pages.write",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
