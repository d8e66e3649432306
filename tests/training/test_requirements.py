"""What is checked before anything trains, and how the classes that a fold lacks are told."""

from dataclasses import replace

import golden_values
import pytest
import torch
from memory_bags import MemoryBags

from mhimdist.config.train import load_config
from mhimdist.data.splits import Split
from mhimdist.errors import CheckpointError, ConfigError, SplitError
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.requirements import check_runs, describe_left_out, describe_missing, notes_on_classes
from mhimdist.training.trainer import Trainer

CONFIG = load_config(
    {
        "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "masking": {"high": 0.1},
        "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
        "epochs": 2,
        "device": "cpu",
    }
)


@pytest.fixture
def three() -> MemoryBags:
    """Six bags each of class-0 and class-1, three of class-2."""
    generator = torch.Generator().manual_seed(0)
    labels = [0] * 6 + [1] * 6 + [2] * 3
    features = [torch.randn(10, 8, generator=generator) + label for label in labels]
    return MemoryBags(features, labels, [f"case-{i}" for i in range(len(labels))])


def _split(*rows):
    return Split(*(tuple(f"slide-{row}" for row in each) for each in rows))


WHOLE = _split([0, 1, 6, 7, 12], [2, 3, 8, 13], [4, 5, 9, 14])
RARE_IN_TRAIN = _split([0, 1, 6, 7, 12], [2, 3, 8], [4, 5, 9])
NONE_IN_TRAIN = _split([0, 1, 6, 7], [2, 3, 8, 13], [4, 5, 9, 14])


def test_a_class_that_train_lacks_is_refused_with_the_runs_name(three):
    check_runs([("fold 1", CONFIG, WHOLE), ("fold 2", CONFIG, RARE_IN_TRAIN)], three)
    with pytest.raises(
        SplitError, match=r"^fold 3: the train set has no case of class-2, so nothing can learn it"
    ):
        check_runs([("fold 1", CONFIG, WHOLE), ("fold 3", CONFIG, NONE_IN_TRAIN)], three)
    with pytest.raises(SplitError, match=r"^the train set has no case of class-2"):
        Trainer(CONFIG.first_stage(), three, NONE_IN_TRAIN)


def test_class_weights_of_another_number_are_refused(three):
    config = CONFIG.override({"loss.class_weights": [1.0, 2.0]})
    with pytest.raises(
        ConfigError, match=r"expected 3 weights, one per class \(class-0, class-1, class-2\), got 2"
    ):
        check_runs([("it", config, WHOLE)], three)


def test_weights_of_others_are_read_before_anything_trains(three, tmp_path):
    file = tmp_path / "theirs.pt"
    config = CONFIG.override({"teacher.weights": str(file)})
    with pytest.raises(
        CheckpointError, match=r"theirs\.pt: expected a checkpoint, cannot read one: .*No such file"
    ):
        check_runs([("it", config, WHOLE)], three)
    torch.save(golden_values.official_weights("attn", 1000), file)
    wide = config.override({"model.hidden_dim": 512, "model.attention_dim": 128})
    with pytest.raises(
        CheckpointError, match=r"expected shape .*, for data with 8 features and 3 classes, got"
    ):
        check_runs([("it", wide, WHOLE)], three)


@pytest.mark.faults(16)
def test_a_fold_whose_validation_and_test_lack_a_class_is_judged_on_the_others(three, tmp_path):
    fold = Fold("it", CONFIG, RARE_IN_TRAIN, 1, tmp_path / "fold", is_tested=True)
    run_fold(fold, three, tmp_path / "cache", 1)
    result = fold.ended_result()
    assert result.missing_classes == {"validation": ["class-2"], "test": ["class-2"]}
    aucs = []
    for label in (0, 1):
        scores = [row[label] for row in result.probabilities]
        pairs = [
            (a > b) + (a == b) / 2
            for a, mine in zip(scores, result.labels, strict=True)
            for b, other in zip(scores, result.labels, strict=True)
            if mine == label != other
        ]
        aucs.append(sum(pairs) / len(pairs))
    assert result.test["auc"] == pytest.approx(sum(aucs) / 2)
    searched = replace(fold, folder=tmp_path / "searched", is_tested=False)
    run_fold(searched, three, tmp_path / "cache", 1)
    assert searched.ended_result().missing_classes == {"validation": ["class-2"]}


def test_the_note_names_each_class_and_where_it_is_missing(three):
    assert notes_on_classes(three, [WHOLE]) == []
    what = "AUC, F1, precision and recall there are means over the classes that are present"
    assert notes_on_classes(three, [RARE_IN_TRAIN]) == [f"no case of class-2 in validation, test: {what}"]
    assert notes_on_classes(three, [WHOLE, RARE_IN_TRAIN]) == [
        f"no case of class-2 in validation of fold 2, test of fold 2: {what}"
    ]
    many = {f"fold {number}": {"test": ["a", "b"]} for number in range(1, 10)} | {"fold 10": {"test": ["c"]}}
    folds = ", ".join(f"test of fold {number}" for number in range(1, 7))
    assert (
        describe_missing(many, "classification")
        == f"no case of a, b in {folds} and 3 more; no case of c in test of fold 10: {what}"
    )
    said = describe_missing({"": {"test": ["top"]}}, "ordinal")
    assert said == "no case of top in test: the figures there do not say how such a case is judged"


def test_bags_that_no_split_names_are_said(three):
    said = "the split names 13 of 15 bags; left out: 'slide-10', 'slide-11'"
    assert describe_left_out(three, [WHOLE, RARE_IN_TRAIN]) == said
    everything = replace(WHOLE, test=(*WHOLE.test, "slide-10", "slide-11"))
    assert describe_left_out(three, [RARE_IN_TRAIN, everything]) == ""
