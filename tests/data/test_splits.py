import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from mhimdist.data.inner_splits import inner_folds
from mhimdist.data.splits import Split, from_file, holdout, k_folds
from mhimdist.errors import SplitError

KEYS = tuple(f"s{i}" for i in range(60))
CASES = tuple(f"c{i // 3}" for i in range(60))
LABELS = np.array([i % 2 for i in range(60)])


def _holdout(seed=0, **shares):
    return holdout(KEYS, CASES, LABELS, **({"test_share": 0.3, "validation_share": 0.2} | shares), seed=seed)


@pytest.mark.faults(17)
@pytest.mark.parametrize("seed", range(5))
def test_every_bag_is_used_once_and_no_case_twice(seed):
    split = _holdout(seed)
    assert sorted(split.train + split.validation + split.test) == sorted(KEYS)
    case_of = dict(zip(KEYS, CASES, strict=True))
    sets = [{case_of[key] for key in keys} for keys in (split.train, split.validation, split.test)]
    assert [len(s) for s in sets] == [10, 4, 6]
    assert len(set().union(*sets)) == 20
    for keys in (split.validation, split.test):
        assert abs(np.mean([LABELS[KEYS.index(key)] for key in keys]) - 0.5) < 0.1


def test_seeds_give_other_splits_and_the_same_seed_the_same():
    assert _holdout(0) == _holdout(0)
    assert _holdout(0) != _holdout(1)
    assert _holdout(0).digest() != _holdout(1).digest()


def test_too_few_cases_are_refused():
    with pytest.raises(SplitError, match="20 cases cannot make 10 to test, 10 to validate"):
        _holdout(test_share=0.5, validation_share=0.5)


@pytest.mark.faults(17)
@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(("s0", "s1"), ("s3", "s4"), ()), "the test set is empty"),
        (Split(("s0", "s1"), ("s1", "s2"), ("s6", "s7")), "case 'c0' is in both the train and the valid"),
        (Split(("s0", "x"), ("s3", "s4"), ("s6", "s7")), "1 bags of the train set are not in the data"),
        (
            Split(("s0", "s1"), ("s3", "s5"), ("s6", "s7")),
            "all bags of the validation set have the same class, 1",
        ),
        (
            Split(("s0", "s2"), ("s3", "s4"), ("s6", "s7")),
            "of the train set have the same class, 0: there is noth",
        ),
        (Split(("s0", "s0"), ("s3", "s4"), ("s6", "s7")), "the train set lists a bag twice"),
    ],
)
def test_a_wrong_split_is_refused(split, message):
    with pytest.raises(SplitError, match=message):
        split.check(KEYS, CASES, LABELS)


def test_file_round_trip_and_a_file_that_is_none(tmp_path):
    split = _holdout()
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    (tmp_path / "other.json").write_text('{"train": []}')
    with pytest.raises(SplitError, match=r"other\.json does not hold a split"):
        Split.load(tmp_path / "other.json")


def _k_folds(cases=CASES, labels=LABELS, **options):
    defaults = {"num_folds": 3, "validation_share": 0.15, "seed": 0}
    return k_folds(KEYS, cases, labels, **(defaults | options))


def test_folds_test_every_bag_once_and_keep_the_class_shares():
    folds = _k_folds(cases=KEYS, labels=np.array([i % 5 < 2 for i in range(60)], int))
    assert sorted(key for split in folds for key in split.test) == sorted(KEYS)
    for split in folds:
        assert (len(split.test), len(split.validation), len(split.train)) == (20, 6, 34)
        for keys, slack in ((split.test, 0.01), (split.validation, 0.1)):
            share = np.mean([int(key[1:]) % 5 < 2 for key in keys])
            assert share == pytest.approx(0.4, abs=slack)


def test_tcga_splits_patients_65_10_25():
    cases = [f"patient-{i}" for i in range(400) for _ in range(1 + i % 3)]
    keys, labels = [str(i) for i in range(len(cases))], np.array([int(case[8:]) % 2 for case in cases])
    folds = k_folds(keys, cases, labels, num_folds=4, validation_share=0.13, seed=2021)
    case_of = dict(zip(keys, cases, strict=True))
    for split in folds:
        split.check(keys, cases, labels)
        shares = [len({case_of[key] for key in members}) / 400 for members in split.sets.values()]
        assert shares == pytest.approx([0.6525, 0.0975, 0.25], abs=0.011)


@pytest.mark.parametrize("share", [0, 0.15])
def test_both_protocols_test_on_the_same_folds(share):
    strict, paper = _k_folds(), _k_folds(validation_share=share, selects_on_test=True)
    for ours, theirs in zip(strict, paper, strict=True):
        assert ours.test == theirs.test == theirs.validation
        assert theirs.selects_on_test
        assert not ours.selects_on_test
        assert set(theirs.train) == set(ours.train) | (set() if share else set(ours.validation))
        theirs.check(KEYS, CASES, LABELS)


def test_only_a_split_that_says_so_selects_on_its_test_bags():
    paper = _k_folds(selects_on_test=True)[0]
    with pytest.raises(SplitError, match="is in both the validation and the test set"):
        replace(paper, selects_on_test=False).check(KEYS, CASES, LABELS)
    with pytest.raises(SplitError, match="must validate on exactly those"):
        replace(paper, validation=paper.test[1:]).check(KEYS, CASES, LABELS)
    with pytest.raises(SplitError, match="is in both the train and the test set"):
        replace(paper, train=(*paper.train, paper.test[0])).check(KEYS, CASES, LABELS)
    assert paper.digest() != replace(paper, selects_on_test=False).digest()


