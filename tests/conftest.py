"""What all test modules share."""

import pytest
import torch
from memory_bags import MemoryBags, gaussian_bags

torch.set_num_threads(1)  # a small step is faster on one thread, and the test machine has few cores


@pytest.fixture
def bags() -> MemoryBags:
    return gaussian_bags()
