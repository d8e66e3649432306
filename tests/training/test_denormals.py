import sys

import pytest
import torch

from mhimdist.training.denormals import flushed

pytestmark = pytest.mark.numeric


def test_denormals_are_zero_inside_and_numbers_again_outside():
    tiny = torch.full((4,), torch.finfo(torch.float32).tiny)
    assert (tiny / 2 > 0).all()
    with flushed():
        assert (tiny / 2 == 0).all()
        with flushed():
            pass
        assert (tiny / 2 == 0).all()
    assert (tiny / 2 > 0).all()
    assert sys.float_info.min / 2 > 0


def test_every_compute_thread_is_told():
    """Operators split large tensors over threads, and torch's switch acts on one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        small = torch.full((1_000_000,), torch.finfo(torch.float32).tiny)
        assert (small * 0.5 > 0).all()  # both threads have run
        with flushed():
            assert (small * 0.5 == 0).all()
        assert (small * 0.5 > 0).all()
    finally:
        torch.set_num_threads(before)