def test_the_flag_is_in_the_file(tmp_path):
    paper = _k_folds(selects_on_test=True)[1]
    paper.save(tmp_path / "split.json")
    assert json.loads((tmp_path / "split.json").read_text())["selects_on_test"] is True
    assert Split.load(tmp_path / "split.json") == paper


def test_impossible_folds_are_refused():
    with pytest.raises(SplitError, match="class 0 has 2 cases, too few for 3 folds"):
        _k_folds(labels=np.array([i >= 6 for i in range(60)], int))
    with pytest.raises(SplitError, match="cases cannot make 13 to validate and any to train"):
        _k_folds(validation_share=0.99)


def _from_file(path, labels=LABELS, **options):
    slides = [f"slide.{key}" for key in KEYS]
    defaults = {"validation_share": 0.2, "seed": 0}
    return from_file(path, KEYS, slides, CASES, labels, **(defaults | options))


def _csv(path, rows):
    path.write_bytes(("\ufeffslide,set,fold\r\n" + "\r\n".join(rows) + "\r\n\r\n").encode())
    return path


def test_an_official_split_without_validation_takes_it_from_the_training_cases(tmp_path):
    rows = [f"slide.{key},{'test' if i < 18 else 'train'},1" for i, key in enumerate(KEYS)]
    path = _csv(tmp_path / "official.csv", rows)
    (split,) = _from_file(path)
    assert split.test == KEYS[:18]
    assert sorted(split.train + split.validation) == sorted(KEYS[18:])
    assert len(split.validation) == 9
    (paper,) = _from_file(path, selects_on_test=True)
    assert (paper.train, paper.validation) == (split.train, split.test)  # only the selection differs
    (paper,) = _from_file(path, selects_on_test=True, validation_share=0)
    assert (paper.train, paper.validation, paper.test) == (KEYS[18:], KEYS[:18], KEYS[:18])


def test_folds_of_a_json_file_are_those_that_were_saved(tmp_path):
    folds = _k_folds()
    saved = [split.sets for split in folds]
    (tmp_path / "folds.json").write_text(json.dumps(saved))
    assert _from_file(tmp_path / "folds.json") == folds
    folds[0].save(tmp_path / "one.json")
    assert _from_file(tmp_path / "one.json") == folds[:1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["slide.s0,train,1", "slide.s60,test,1"], "fold 1: 1 slides are not in the data, .* 'slide.s60'"),
        (["slide.s0,trained,1"], "line 2: set is 'trained', not one of train, validation, test"),
        (["s0,train,2", "s1,train,2", "s3,validation,2", "s4,validation,2"], "fold 2: the test set is empty"),
        (
            ["s0,train,1", "s1,train,1", "s3,validation,1", "s4,validation,1", "s7,test,1"],
            "fold 1: .* same class",
        ),
        (
            ["s0,train,1", "s3,validation,1", "s4,validation,1", "s6,test,1", "s7,test,1"],
            "train set .* same class",
        ),
        ([], "it has no rows"),
    ],
)
def test_a_wrong_file_is_named_with_its_fold(tmp_path, rows, message):
    with pytest.raises(SplitError, match=message):
        _from_file(_csv(tmp_path / "official.csv", rows))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SplitError, match="it has no column set, slide"):
        _from_file(tmp_path / "other.csv")


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_holdout_that_selects_on_test_validates_there_and_keeps_the_share_from_training(share):
    how = {"test_share": 0.3, "seed": 3}
    strict = holdout(KEYS, CASES, LABELS, validation_share=0.2, **how)
    paper = holdout(KEYS, CASES, LABELS, validation_share=share, selects_on_test=True, **how)
    assert paper.validation == paper.test == strict.test
    assert sorted(paper.train) == sorted(strict.train + (strict.validation if not share else ()))


def test_strata_shape_the_folds_and_are_not_asked_of_every_set(tmp_path):
    strata = np.array([0] * 39 + [1] * 18 + [2] * 3)  # the third has a single case
    rare = {"labels": strata, "classes": ("event, early", "event, late", "censored")}
    with pytest.raises(SplitError, match="class censored has 1 case, too few for 3 folds"):
        _k_folds(**rare)
    folds = _k_folds(**rare, strata=True)
    assert sorted(key for fold in folds for key in fold.test) == sorted(KEYS)
    for fold in folds:  # 13 and 6 cases over 3 folds
        rows = [KEYS.index(key) for key in fold.test]
        assert 12 <= (strata[rows] == 0).sum() <= 15
        assert (strata[rows] == 1).sum() == 6
    inner = inner_folds(KEYS, CASES, strata, folds[0], num_folds=3, seed=0, strata=True)
    assert len(inner) == 3
    many = _k_folds(labels=np.arange(60) // 3, num_folds=10, strata=True)  # no stratum is in all folds
    assert sorted(key for fold in many for key in fold.test) == sorted(KEYS)
    with pytest.raises(SplitError, match="20 cases are too few for 21 folds; give fewer folds"):
        _k_folds(labels=strata, num_folds=21, strata=True)

    sets = ["train" if i < 42 else "validation" if i < 51 else "test" for i in range(60)]
    path = _csv(tmp_path / "official.csv", [f"slide.{key},{sets[i]},1" for i, key in enumerate(KEYS)])
    read = partial(_from_file, path, labels=strata, classes=rare["classes"])
    with pytest.raises(SplitError, match="the train set has no case of censored"):
        read()
    (split,) = read(strata=True)
    assert split.train == KEYS[:42]
    assert split.test == KEYS[51:]
