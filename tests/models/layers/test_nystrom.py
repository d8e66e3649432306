import pytest
import torch

from mhimdist.models.layers.nystrom import NystromAttention

pytestmark = pytest.mark.numeric


def _attention(num_landmarks: int = 4, iterations: int = 6) -> NystromAttention:
    torch.manual_seed(0)
    return NystromAttention(8, 2, num_landmarks, iterations).double()


def _tokens(count: int) -> torch.Tensor:
    return torch.randn(count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


def test_with_every_token_a_landmark_it_is_softmax_attention():
    attention, tokens = _attention(num_landmarks=6, iterations=60), _tokens(6)
    query, key, value = (part.view(6, 2, 4).transpose(0, 1) for part in attention.qkv(tokens).chunk(3, dim=1))
    weights = torch.softmax(query @ key.mT / 2, dim=-1)
    gathered = weights @ value + attention.residual(value[None])[0]
    expected = attention.output(gathered.transpose(0, 1).reshape(6, 8))
    torch.testing.assert_close(attention(tokens)[0], expected)
    with torch.no_grad():
        ours, row = attention(tokens)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(row, weights[:, 0])


@pytest.mark.parametrize("count", [1, 2, 4, 5, 16, 17, 40])
def test_the_class_token_alone_is_the_first_row_with_its_gradients(count):
    attention, tokens = _attention(), _tokens(count).requires_grad_()
    results = []
    for gathered, _ in (attention(tokens), attention.class_token(tokens)):
        loss = (gathered[0] * torch.arange(8)).sum()
        results.append([gathered[0], *torch.autograd.grad(loss, [tokens, *attention.parameters()])])
    with torch.no_grad():
        for result, (_, row) in zip(results, (attention(tokens), attention.class_token(tokens)), strict=True):
            result.append(row)
    for whole, alone in zip(*results, strict=True):
        torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("count", [1, 6, 23])
def test_a_sequence_in_parts_is_the_sequence(count):
    attention, tokens = _attention(), _tokens(count)
    with torch.no_grad():
        for whole, parts in (
            (attention(tokens), attention(tokens[:1], tokens[1:])),
            (attention.class_token(tokens), attention.class_token(tokens[:1], tokens[1:])),
        ):
            for expected, ours in zip(whole, parts, strict=True):
                assert torch.equal(ours, expected)


def test_padding_takes_part_in_the_softmax_over_tokens():
    tokens = torch.zeros(5, 8, dtype=torch.float64)  # all keys are equal, so each of the 8 places gets 1/8
    attention = _attention(num_landmarks=4)
    with torch.no_grad():
        for row in (attention(tokens)[1], attention.class_token(tokens)[1]):
            torch.testing.assert_close(row, torch.full_like(row, 1 / 8))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_gradients_are_those_of_finite_differences(count):
    attention, tokens = _attention(num_landmarks=3, iterations=3), _tokens(count).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention(x)[0], tokens)
    assert torch.autograd.gradcheck(attention.class_token, tokens)
