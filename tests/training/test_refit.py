"""Inner folds that choose epochs and threshold, and the network that trains again on the whole fold."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from memory_bags import gaussian_bags

from mhimdist.config.train import load_config
from mhimdist.data.inner_splits import inner_folds
from mhimdist.data.splits import Split, k_folds
from mhimdist.errors import CheckpointError, PreemptedError, SplitError
from mhimdist.statistics import metrics
from mhimdist.tasks import classification
from mhimdist.training import first_stage
from mhimdist.training.evaluation import Predictions, predict
from mhimdist.training.first_stage import open_trainer
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold, fold_folder
from mhimdist.training.history import EpochRecord
from mhimdist.training.refit import InnerRun, choose, read_inner
from mhimdist.training.student import load_student, load_teacher
from mhimdist.training.trainer import Trainer

pytestmark = pytest.mark.long

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "masking": {"high": {"start": 0.2, "kind": "cosine"}, "random": 0.3},
        "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 4,
        "device": "cpu",
    }
)


def _record(epoch, score, loss):
    return EpochRecord(
        epoch, 1.0, 1.0, 0.0, 1e-3, None, 1.0, 0.0, 0.0, 0.0, score, loss, None, False, 0, score, 1.0, 1.0
    )


def _inner_run(scores, losses=None, key="a"):
    """A run with these validation scores; its prediction after epoch e is e / 10 for its only bag."""
    losses = losses or [1.0] * len(scores)
    predictions = [
        Predictions(
            (key,),
            np.array([1]),
            np.zeros((1, 0)),
            np.array([[1 - e / 10, e / 10]]),
            np.array([1.0]),
            classification(2),
        )
        for e in range(len(scores))
    ]
    history = [_record(e, *pair) for e, pair in enumerate(zip(scores, losses, strict=True))]
    return InnerRun(history, predictions)


def test_the_highest_point_of_the_mean_curve_chooses_and_the_runs_are_pooled_there():
    choice = choose([_inner_run([0.5, 0.9, 0.6], key="a"), _inner_run([0.5, 0.6, 0.8], key="b")])
    assert choice.num_epochs == 2
    assert choice.curve == pytest.approx((0.5, 0.75, 0.7))
    held_out = Predictions.pooled(choice.parts)
    assert held_out.keys == ("a", "b")
    assert held_out.predictions_NP[:, 1].tolist() == [0.1, 0.1]
    assert choice.num_runs == 2


def test_a_lone_peak_does_not_choose_against_a_broad_one():
    # 20 epochs are averaged over 5 neighbours each.
    curve = [0.5, 0.5, 0.5, 0.97, 0.5, 0.5, 0.6, 0.7, 0.8, 0.88, 0.9, 0.95, 0.9, 0.88, 0.8, *[0.7] * 5]
    assert choose([_inner_run(curve)]).num_epochs == 12
    assert int(np.argmax(curve)) == 3


def test_equal_scores_are_decided_by_the_loss_and_then_by_the_earlier_epoch():
    assert choose([_inner_run([1.0, 1.0, 1.0], [0.5, 0.3, 0.4])]).num_epochs == 2
    assert choose([_inner_run([1.0, 1.0, 1.0], [0.4, 0.3, 0.3])]).num_epochs == 2


def test_a_run_that_stopped_early_counts_with_its_last_epoch_from_there_on():
    short, long = _inner_run([0.6, 0.8], key="a"), _inner_run([0.5, 0.5, 0.9], key="b")
    choice = choose([short, long])
    assert choice.curve == pytest.approx((0.55, 0.65, 0.85))
    assert choice.num_epochs == 3
    assert [part.predictions_NP[0, 1] for part in choice.parts] == [0.1, 0.2]


@pytest.fixture(scope="module")
def bags():
    return gaussian_bags(48)


def _folds(bags, root, config=CONFIG, num_inner=3, **inner):
    """A fold that is refitted, and its inner folds."""
    outer = k_folds(bags.keys, bags.cases, bags.labels_N, num_folds=2, validation_share=0.3, seed=0)[0]
    splits = inner_folds(bags.keys, bags.cases, bags.labels_N, outer, num_folds=num_inner, seed=0)
    folds = tuple(
        Fold(f"inner {i}", config, split, 1, root / f"inner-{i}", is_tested=False, is_inner=True, **inner)
        for i, split in enumerate(splits, 1)
    )
    return Fold("it", config, outer.whole(), 1, fold_folder(root, 1, 0), is_tested=True, inner=folds)


def _run(fold, bags, cache, **options):
    for each in (*fold.inner, fold):
        run_fold(each, bags, cache, 1, **options)
    return fold.result()


@pytest.mark.parametrize("config", [CONFIG, CONFIG.first_stage()], ids=["masked", "plain"])
def test_a_refit_trains_on_the_whole_fold_for_as_long_as_its_inner_folds_choose(bags, tmp_path, config):
    fold = _folds(bags, tmp_path, config)
    assert sorted(key for inner in fold.inner for key in inner.split.validation) == sorted(fold.split.train)
    assert set(fold.split.train) | set(fold.split.test) == set(bags.keys)
    result = _run(fold, bags, tmp_path / "cache")
    task = classification(2)
    choice = choose([read_inner(each.folder, each.records(), task) for each in fold.inner])

    assert (result.protocol, result.inner_runs) == ("refit", 3)
    assert result.num_epochs == choice.num_epochs == result.best_epoch + 1
    assert result.validation_curve == list(choice.curve)
    mean = np.mean([[r.student_validation_score for r in each.records()] for each in fold.inner], axis=0)
    assert result.validation_curve == pytest.approx(mean.tolist())

    # The threshold is that of the pooled scores, and every training bag is scored by a run without it.
    assert sorted(result.validation_keys) == sorted(fold.split.train)
    scores = result.validation_scores
    threshold = metrics.youden_threshold(scores.labels_N, scores.probabilities_NC[:, 1])
    assert result.validation["threshold"] == result.test["threshold"] == threshold
    # It was tested once, on bags that no inner fold has seen.
    again = predict(load_student(fold.folder), bags, fold.split.test)
    assert np.array_equal(again.predictions_NP, np.array(result.probabilities))
    assert all(not inner.result().keys and not inner.result().test for inner in fold.inner)
    records = fold.records()
    assert {record.student_validation_score for record in records} == {None}
    assert [record.best_epoch for record in records] == list(range(result.num_epochs))
    if config.teacher.kind != "none":
        assert load_teacher(fold.folder) is not None
    state = (fold.folder / "best_student" / "state.json").read_text()
    assert "each scored by the one of 3 inner runs that held it out" in state


def test_a_refit_is_the_start_of_a_run_of_all_epochs(bags, tmp_path):
    """Schedules are those of all configured epochs, not of those that are trained."""
    fold = _folds(bags, tmp_path, CONFIG)
    whole = replace(fold.split, validation=fold.split.test, selects_on_test=True)
    cut, full = (
        list(trainer.epochs())
        for trainer in (
            open_trainer(
                CONFIG, bags, fold.split, cache=tmp_path / "cache", num_epochs=2, num_stage_epochs=2
            ),
            open_trainer(CONFIG.override({"early_stopping.patience": 1}), bags, whole, cache=tmp_path),
        )
    )
    assert len(cut) == 2
    for one, other in zip(cut, full, strict=False):
        assert (one.learning_rate, one.momentum) == (other.learning_rate, other.momentum)
        assert one.masked_high_ratio == pytest.approx(other.masked_high_ratio)


def test_inner_runs_are_the_first_stages_of_masked_ones_and_train_once(bags, tmp_path, monkeypatch):
    trained = []

    class Counting(Trainer):
        def __init__(self, config, bags, split, *args, **kwargs):
            trained.append((split.validation, kwargs.get("num_epochs")))
            super().__init__(config, bags, split, *args, **kwargs)

    monkeypatch.setattr(first_stage, "Trainer", Counting)
    plain = _folds(bags, tmp_path / "plain", CONFIG.first_stage())
    masked = _folds(bags, tmp_path / "masked")
    result = _run(plain, bags, tmp_path / "cache")
    _run(masked, bags, tmp_path / "cache")
    # 3 inner runs and the refit of each; no first stage is trained a second time.
    assert len(trained) == 8
    assert sum(not validation for validation, _ in trained) == 2
    assert next(number for validation, number in trained if not validation) == result.num_epochs


def test_a_refit_that_was_cut_off_resumes_and_ends_the_same(bags, tmp_path):
    config = CONFIG.override({"teacher": {"kind": "momentum", "momentum": {"start": 0.9}}})
    whole = _run(_folds(bags, tmp_path / "whole", config), bags, tmp_path / "cache")
    fold = _folds(bags, tmp_path / "cut", config)
    for each in (*fold.inner, fold):
        asked = iter([False, False])
        with pytest.raises(PreemptedError):
            run_fold(each, bags, tmp_path / "cache", 1, stop=partial(next, asked, True))
        run_fold(each, bags, tmp_path / "cache", 1)
    result = fold.result()
    assert result.probabilities == whole.probabilities
    assert result.validation_probabilities == whole.validation_probabilities


def test_a_refit_needs_all_of_its_inner_folds_and_their_predictions(bags, tmp_path):
    fold = _folds(bags, tmp_path, CONFIG.first_stage())
    with pytest.raises(CheckpointError, match="expected the result of inner 1"):
        run_fold(fold, bags, tmp_path / "cache", 1)
    for inner in fold.inner:
        run_fold(inner, bags, tmp_path / "cache", 1)
    (fold.inner[1].folder / "predictions" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"inner-2: expected the predictions of an inner run"):
        run_fold(fold, bags, tmp_path / "cache", 1)


def test_a_split_without_validation_needs_a_number_of_epochs_and_one_with_it_needs_none(bags):
    outer = bags.holdout()
    with pytest.raises(SplitError, match="the validation set is empty"):
        Trainer(CONFIG.first_stage(), bags, outer.whole())
    with pytest.raises(SplitError, match=r"expected no validation set, .* got \d+ bags: use split.whole"):
        Trainer(CONFIG.first_stage(), bags, outer, num_epochs=2)


def test_a_split_made_whole_trains_on_all_that_does_not_test():
    split = Split(("c", "a"), ("b",), ("d",))
    assert split.whole() == Split(("a", "b", "c"), (), ("d",))
    assert Split(("c", "a"), ("d",), ("d",), selects_on_test=True).whole() == Split(("a", "c"), (), ("d",))
