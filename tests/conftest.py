"""What all test modules share."""

import pytest
import torch
from memory_bags import MemoryBags, gaussian_bags

torch.set_num_threads(1)  # a small step is faster on one thread, and the test machine has few cores


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Count the tests that need a GPU as skipped where there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def bags() -> MemoryBags:
    return gaussian_bags()
