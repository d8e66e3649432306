"""Refit of tasks without classes: what the inner runs fit is in the result, in the units of the refit."""

from pathlib import Path

import numpy as np
import pytest
from task_bags import TASKS, config, task_bags

from mhimdist.data.inner_splits import inner_folds
from mhimdist.errors import CheckpointError
from mhimdist.tasks import Judged
from mhimdist.training.evaluation import predict
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.refit import choose, read_inner
from mhimdist.training.student import load_student
from mhimdist.training.trainer import Trainer


def _fold(bags, settings, root: Path) -> Fold:
    outer = bags.holdout()
    splits = inner_folds(bags.keys, bags.cases, bags.labels_N, outer, num_folds=2, seed=0)
    inner = tuple(
        Fold(f"inner {i}", settings, split, 1, root / f"inner-{i}", is_tested=False, is_inner=True)
        for i, split in enumerate(splits, 1)
    )
    return Fold("it", settings, outer.whole(), 1, root / "fold-1-seed-1", is_tested=True, inner=inner)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_refitted_by_what_its_inner_runs_held_out(tmp_path: Path, task: str):
    bags, settings = task_bags(TASKS[task][0], num_bags=36), config("abmil", task)
    fold = _fold(bags, settings, tmp_path)
    for each in (*fold.inner, fold):
        run_fold(each, bags, tmp_path / "cache", 1)
    result, student = fold.result(), load_student(fold.folder)
    meaning = student.task
    choice = choose([read_inner(i.folder, i.records(), load_student(i.folder).task) for i in fold.inner])
    assert (result.protocol, result.inner_runs, result.num_epochs) == ("refit", 2, choice.num_epochs)
    assert sorted(result.validation_keys) == sorted(fold.split.train)
    assert all(record.student_validation_score is None for record in fold.records())

    again = predict(student, bags, fold.split.test)
    told = np.array(result.predictions or result.probabilities)
    assert np.array_equal(again.predictions_NP, told)
    assert result.test[meaning.selection] == pytest.approx(again.score)
    parts = [part.as_of(meaning).judged for part in choice.parts]
    if meaning.pools:
        pooled = Judged.pooled(parts)
        assert result.validation[meaning.selection] == pytest.approx(meaning.score(pooled))
        assert result.fitted.items() >= meaning.fit(pooled).items()
    else:
        scores = [meaning.score(part) for part in parts]
        assert result.validation[meaning.selection] == pytest.approx(np.mean(scores))
        medians = [meaning.fit(part)["median_risk"] for part in parts]
        assert result.fitted["median_risk"] == pytest.approx(np.mean(medians))


def test_a_checkpoint_whose_memory_masks_or_predictions_do_not_fit_is_refused(tmp_path: Path):
    bags, settings = task_bags("survival"), config("abmil", "cox")
    split = bags.holdout()
    trainer = Trainer(settings, bags, split, keeps_predictions=True)
    list(trainer.epochs())
    tensors, state = trainer.run.state()
    assert {"memory", "masks", "predictions"} <= set(tensors)
    check = trainer.run.check
    check(tensors, state, folder=tmp_path, keys=split.validation)
    check({k: v for k, v in tensors.items() if k not in ("masks", "predictions")}, state, folder=tmp_path)
    with pytest.raises(CheckpointError, match="memory: expected this file"):
        check({k: v for k, v in tensors.items() if k != "memory"}, state, folder=tmp_path)
    name, bits = next(iter(tensors["masks"].items()))
    with pytest.raises(CheckpointError, match="masks: expected the bits"):
        check(tensors | {"masks": {name: bits.float()}}, state, folder=tmp_path, keys=split.validation)
    with pytest.raises(CheckpointError, match=f"of 2 epochs and {len(split.validation) - 1} bags"):
        check(tensors, state, folder=tmp_path, keys=split.validation[1:])
