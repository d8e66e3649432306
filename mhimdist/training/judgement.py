"""The result of a fold: what its student predicts of the bags that select and test, and how good that is."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from mhimdist.data.bags import BagSource
from mhimdist.data.targets import as_cells
from mhimdist.models import BagModel
from mhimdist.tasks.cases import case_metrics
from mhimdist.training.evaluation import Predictions, fit, judge
from mhimdist.training.folds import Fold
from mhimdist.training.history import EpochRecord
from mhimdist.training.refit import Choice
from mhimdist.training.result import Result, note_on


def result_of(
    fold: Fold,
    network: BagModel,
    best_epoch: int,
    history: Sequence[EpochRecord],
    bags: BagSource,
    parts: Sequence[Predictions],
    test: Predictions | None,
    choice: Choice | None,
) -> Result:
    """The result of a fold.

    Args:
        fold: the fold.
        network: the student of the selected epoch.
        best_epoch: that epoch.
        history: a record per epoch.
        bags: the data set.
        parts: the predictions for the bags that select: of the student, or of each inner run.
        test: what the student predicts of the test bags; None if the fold is not tested.
        choice: what inner runs have chosen; None if there are none.
    """
    config, split, task = fold.config, fold.split, network.task
    judged, fitted, validation = judge(parts, test), fit(parts), Predictions.pooled(parts)
    return Result(
        protocol=fold.protocol,
        seed=config.seed,
        fold=fold.fold,
        config_digest=config.digest(),
        split_digest=split.digest(),
        data_digest=bags.digest,
        num_epochs=len(history),
        best_epoch=best_epoch,
        epoch_s=median(record.epoch_s for record in history),
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        validation=judged["validation"],
        test=judged.get("test", {}),
        validation_keys=validation.keys,
        validation_cases=validation.by_cases_of(bags).cases,
        validation_labels=validation.labels_N.tolist(),
        keys=test.keys if test else (),
        cases=test.by_cases_of(bags).cases if test else (),
        labels=test.labels_N.tolist() if test else (),
        note=note_on(config, bags),
        by_case=(
            case_metrics(task, [part.by_cases_of(bags) for part in parts], test.by_cases_of(bags))
            if test is not None
            else {}
        ),
        missing_classes={
            name: classes
            for name, classes in split.missing_classes(bags.keys, bags.labels_N, bags.classes).items()
            if test is not None or name != "test"
        }
        if task.has_classes
        else {},
        inner_runs=choice.num_runs if choice else 0,
        validation_curve=choice.curve if choice else (),
        task=task.record() and task.record() | {"fitted": fitted},
        **_told(validation, "validation_"),
        **_told(test, ""),
    )


def _told(predictions: Predictions | None, prefix: str) -> dict[str, Any]:
    """The fields of a result that hold what is predicted of each bag."""
    if predictions is None:
        return {} if prefix else {"probabilities": ()}
    rows = predictions.predictions_NP.tolist()
    if predictions.task.has_classes:
        return {f"{prefix}probabilities": rows}
    targets = [as_cells(target_K) for target_K in predictions.targets_NK]
    empty = {} if prefix else {"probabilities": ()}
    return empty | {f"{prefix}predictions": rows, f"{prefix}targets": targets}
