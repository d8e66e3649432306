import dataclasses
import math

import pytest
import torch

from mhimdist.config.models import CLAM
from mhimdist.data.bags import PackedBags
from mhimdist.models import build
from mhimdist.models.clam import smooth_top1_svm
from mhimdist.tasks import Truth

pytestmark = pytest.mark.numeric


def _network(num_classes: int = 3, **settings):
    return build(
        CLAM(hidden_dim=6, attention_dim=4, num_clustered=2, **settings),
        num_features=5,
        num_classes=num_classes,
        seed=2,
    ).double()


def _bag(size: int, label: int) -> PackedBags:
    generator = torch.Generator().manual_seed(size)
    return PackedBags.from_list([torch.randn(size, 5, dtype=torch.float64, generator=generator)], [label])


def _count(network) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_count_is_the_papers_without_instance_classifiers():
    network = build(CLAM(name="clam_mb"), num_features=1024, num_classes=2, seed=0)
    assert _count(network) - _count(network.instance_heads) == 788_996
    assert _count(network.instance_heads) == 2 * (512 * 2 + 2)


def test_the_svm_loss_of_two_classes_is_a_softplus_of_the_violated_margin():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.5], [-3.0, 4.0]], dtype=torch.float64)
    targets = torch.tensor([0, 1, 0])
    expected = [math.log1p(math.exp(other - true + 1)) for true, other in ((2, -1), (0.5, 0.5), (-3, 4))]
    torch.testing.assert_close(smooth_top1_svm(logits, targets), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1e-3, 1.0])
def test_the_svm_loss_lies_above_the_hinge_loss_and_tends_to_it(temperature):
    logits = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.arange(50) % 4
    margins = torch.ones(50, 4).scatter(1, targets[:, None], 0)
    hinge = (logits + margins).amax(1) - logits.gather(1, targets[:, None]).squeeze(1)
    gap = smooth_top1_svm(logits, targets, temperature=temperature) - hinge
    assert gap.min() > -1e-12
    assert gap.max() <= temperature * math.log(4)


def test_the_svm_loss_is_finite_for_huge_scores_and_has_the_right_gradient():
    assert smooth_top1_svm(torch.tensor([[1e4, -1e4]]), torch.tensor([1])).item() == 20001
    logits = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth_top1_svm(x, torch.tensor([0, 1, 1, 0, 1])), logits)


def _by_the_formula(network, features, label: int, *, per_class: bool, loss: str, subtyping: bool):
    """The loss of one bag, computed one instance and one class at a time."""
    z = torch.relu(features @ network.projection.linear.weight.T + network.projection.linear.bias)
    branch = torch.tanh(z @ network.attention.branch.weight.T + network.attention.branch.bias)
    gate = torch.sigmoid(z @ network.attention.gate.weight.T + network.attention.gate.bias)
    scores = (branch * gate) @ network.attention.score.weight.T + network.attention.score.bias
    embeddings = [(s.exp() / s.exp().sum()) @ z for s in scores.T]
    logits = torch.stack(
        [
            network.head.weight[c] @ embeddings[c if per_class else 0] + network.head.bias[c]
            for c in range(len(network.head.bias))
        ]
    )
    bag_loss = -torch.log_softmax(logits, 0)[label]

    def instance_loss(c: int, i: int, target: int):
        s = network.instance_heads[c].weight @ z[i] + network.instance_heads[c].bias
        margin = 1.0 if loss == "svm" else 0.0
        return torch.log1p(torch.exp(s[1 - target] - s[target] + margin))

    k = min(2, len(z))
    clustering = []
    for c in range(len(network.head.bias)):
        ranked = scores[:, c if per_class else 0].argsort(descending=True).tolist()
        if c == label:
            terms = [instance_loss(c, i, 1) for i in ranked[:k]] + [
                instance_loss(c, i, 0) for i in ranked[-k:]
            ]
        elif subtyping:
            terms = [instance_loss(c, i, 0) for i in ranked[:k]]
        else:
            continue
        clustering.append(sum(terms) / len(terms))
    return logits, 0.7 * bag_loss + 0.3 * sum(clustering) / len(clustering)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
@pytest.mark.parametrize("loss", ["svm", "cross_entropy"])
@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_loss_and_gradients_are_those_of_the_formula(name, loss, subtyping, size):
    network, bag = _network(name=name, instance_loss=loss, subtyping=subtyping), _bag(size, label=1)
    output = network(bag)
    logits, expected = _by_the_formula(
        network, bag.features_TD, 1, per_class=name == "clam_mb", loss=loss, subtyping=subtyping
    )
    ours = network.loss(output, Truth(bag.labels_B))[0]
    torch.testing.assert_close(output.logits_BC[0], logits)
    torch.testing.assert_close(ours, expected)
    parameters = list(network.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_bags_of_a_batch_have_the_losses_that_they_have_alone(name):
    """Padding follows the bags, and one bag has fewer instances than are clustered."""
    network, bags = _network(name=name, subtyping=True), [_bag(size, size % 3) for size in (9, 1, 3)]
    packed = PackedBags.from_list([bag.features_TD for bag in bags], [int(bag.labels_B) for bag in bags])
    padded = dataclasses.replace(packed, features_TD=torch.cat([packed.features_TD, torch.ones(4, 5)]))
    losses_B = network.loss(network(padded), Truth(padded.labels_B))
    alone = [network.loss(network(bag), Truth(bag.labels_B)) for bag in bags]
    torch.testing.assert_close(losses_B, torch.cat(alone))


def test_attention_features_are_dropped_too():
    network, bag = _network(dropout=0.5), _bag(9, label=0)
    network.projection.dropout = 0.0
    hidden = network.projection(bag, None)
    first, again, other = (network.attention(hidden, bag.offsets_B1, torch.tensor([k])) for k in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, network.attention(hidden, bag.offsets_B1))
