import torch

from mhimdist.draws import Draws
from mhimdist.models.interface import keyed_dropout, segment_argmax


def _dropped(share: float, seed: int = 0, sizes=(500,)) -> torch.Tensor:
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    keys = Draws(seed, 0).keys(torch.arange(len(sizes)), "student_dropout")
    return keyed_dropout(torch.ones(int(offsets[-1]), 50), share, offsets, keys)


def test_the_share_and_the_mean_are_kept():
    values = _dropped(0.25)
    assert abs((values == 0).float().mean() - 0.25) < 0.01
    assert abs(values.mean() - 1) < 0.02
    assert torch.equal(values.unique(), torch.tensor([0, 256 / 192]))


def test_no_column_or_row_is_favoured():
    kept = (_dropped(0.5, sizes=(4000,)) > 0).float()
    assert (kept.mean(0) - 0.5).abs().max() < 0.04
    assert (kept.mean(1) - 0.5).abs().max() < 0.35


def test_another_seed_another_pattern():
    assert not torch.equal(_dropped(0.25, seed=0), _dropped(0.25, seed=1))


def test_nothing_is_dropped_without_keys():
    values = torch.ones(4, 3)
    assert keyed_dropout(values, 0.5, torch.tensor([0, 4]), None) is values


def test_the_argmax_of_a_segment_is_the_first_of_its_largest_rows():
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0], [9.0, 0.0], [2.0, -1.0], [2.0, 7.0]])
    assert segment_argmax(values, torch.tensor([0, 2, 3, 5])).tolist() == [[1, 0], [2, 2], [3, 4]]
