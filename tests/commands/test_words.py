"""Words that are no options: a file of settings, and overrides."""

import sys
from types import SimpleNamespace

import click
import pytest

from mhimdist.commands import actions
from mhimdist.commands.main import call
from mhimdist.commands.words import FILES, read_words
from mhimdist.config.fields import settings_of
from mhimdist.config.train import TrainConfig
from mhimdist.search.options import Sweep

SETTINGS = settings_of(Sweep)
OVERRIDES = ["train.epochs=3", "seeds=1,2", "at-once=none", "fresh=true"]


def test_overrides_become_nested_settings():
    of_file, tree = read_words(
        "tune", ["train.epochs=3", "seeds=1,2", "at-once=none", "fresh=true"], SETTINGS
    )
    assert of_file == {}
    assert Sweep.of_tree(tree).model_dump(exclude_unset=True)["seeds"] == (1, 2)
    made = Sweep.of_tree(tree)
    assert (made.train.epochs, made.at_once, made.fresh) == (3, None, True)
    with pytest.raises(click.UsageError, match=r"no setting 'num_trails' \(did you mean num_trials\?\)"):
        read_words("tune", ["num_trails=3"], SETTINGS)


def test_a_file_says_it_all_and_options_override_it(monkeypatch):
    """The reader of files is tested elsewhere; this one says what any would."""
    asked, found = [], []

    def read_settings(kind, path, overrides):
        asked.append((kind, path, overrides))
        return {"folds": 5, "run_folds": 1, "train": {"epochs": 9, "model": {"name": "dsmil"}}}

    monkeypatch.setitem(sys.modules, FILES, SimpleNamespace(read_settings=read_settings))
    monkeypatch.setattr(actions, "cross_validate", found.append)
    call(["train", "run.yaml", "train.seed=1", "--train.bags-per-step", "4", "--folds", "3"])
    (job,) = found
    assert asked == [("train", "run.yaml", ["train.seed=1"])]
    assert (job.folds, job.run_folds, job.test_share) == (3, 1, None)
    wanted = {"model.name": "dsmil", "epochs": 9, "bags_per_step": 4}
    assert job.train == TrainConfig().override(wanted)
