import sys

import torch

from mhimdist.denormals import flushed


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
