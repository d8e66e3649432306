"""What a split needs of the classes: every class in train, two in validation and test, by name where not."""

import csv

import numpy as np
import pytest

from mhimdist.data.splits import Split, from_file, holdout, k_folds
from mhimdist.errors import SplitError

CLASSES = ("KIRC", "KICH", "KIRP")
LABELS = np.array([0] * 12 + [1] * 9 + [2] * 3)
KEYS = tuple(f"s{i}" for i in range(24))
FIRST = {label: [KEYS[row] for row in np.flatnonzero(label == LABELS)] for label in range(3)}


def _sets(train, validation, test):
    """A split with two bags per listed class in each set."""
    left = {label: list(keys) for label, keys in FIRST.items()}
    return Split(
        *(
            tuple(left[label].pop() for label in classes for _ in range(2 if label < 2 else 1))
            for classes in (train, validation, test)
        )
    )


def _check(split, classes=CLASSES):
    split.check(KEYS, KEYS, LABELS, classes)


@pytest.mark.faults(16)
@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            _sets((0, 1), (0, 1, 2), (0, 1, 2)),
            "the train set has no case of KIRP, so nothing can learn it; give",
        ),
        (
            _sets((0, 1, 2), (0, 1, 2), (1,)),
            "the test set have the same class, KICH: its AUC is undefined with",
        ),
        (
            _sets((0, 1, 2), (2,), (0, 1)),
            "class, KIRP: its AUC is undefined without a case of KIRC or KICH; g",
        ),
        (
            _sets((0,), (0, 1), (0, 1)),
            "class, KIRC: there is nothing to learn without a case of KICH or KIRP",
        ),
    ],
)
def test_a_missing_class_is_refused_by_name(split, message):
    with pytest.raises(SplitError, match=message):
        _check(split)


def test_a_class_that_no_bag_has_is_missing_in_train():
    with pytest.raises(SplitError, match="the train set has no case of other, so nothing can learn it"):
        _check(_sets((0, 1, 2), (0, 1, 2), (0, 1, 2)), (*CLASSES, "other"))


def test_without_names_classes_are_named_by_their_index():
    with pytest.raises(SplitError, match="the train set has no case of 2, so nothing"):
        _check(_sets((0, 1), (0, 1, 2), (0, 1, 2)), None)


@pytest.mark.parametrize(
    ("split", "missing"),
    [
        (_sets((0, 1, 2), (0, 1, 2), (0, 1, 2)), {}),
        (_sets((0, 1, 2), (0, 1), (0, 1, 2)), {"validation": ["KIRP"]}),
        (_sets((0, 1, 2), (0, 2), (0, 1)), {"validation": ["KICH"], "test": ["KIRP"]}),
    ],
)
def test_three_classes_of_which_validation_or_test_lack_one_are_told(split, missing):
    _check(split)
    assert split.missing_classes(KEYS, LABELS, CLASSES) == missing


def test_more_folds_than_cases_of_a_class_are_refused_by_name():
    message = r"class KIRP has 3 cases, too few for 4 folds, each of .*; give fewer folds, or .*--class-map"
    with pytest.raises(SplitError, match=message):
        k_folds(KEYS, KEYS, LABELS, num_folds=4, validation_share=0.15, seed=0, classes=CLASSES)
    with pytest.raises(SplitError, match="class 2 has 1 case, too few for 2 folds"):
        k_folds(KEYS[:22], KEYS[:22], LABELS[:22], num_folds=2, validation_share=0.15, seed=0)


@pytest.mark.parametrize("seed", range(20))
def test_drawn_folds_leave_every_class_to_train_and_give_validation_what_they_can(seed):
    """KIRP has 3 cases: one tests, and one of the other two must train."""
    folds = k_folds(KEYS, KEYS, LABELS, num_folds=3, validation_share=0.4, seed=seed, classes=CLASSES)
    assert [fold.missing_classes(KEYS, LABELS, CLASSES) for fold in folds] == [{}] * 3


@pytest.mark.parametrize("seed", range(20))
def test_a_drawn_holdout_leaves_a_class_of_one_case_to_train(seed):
    keys, labels = KEYS[:22], LABELS[:22]
    split = holdout(keys, keys, labels, test_share=0.3, validation_share=0.3, seed=seed, classes=CLASSES)
    assert split.missing_classes(keys, labels, CLASSES) == {"validation": ["KIRP"], "test": ["KIRP"]}
    assert KEYS[21] in split.train


def test_a_split_file_is_named_with_its_fold(tmp_path):
    path = tmp_path / "split.csv"
    split = _sets((0, 1), (0, 1, 2), (0, 1, 2))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "set", "fold"])
        writer.writerows([(key, name, 7) for name, keys in split.sets.items() for key in keys])
    with pytest.raises(SplitError, match=r"split\.csv, fold 7: the train set has no case of KIRP"):
        from_file(path, KEYS, KEYS, KEYS, LABELS, validation_share=0.2, seed=0, classes=CLASSES)
