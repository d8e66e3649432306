import numpy as np
import pytest

from mhimdist.data.splits import Split, holdout
from mhimdist.errors import SplitError

KEYS = tuple(f"s{i}" for i in range(60))
CASES = tuple(f"c{i // 3}" for i in range(60))
LABELS = np.array([i % 2 for i in range(60)])


def _holdout(seed=0, **shares):
    return holdout(KEYS, CASES, LABELS, **({"test_share": 0.3, "validation_share": 0.2} | shares), seed=seed)


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


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(("s0",), ("s3", "s4"), ()), "the test set is empty"),
        (Split(("s0",), ("s1", "s2"), ("s6", "s7")), "case 'c0' stands in both the train and the validation"),
        (Split(("s0", "x"), ("s3", "s4"), ("s6", "s7")), "1 bags of the train set are not in the data"),
        (Split(("s0",), ("s3", "s5"), ("s6", "s7")), "all bags of the validation set are of one class"),
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
    with pytest.raises(SplitError, match=r"other\.json is no split"):
        Split.load(tmp_path / "other.json")
