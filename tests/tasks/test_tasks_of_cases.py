"""Bags of cases, samples of bags and figures by case, for every task."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from task_bags import TASKS, config, paired, task_bags
from task_shards import shards_of

from mhimdist.config.execution import Saving
from mhimdist.data.bags import PackedBags
from mhimdist.data.cases import CaseBags, as_one
from mhimdist.data.sub_bags import SampleSize, SubBags
from mhimdist.errors import LabelError, PreemptedError
from mhimdist.ops.draws import Draws
from mhimdist.tasks.cases import by_case, case_metrics
from mhimdist.training.evaluation import Sampling, predict
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.trainer import Trainer

SUB_BAGS = {"instances_per_bag": 5, "evaluation_samples": 2}


def stops(after: int) -> Iterator[bool]:
    for i in range(10_000):
        yield i >= after


@pytest.mark.parametrize("key", TASKS)
def test_samples_of_bags_train_select_and_resume_to_the_bit(tmp_path: Path, monkeypatch, key: str) -> None:
    monkeypatch.setattr("mhimdist.training.trainer.AGREE_EVERY_STEPS", 1)
    bags = task_bags(TASKS[key][0])
    settings, split = config("abmil", key, **SUB_BAGS), bags.holdout()
    whole = Trainer(settings, bags, split)
    records = list(whole.epochs())
    sampling = Sampling.of(settings)
    each = [
        predict(
            whole.student,
            SubBags(bags, SampleSize(5), Draws(settings.seed, n), "evaluated_sub_bags"),
            split.test,
        )
        for n in range(2)
    ]
    found = predict(whole.student, bags, split.test, sampling)
    mean_NP = np.mean([one.predictions_NP for one in each], axis=0)
    np.testing.assert_allclose(found.predictions_NP, mean_NP, rtol=1e-12)
    assert not np.array_equal(each[0].predictions_NP, each[1].predictions_NP)
    steps = stops(after=2)
    stopped = Trainer(settings, bags, split, tmp_path, saving=Saving(every_s=0), stop=lambda: next(steps))
    with pytest.raises(PreemptedError):
        list(stopped.epochs())
    resumed = Trainer(settings, bags, split, tmp_path)
    assert resumed.run.step > 0
    list(resumed.epochs())
    assert [r.loss for r in resumed.history] == [r.loss for r in records]
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name


@pytest.mark.parametrize("key", ["corn", "multilabel", "regression", "nll", "cox"])
def test_results_by_case_are_what_the_task_says(tmp_path: Path, key: str) -> None:
    bags = paired(TASKS[key][0])
    fold = Fold("it", config("abmil", key, epochs=1), bags.holdout(), 1, tmp_path / "fold", is_tested=True)
    run_fold(fold, bags, tmp_path / "cache", 1)
    result = fold.ended_result()
    task = result.meaning
    assert set(result.by_case) == {"mean", "max"}
    for how, found in result.by_case.items():
        assert found["cases"] == len(result.cases) / 2
        assert set(task.headings) <= found.keys()
        pairs = result.judged.predictions_NP.reshape(-1, 2, len(task.columns))
        expected = [task.of_case(pair_2P[:, None], how)[0] for pair_2P in pairs]
        order = [result.cases[2 * i] == result.cases[2 * i + 1] for i in range(len(pairs))]
        assert all(order)
        np.testing.assert_array_equal(by_case(task, result.judged, how).predictions_NP, expected)
    assert case_metrics(task, [result.judged], result.judged).keys() == {"mean", "max"}


@pytest.mark.parametrize("task", ["regression", "survival", "multilabel"])
def test_a_case_has_the_targets_of_its_slides(tmp_path: Path, task: str) -> None:
    bags = paired(task, num_bags=12)
    if task == "multilabel":  # the first slide of each case knows one label, the second one the other
        bags.targets_NK = np.array([[1, np.nan], [np.nan, 0], [0, np.nan], [0, 1]] * 3)
    slides = shards_of(bags, tmp_path)
    cases = CaseBags(slides)
    assert (cases.task, len(cases)) == (slides.task, 6)
    packed = cases.load([2, 0])
    assert packed.targets_BK.shape == (2, 2)
    for place, row in enumerate((2, 0)):
        of_slides = bags.targets_NK[[r for r in range(12) if bags.cases[r] == cases.cases[row]]]
        expected_K = np.fmax(*of_slides)
        np.testing.assert_array_equal(packed.targets_BK[place], expected_K.astype(np.float32))
    rows = np.flatnonzero([case == cases.cases[2] for case in slides.cases])
    one: PackedBags = as_one(slides.load(rows), cases.keys[2])
    assert one.targets_BK.shape == (1, 2)
    sub = SubBags(cases, SampleSize(3), Draws(1, 0))
    assert torch.equal(sub.load([2, 0]).targets_BK.nan_to_num(9), packed.targets_BK.nan_to_num(9))


def test_slides_of_a_case_with_different_targets_are_refused_by_name(tmp_path: Path) -> None:
    bags = paired("regression", num_bags=12)
    bags.targets_NK[3, 1] += 0.5
    bags.targets_NK = bags.targets_NK.round(3)
    slides = shards_of(bags, tmp_path)
    number = float(bags.targets_NK[2, 1]), float(bags.targets_NK[3, 1])
    expected = (
        f"1 of 6 cases have several: case 'case-1': 'slide-2' is score .* and size {number[0]!r}, "
        f"'slide-3' is score .* and size {number[1]!r}"
    )
    with pytest.raises(LabelError, match=expected):
        CaseBags(slides)


def test_a_fold_of_cases_trains_a_task(tmp_path: Path) -> None:
    bags = paired("survival", num_bags=60)
    cases = CaseBags(shards_of(bags, tmp_path))
    settings = config("abmil", "cox", **SUB_BAGS)
    split = bags_split(cases)
    fold = Fold("it", settings, split, 1, tmp_path / "fold", is_tested=True)
    run_fold(fold, cases, tmp_path / "cache", 1)
    result = fold.ended_result()
    assert (len(result.targets), result.by_case) == (len(split.test), {})
    assert "a bag is all slides of a case" in result.note


def bags_split(cases: CaseBags):
    from mhimdist.data.splits import holdout

    return holdout(cases.keys, cases.cases, cases.labels_N, test_share=0.3, validation_share=0.3, seed=0)
