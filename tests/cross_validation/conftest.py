"""The data of several modules, and where their folds run: on a Ray, or in the process of the test."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray
from small_runs import small_digits

from mhimdist.cross_validation import compare as compare_module
from mhimdist.data.opening import open_bags
from mhimdist.training.fold import run_fold


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A private Ray; a module of which all tests need it asks for it once, by `usefixtures`."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds train in the process of the test, without Ray."""

    def run_folds(experiment, folds, data, stopping):
        every = [fold for each in folds.values() for fold in (*each.inner, each)]
        for fold in sorted(every, key=lambda fold: (not fold.is_inner, not fold.is_plain)):
            if not fold.is_finished:  # several folds may share an inner one
                bags = open_bags(data, fold.config.loading, bag_of=experiment.bag_of)
                run_fold(fold, bags, experiment.first_stages, 1)
        return {digest: fold.ended_result() for digest, fold in folds.items()}

    monkeypatch.setattr(compare_module, "run_folds", run_folds)
    monkeypatch.setattr(compare_module, "stoppable", lambda experiment: nullcontext())
