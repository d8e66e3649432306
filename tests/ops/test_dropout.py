import pytest
import torch

from mhimdist.ops import keyed_dropout, reference, relu_dropout
from mhimdist.ops.draws import Draws

pytestmark = pytest.mark.numeric


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


def _random(sizes=(3, 1, 700), width=21, dtype=torch.float32):
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    values = torch.randn(sum(sizes), width, generator=torch.Generator().manual_seed(0)).to(dtype)
    keys = Draws(0, 0).keys(torch.arange(len(sizes)), "student_dropout")
    return values, offsets, keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 8, 21, 300])
def test_both_dropouts_have_the_bits_of_the_specification(dtype, width):
    values, offsets, keys = _random(width=width, dtype=dtype)
    expected = reference.keyed_dropout(values, 0.3, offsets, keys, site=2)
    assert torch.equal(keyed_dropout(values, 0.3, offsets, keys, site=2), expected)
    expected = reference.keyed_dropout(values.relu(), 0.3, offsets, keys, site=2)
    assert torch.equal(relu_dropout(values, 0.3, offsets, keys, site=2), expected)
    assert torch.equal(relu_dropout(values.clone(), 0.3, offsets, keys, site=2, inplace=True), expected)


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_are_those_of_the_specification(inplace):
    values, offsets, keys = _random(width=21)
    values.requires_grad_()
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    linear = values * 1.0
    for ours, theirs in [
        (keyed_dropout(values, 0.3, offsets, keys), reference.keyed_dropout(values, 0.3, offsets, keys, 0)),
        (
            relu_dropout(linear, 0.3, offsets, keys, inplace=inplace),
            reference.keyed_dropout(values.relu(), 0.3, offsets, keys, 0),
        ),
    ]:
        (got,) = torch.autograd.grad((ours * weights).sum(), values)
        (expected,) = torch.autograd.grad((theirs * weights).sum(), values)
        torch.testing.assert_close(got, expected)


def test_the_pattern_differs_from_site_to_site():
    values, offsets, keys = _random()
    first, second = (keyed_dropout(values, 0.5, offsets, keys, site=site) for site in (0, 1))
    assert not torch.equal(first, second)


def test_padding_behind_the_last_bag_is_zero():
    values, offsets, keys = _random()
    padded = torch.cat([values, torch.ones(5, values.shape[1])])
    for dropout in (keyed_dropout, relu_dropout):
        out = dropout(padded, 0.5, offsets, keys)
        assert torch.equal(out[:-5], dropout(values, 0.5, offsets, keys))
        assert not out[-5:].any()


def test_relu_remains_without_keys_or_share():
    values, offsets, keys = _random()
    assert torch.equal(relu_dropout(values, 0.5, offsets, None), values.relu())
    assert torch.equal(relu_dropout(values, 0.0, offsets, keys), values.relu())
