"""Every task trains every model with MHIM, resumes to the bit, and is judged."""

import json
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from task_bags import EVERY, MODELS, TASKS, config, task_bags

from mhimdist.config.execution import Saving
from mhimdist.errors import PreemptedError
from mhimdist.training.evaluation import evaluate
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.student import load_student
from mhimdist.training.trainer import Trainer

_CLAM = {"clam_sb": ("classification", "ordinal"), "clam_mb": ("classification",)}
_LONG = ("transmil", "dtfd", "max_pooling")
DEFINED = [
    pytest.param(m, t, marks=pytest.mark.long if m in _LONG and t not in ("nll", "cox") else ())
    for m, t in product(MODELS, EVERY)
    if m not in _CLAM or EVERY[t][0] in _CLAM[m]
]


def _stops(after: int) -> Iterator[bool]:
    for i in range(10_000):
        yield i >= after


def _state(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors, _ = trainer.run.state()
    return {
        f"{file}/{name}": value.clone() for file, group in tensors.items() for name, value in group.items()
    }


@pytest.mark.parametrize(("model", "task"), DEFINED, ids=lambda value: str(value).replace(" ", "-"))
def test_a_task_trains_and_resumes_to_the_bit(tmp_path: Path, monkeypatch, model: str, task: str):
    monkeypatch.setattr("mhimdist.training.trainer.AGREE_EVERY_STEPS", 1)
    bags, settings = task_bags(EVERY[task][0]), config(model, task)
    split = bags.holdout()
    whole = Trainer(settings, bags, split)
    first = _state(whole)
    records = list(whole.epochs())
    assert all(math.isfinite(record.loss) for record in records)
    assert all(math.isfinite(record.student_validation_score) for record in records)
    last = _state(whole)
    still = {name for name in last if name.startswith("student/") and torch.equal(last[name], first[name])}
    # Among the bags of a step, Cox's loss knows no constant.
    assert still <= ({"student/head.bias"} if task == "cox of a step" else set())

    stops = _stops(after=2)
    stopped = Trainer(settings, bags, split, tmp_path, saving=Saving(every_s=0), stop=lambda: next(stops))
    with pytest.raises(PreemptedError):
        list(stopped.epochs())
    resumed = Trainer(settings, bags, split, tmp_path)
    assert resumed.run.step > 0
    list(resumed.epochs())
    assert [(r.loss, r.student_validation_score) for r in resumed.history] == [
        (r.loss, r.student_validation_score) for r in records
    ]
    found = _state(resumed)
    assert found.keys() == last.keys()
    assert all(torch.equal(found[name].nan_to_num(7), last[name].nan_to_num(7)) for name in last)


@pytest.mark.parametrize("task", TASKS)
def test_a_fold_is_judged_and_its_student_loads_with_its_task(tmp_path: Path, task: str):
    bags, settings = task_bags(TASKS[task][0]), config("abmil", task, epochs=1)
    fold = Fold("fold 1", settings, bags.holdout(), 1, tmp_path / "fold-1-seed-1", is_tested=True)
    run_fold(fold, bags, tmp_path / "cache", 1)
    result = fold.result()
    student = load_student(fold.folder)
    judged = evaluate(student, bags, fold.split)
    kind = student.task
    # The times of single patients are not saved with a student, so what they weigh is another.
    weighed = {"uno_c", "dynamic_auc", "ibs"} & kind.headings.keys()
    for name in kind.headings.keys() - weighed:
        assert result.test[name] == pytest.approx(judged["test"][name], abs=1e-12)
    assert all(0 <= result.test[name] <= 1 for name in weighed)
    assert result.meaning.columns == kind.columns
    assert result.meaning.score(result.judged) == pytest.approx(result.test[kind.selection], abs=1e-12)
    assert json.loads((fold.folder / "result.json").read_text())["task"]["name"] == kind.name
    assert (fold.folder / "model_card.md").read_text().count(kind.title)
