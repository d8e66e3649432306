"""What the commands that train begin with."""

import importlib.util

import pytest
from job_scripts import ROOT

from data_prep.classic import BENCHMARKS
from data_prep.digits import DATA_SETS
from data_prep.options import BenchmarkName, EmbeddedName
from mhimdist.commands import actions
from mhimdist.commands.main import call
from mhimdist.commands.options import ModelName
from mhimdist.config.models import MODEL_NAMES
from mhimdist.config.presets import digits_preset, preset
from mhimdist.errors import ConfigError
from mhimdist.paper.options import TABLES
from mhimdist.paper.rows import TITLES
from mhimdist.search.mhim_space import mhim_space
from mhimdist.search.options import Sweep
from mhimdist.search.proposals import examine

TUNE = actions.tune


@pytest.fixture
def asked(monkeypatch):
    """Returns the options that a command line asks for; nothing is done with them."""

    def of(*words):
        found = []
        for name in ("cross_validate", "tune", "ablate", "submit", "make_data"):
            monkeypatch.setattr(actions, name, found.append)
        call(words)
        (job,) = found
        return job

    return of


def test_the_names_that_options_list_are_those_there_are():
    assert EmbeddedName.__args__ == tuple(DATA_SETS)
    assert BenchmarkName.__args__ == tuple(BENCHMARKS)
    assert ModelName.__args__ == MODEL_NAMES
    assert tuple(TITLES) == TABLES


def test_train_is_one_network_on_a_holdout_or_on_the_first_fold(asked):
    job = asked("train", "--data", "shards/", "--model", "dsmil")
    assert job.train == preset("c16", "dsmil")
    assert (job.test_share, job.run_folds, job.seeds) == (0.35, 1, (2021,))
    assert [each.config for each in job.candidates] == [job.train]
    job = asked("train", "--folds", "5")
    assert (job.test_share, job.folds, job.run_folds) == (None, 5, 1)
    assert job.train == digits_preset("c16", "abmil")


def test_cross_validation_takes_the_authors_folds(asked):
    job = asked("cross-validate", "--preset", "tcga", "train.epochs=7", "--seeds", "1,2")
    assert (job.data, job.folds, job.seeds) == ("digits-tcga", 4, (1, 2))
    assert job.train == digits_preset("tcga", "abmil").override({"epochs": 7})
    assert len(job.candidates) == 2
    assert asked("cross-validate", "seeds=3,4", "train.tf32=true").seeds == (3, 4)


def test_tune_searches_what_the_job_searches(asked):
    job = asked("tune", "--num-trials", "3", "--name", "mine")
    assert type(job.sweep) is Sweep
    assert (job.sweep.num_trials, job.sweep.name) == (3, "mine")
    spec = importlib.util.spec_from_file_location("tune_c16", ROOT / "jobs" / "tune_c16.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert job.train == script.BASE
    assert examine(mhim_space, script.BASE) == examine(script.space, script.BASE)


def test_what_has_no_mask_cannot_be_tuned_without_a_space(asked):
    job = asked("tune")
    plain = job.model_copy(update={"train": job.train.first_stage()})
    with pytest.raises(ConfigError, match="abmil is not masked"):
        TUNE(plain)


def test_ablate_is_quick_when_asked(asked):
    assert asked("ablate").transmil_epochs is None
    job = asked("ablate", "--quick", "--preset", "tcga")
    assert (job.seeds, job.transmil_epochs, job.folds, job.data) == ((2021,), 15, 4, "digits-tcga")
    assert job.base("transmil") == digits_preset("tcga", "transmil")


def test_the_options_of_what_is_submitted_are_left_alone(asked):
    job = asked("submit", "--check", "tune", "--data", "x", "--check", "-q")
    assert (job.job, job.rest, job.check) == ("tune", ["--data", "x", "--check", "-q"], True)


def test_data_makes_either_kind(asked):
    job = asked("data", "digits-c16", "--out", "o", "--bags", "5")
    assert not job.is_classic
    assert job.embedded.drawn == {"bags": 5}
    job = asked("data", "musk1", "--raw")
    assert job.is_classic
    assert job.classic.raw
