import golden_values
import pytest
import torch

from mhimdist.config.models import TransMIL
from mhimdist.data.bags import PackedBags
from mhimdist.models import build, transmil
from mhimdist.models.transmil import PositionEncoding

pytestmark = pytest.mark.numeric
SMALL = TransMIL(hidden_dim=8, num_heads=2, num_landmarks=4)


def test_parameter_count_is_the_papers():
    network = build(TransMIL(), num_features=1024, num_classes=2, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 2_672_146


@pytest.mark.parametrize("size", golden_values.sizes("selfattn"))
def test_golden_forward(size):
    for layer in (0, 1):
        network = build(TransMIL(score_layer=layer), num_features=1024, num_classes=2, seed=0)
        golden_values.fill(network, "selfattn", base_seed=1000)
        with torch.no_grad():
            output = network(golden_values.bag(size, seed=size))
        ours = {
            "logits": output.logits_BC,
            "embedding": output.embeddings_BME[:, 0],
            f"scores_layer{layer}": output.scores_TH.T,
        }
        for name, value in ours.items():
            golden = torch.from_numpy(golden_values.ARRAYS[f"selfattn/n{size}/{name}"])
            error = (value - golden.reshape(value.shape)).abs().max() / golden.abs().max()
            assert error < 1e-4, (name, error)


def test_the_class_token_starts_from_a_standard_normal():
    token = build(TransMIL(), num_features=4, num_classes=2, seed=0).class_token
    assert abs(token.mean()) < 0.15
    assert abs(token.std() - 1) < 0.1
    assert not torch.equal(token, build(TransMIL(), num_features=4, num_classes=2, seed=1).class_token)
    alone = build(TransMIL(class_token_std=1e-6), num_features=4, num_classes=2, seed=0).class_token
    torch.testing.assert_close(alone, token * 1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 36, 37, 50])
def test_the_merged_kernel_is_the_three_convolutions(size):
    torch.manual_seed(size)
    position = PositionEncoding(3).double()
    tokens = torch.randn(size, 3, dtype=torch.float64)
    side = max(next(s for s in range(9) if s * s >= size), 7)
    square = torch.zeros(side * side, 3, dtype=torch.float64)
    repeated = next(s for s in range(9) if s * s >= size) ** 2
    square[:repeated] = torch.cat([tokens, tokens])[:repeated]
    grid = square.T.reshape(1, 3, side, side)
    expected = grid + sum(
        torch.nn.functional.conv2d(grid, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2, groups=3)
        for conv in (position.conv7, position.conv5, position.conv3)
    )
    torch.testing.assert_close(position(tokens), expected.reshape(3, -1).T[:size])


def test_dropout_follows_the_keys_and_differs_between_layers():
    settings = SMALL.model_copy(update={"dropout": 0.0, "attention_dropout": 0.5})
    network = build(settings, num_features=5, num_classes=2, seed=0)
    bags = PackedBags.from_list([torch.rand(9, 5)])
    patterns = []
    for layer in (network.layer1, network.layer2):
        patterns.append(layer._drop(torch.ones(10, 8), torch.tensor([7])))
        assert 0 < (patterns[-1] == 0).float().mean() < 1
    assert not torch.equal(*patterns)
    first, again, other = (network(bags, torch.tensor([key])).logits_BC for key in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_score_layer_changes_the_scores_alone():
    bags = PackedBags.from_list([torch.rand(9, 5), torch.rand(1, 5)])
    networks = (
        build(SMALL.model_copy(update={"score_layer": layer}), num_features=5, num_classes=2, seed=0)
        for layer in (0, 1)
    )
    with torch.no_grad():
        first, second = (network(bags) for network in networks)
    assert torch.equal(first.logits_BC, second.logits_BC)
    assert first.scores_TH.shape == second.scores_TH.shape == (10, 2)
    assert not torch.equal(first.scores_TH, second.scores_TH)


@pytest.mark.parametrize("layer", [0, 1])
def test_scores_are_formed_without_gradients_and_a_batch_has_those_of_single_bags(layer):
    settings = SMALL.model_copy(update={"score_layer": layer})
    network = build(settings, num_features=5, num_classes=2, seed=0).double()
    bags = [torch.rand(size, 5, dtype=torch.float64) for size in (9, 1, 4)]
    packed = PackedBags.from_list(bags)
    with_gradients = network(packed)
    with torch.no_grad():
        without = network(packed)
        alone = torch.cat([network(PackedBags.from_list([bag])).scores_TH for bag in bags])
    assert with_gradients.scores_TH is None
    torch.testing.assert_close(without.scores_TH, alone)
    torch.testing.assert_close(without.embeddings_BME, with_gradients.embeddings_BME)


@pytest.mark.parametrize("layer", [0, 1])
def test_without_gradients_the_parts_of_a_bag_are_the_bag(layer, monkeypatch):
    settings = SMALL.model_copy(update={"score_layer": layer})
    network = build(settings, num_features=5, num_classes=2, seed=0).double()
    bags = PackedBags.from_list([torch.rand(size, 5, dtype=torch.float64) for size in (70, 1, 50, 9)])
    with torch.no_grad():
        whole = network(bags)
        for rows in (1, 4, 30):
            monkeypatch.setattr(transmil, "ROWS", rows)
            parts = network(bags)
            torch.testing.assert_close(parts.embeddings_BME, whole.embeddings_BME)
            torch.testing.assert_close(parts.scores_TH, whole.scores_TH)
    torch.testing.assert_close(network(bags).embeddings_BME, whole.embeddings_BME)


@pytest.mark.parametrize("size", [49, 50, 56, 57, 64, 91])
@pytest.mark.parametrize("rows", [1, 20, 60])
def test_the_position_encoding_in_parts_is_the_whole(size, rows):
    torch.manual_seed(size)
    position, tokens = PositionEncoding(3).double(), torch.randn(size, 3, dtype=torch.float64)
    parts = list(position.in_blocks(tokens, rows))
    assert len(parts) > 1 or size < rows
    torch.testing.assert_close(torch.cat(parts), position(tokens))


def test_bfloat16_features_give_float32_results_close_to_float32s():
    settings = TransMIL(hidden_dim=64, num_heads=2, num_landmarks=16)
    network = build(settings, num_features=32, num_classes=2, seed=0)
    features = torch.rand(300, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        bags = PackedBags.from_list([features.bfloat16().to(dtype)])
        output = network(bags)
        embedding = output.embeddings_BME
        (gradient,) = torch.autograd.grad(output.logits_BC[0, 0], network.projection.linear.weight)
        with torch.no_grad():
            scores = network(bags).scores_TH
        assert embedding.dtype == scores.dtype == torch.float32
        results.append((embedding, scores, gradient))
    for exact, close in zip(*results, strict=True):
        assert (exact - close).norm() < 0.1 * exact.norm()
