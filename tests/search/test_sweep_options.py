import numpy as np
import pytest

from mhimdist.config.train import TrainConfig
from mhimdist.data.shards import BagShards
from mhimdist.data.split_files import Bags
from mhimdist.data.targets import CLASSIFICATION
from mhimdist.errors import ConfigError, SplitError
from mhimdist.search.options import Sweep


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "test_auc"], "makes that metric worthless as a test; use validation_score"),
        (["--objective", "accuracy"], "objective accuracy is unknown; use validation_score"),
        (["--against", "time"], "scheduler asha stops trials by their AUC alone"),
        (
            ["--against", "time", "--scheduler", "none", "--sampler", "cmaes"],
            "cmaes moves towards one optimum",
        ),
        (["--parallel-folds", "3", "--folds", "2"], r"a trial has only 2 runs \(2 folds x 1 seeds\)"),
        (["--parallel-folds", "2", "--folds", "2", "--workers", "2"], "set one to 1"),
        (["--seeds", "1,1"], "seeds lists a seed twice: 1, 1"),
    ],
)
def test_options_that_do_not_fit_together_are_refused_with_the_reason(options, message):
    with pytest.raises(ConfigError, match=message):
        Sweep.from_command_line(options)


def test_the_default_base_is_a_valid_first_trial():
    assert Sweep().train == TrainConfig()


def test_folds_and_waves():
    sweep = Sweep(folds=3, seeds=(1, 2), parallel_folds=4)
    assert (sweep.folds_per_trial, sweep.num_waves) == (6, 2)
    assert Sweep().run_seeds == (TrainConfig().seed,)


class Cases:
    """The data that splits are made from: 20 cases of 3 bags."""

    keys = tuple(f"bag-{i}" for i in range(60))
    slides = keys
    cases = tuple(f"case-{i // 3}" for i in range(60))
    names = Bags(keys, slides, cases)
    labels_N = np.array([i // 3 % 2 for i in range(60)])
    classes = ("normal", "tumour")
    task = CLASSIFICATION


def test_folds_validate_every_case_once_and_none_of_them_sees_the_test_cases():
    bags: BagShards = Cases()  # type: ignore[assignment]
    whole = Sweep(folds=1, test_share=0.3).splits(bags)
    splits = Sweep(folds=3, test_share=0.3).splits(bags)
    assert [split.test for split in splits] == [whole[0].test] * 3
    validated = [key for split in splits for key in split.validation]
    assert sorted(validated) == sorted({*whole[0].train, *whole[0].validation})
    for split in splits:
        assert not split.selects_on_test
        assert set(split.train) | set(split.validation) == set(validated)
        split.check(bags.keys, bags.cases, bags.labels_N)


def test_an_official_split_gives_the_test_set(tmp_path):
    bags: BagShards = Cases()  # type: ignore[assignment]
    rows = [f"{key},{'test' if int(key[4:]) < 18 else 'train'}" for key in bags.keys]
    file = tmp_path / "official.csv"
    file.write_text("\n".join(["slide,set", *rows]))
    splits = Sweep(folds=2, split_file=file).splits(bags)
    assert all(set(split.test) == set(bags.keys[:18]) for split in splits)
    several = tmp_path / "several.csv"
    several.write_text("\n".join(["slide,set,fold", *(f"{row},{n}" for n in (1, 2) for row in rows)]))
    with pytest.raises(SplitError, match="holds 2 splits; a sweep needs one test set"):
        Sweep(split_file=several).splits(bags)
