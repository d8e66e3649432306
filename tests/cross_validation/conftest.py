"""The data and the Ray that cross-validations of several modules run on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from small_runs import small_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A private Ray; a module of which all tests need it asks for it once, by `usefixtures`."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
