"""TransMIL on a GPU: one bag in room for more, whose size no host reads, against the CPU's path.

Without a GPU, CPU tensors take the GPU's path and the specification stands in for the kernels.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from as_on_a_gpu import AsOnAGpu, Recorder, kernels_as_specified

from mhimdist.config.models import CLAM, DSMIL, AttentionMIL, Pooling, TransMIL
from mhimdist.config.train import load_config
from mhimdist.data.bags import PackedBags
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.models.layers.nystrom import Room
from mhimdist.ops.draws import Draws
from mhimdist.training import graphed_step
from mhimdist.training.graphed_step import CudaGraphs, GraphedStep
from mhimdist.training.step import TrainingStep

pytestmark = pytest.mark.numeric
pytest.importorskip("triton", reason="the kernels' operators need triton, from the extra dev")

FEATURES = 12
SIZES = [1, 5, 6, 48, 49, 50, 255, 256, 257, 300, 900]
SETTINGS = TransMIL(
    hidden_dim=16, num_heads=2, num_landmarks=256, pinv_iterations=2, dropout=0.25, attention_dropout=0.1
)


@pytest.fixture
def as_specified(monkeypatch):
    for operator, kernel in kernels_as_specified().items():
        monkeypatch.setitem(operator._backend_fns, None, kernel)


def _bag(size, dtype=torch.float32, seed=0):
    features = torch.randn(size, FEATURES, generator=torch.Generator().manual_seed(seed))
    return PackedBags.from_list([features.to(dtype)])


def _in_room(bag, capacity, value=torch.nan):
    """The bag with rows of a value after it, and a size that the host does not know."""
    features_TD = bag.features_TD.new_full((capacity, FEATURES), value)
    features_TD[: len(bag.features_TD)] = bag.features_TD
    return replace(bag, features_TD=features_TD, host_sizes=None)


@contextmanager
def _no_size_is_read(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(PackedBags, "sizes", lambda bags: pytest.fail("the host reads the sizes"))
        yield


def _network(settings=SETTINGS, dtype=torch.float32):
    return build(settings, num_features=FEATURES, num_classes=2, seed=0).to(dtype)


def _results(network, bag, keys_B=None):
    """Logits, embeddings and every gradient; and, without gradients, scores and embeddings."""
    output = network(bag, keys_B)
    assert output.scores_TH is None
    loss = (
        output.embeddings_BME * torch.linspace(-1, 1, SETTINGS.hidden_dim).to(output.embeddings_BME)
    ).sum()
    loss = loss + output.logits_BC[0, 0] - 2 * output.logits_BC[0, 1]
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        alone = network(bag, keys_B)
    found = {"logits": output.logits_BC, "embedding": output.embeddings_BME}
    found |= {"embedding without gradients": alone.embeddings_BME, "scores": alone.scores_TH}
    return found | dict(zip((name for name, _ in network.named_parameters()), gradients, strict=True))


def _assert_close(ours, theirs, size, tolerance):
    """The largest error relative to the largest value."""
    for name, expected in theirs.items():
        found = ours[name].detach().cpu()
        if name == "scores":
            assert found.isfinite().all()
            found = found[:size]
        assert found.dtype == expected.dtype, name
        assert found.shape == expected.shape, name
        error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
        assert error < tolerance, (name, float(error))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "score_layer", "keys_B"),
    [(torch.float64, 1e-9, 1, None), (torch.float32, 1e-4, 0, torch.tensor([7]))],
)
def test_rows_after_the_bag_change_nothing(
    as_specified, size, dtype, tolerance, score_layer, keys_B, monkeypatch
):
    """Not even if they are NaN: results and gradients are those of the bag alone."""
    network = _network(SETTINGS.model_copy(update={"score_layer": score_layer}), dtype)
    theirs = _results(network, _bag(size, dtype), keys_B)
    with AsOnAGpu(), _no_size_is_read(monkeypatch):
        ours = _results(network, _in_room(_bag(size, dtype), size + 45), keys_B)
    _assert_close(ours, theirs, size, tolerance)


@pytest.mark.parametrize("capacity", [20, 21, 70])
@pytest.mark.parametrize("keys_B", [None, torch.tensor([7])])
@pytest.mark.parametrize("score_layer", [0, 1])
def test_with_few_landmarks_and_room_of_any_size(as_specified, capacity, keys_B, score_layer):
    settings = SETTINGS.model_copy(update={"score_layer": score_layer, "num_landmarks": 4})
    network = _network(settings, torch.float64)
    for size in (1, 2, 3, 4, 7, 15, 16, 17, 19, 20):
        theirs = _results(network, _bag(size, torch.float64), keys_B)
        with AsOnAGpu():
            ours = _results(network, _in_room(_bag(size, torch.float64), capacity), keys_B)
        _assert_close(ours, theirs, size, 1e-9)


def test_bfloat16_in_room_is_as_close_to_float32_as_without(as_specified):
    """Close in the norm: single values of 16-bit gradients are not."""
    network, bag = _network(), _bag(300, torch.bfloat16)
    exact = _results(network, bag.to("cpu", torch.float32))
    alone = _results(network, bag)
    with AsOnAGpu():
        ours = _results(network, _in_room(bag, 345))
    for name, expected in exact.items():
        found = ours[name][:300] if name == "scores" else ours[name]
        assert found.dtype == expected.dtype, name
        errors = [
            float((values - expected).detach().norm() / expected.detach().norm())
            for values in (found, alone[name])
        ]
        assert errors[0] < 1.5 * errors[1] + 0.01, (name, errors)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 30])
@pytest.mark.parametrize("capacity", [30, 41])
def test_the_room_holds_the_sequence_of_known_length(size, capacity):
    """With 4 landmarks: the zeros that take part, the class token and the instances, in segments of L / 4."""
    room = Room.of(torch.tensor([0, size]), capacity, 4)
    num_tokens, num_zeros = size + 1, -(size + 1) % 4
    rows = (num_tokens + num_zeros) // 4
    assert room.offsets_2.tolist() == [0, num_tokens]
    assert int(room.landmark_rows) == rows
    first = 3 - num_zeros
    expected_PS = torch.zeros(4, 4 + capacity, dtype=torch.bool)
    for landmark in range(4):
        expected_PS[landmark, first + landmark * rows : first + (landmark + 1) * rows] = True
    assert torch.equal(room.is_landmarks_PS, expected_PS)
    assert torch.equal(room.is_outside_S1[:, 0], ~expected_PS.any(0))


def test_a_recorded_pass_serves_bags_of_other_sizes(as_specified):
    """Forward and backward pass, recorded once; old rows of a larger bag stay after a smaller one."""
    network, capacity = _network(), 320
    parameters = list(network.parameters())
    static, keys_B = _in_room(_bag(10), capacity, 0.0), torch.tensor([7])

    def work():
        output = network(static, keys_B)
        loss = output.embeddings_BME.square().sum() + output.logits_BC[0, 0]
        with torch.no_grad():
            scores_TH = network(static).scores_TH
        return output.logits_BC.detach(), scores_TH, *torch.autograd.grad(loss, parameters)

    with AsOnAGpu():
        found, replay = Recorder().record(work)
    for seed, size in enumerate([300, 10, 257, 1, 48, 320]):
        bag = _bag(size, seed=seed)
        static.features_TD[size:] = torch.nan
        static.features_TD[:size] = bag.features_TD
        static.offsets_B1.copy_(bag.offsets_B1)
        keys_B.fill_(seed)
        with AsOnAGpu():
            replay()
        ours = [found[0], found[1][:size], *found[2:]]
        output = network(bag, torch.tensor([seed]))
        loss = output.embeddings_BME.square().sum() + output.logits_BC[0, 0]
        with torch.no_grad():
            scores_TH = network(bag).scores_TH
        theirs = [output.logits_BC, scores_TH, *torch.autograd.grad(loss, parameters)]
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-3, atol=1e-4)


CONFIG = {
    "model": SETTINGS.model_dump(),
    "masking": {"high": {"start": 0.3, "kind": "linear", "end": 0.1}, "low": 0.1, "random": 0.2},
    "teacher": {"kind": "momentum", "momentum": 0.9},
    "loss": {"alpha": 0.5},
}


def _step(kind, config, **more):
    student = build(config.model, num_features=FEATURES, num_classes=2, seed=0)
    step = kind(config, student, Teacher(config.teacher, student, student), **more)
    step._read_later = lambda found_2, place: None
    return step


def test_recorded_steps_train_as_plain_ones(as_specified, monkeypatch):
    """The whole step, teacher and masks included; all bags of an epoch but one share a graph."""
    monkeypatch.setattr(graphed_step, "SMALLEST_STEP", 16)
    config = load_config(CONFIG | {"precision": "float32"})
    with AsOnAGpu():
        plain, graphed = _step(TrainingStep, config), _step(GraphedStep, config, recorder=Recorder)
        for number, size in enumerate([60, 50, 64, 57, 200, 49, 62]):
            bag = replace(_bag(size, seed=number), ids_B=torch.tensor([number]))
            losses = [
                step(bag, Draws(3, 0), progress=number / 8, num_bags=1).total_B.detach().clone()
                for step in (plain, graphed)
            ]
            torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
        for mine, other in zip(plain.student.parameters(), graphed.student.parameters(), strict=True):
            torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-2, atol=1e-4)
    assert {bucket.rows for bucket in graphed._graphs} == {64, 208}


@pytest.mark.parametrize(
    ("settings", "of_one", "of_two"),
    [
        (AttentionMIL(), False, False),
        (DSMIL(), False, False),
        (TransMIL(), False, True),
        (CLAM(name="clam_sb"), False, False),
        (Pooling(name="max_pooling"), False, False),
    ],
)
def test_models_say_whether_they_wait_for_sizes(settings, of_one, of_two):
    network = build(settings, num_features=4, num_classes=2, seed=0)
    assert (network.waits_for_sizes(1), network.waits_for_sizes(2)) == (of_one, of_two)


def test_several_bags_are_each_as_alone(as_specified):
    bags, network = [_bag(size, seed=size) for size in (9, 1, 300)], _network()
    packed = PackedBags.from_list([bag.features_TD for bag in bags])
    with AsOnAGpu():
        together = network(replace(packed, host_sizes=None))
        alone = torch.cat([network(_in_room(bag, 310)).logits_BC for bag in bags])
    torch.testing.assert_close(together.logits_BC, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
def test_the_device_agrees_with_the_cpu(size, monkeypatch):
    network, bag, keys_B = _network(), _bag(size), torch.tensor([7])
    for keys in (None, keys_B):
        theirs = _results(network, bag, keys)
        for capacity in (size, size + 300):
            on_device = _in_room(bag, capacity).to("cuda")
            on_device_keys = keys.cuda() if keys is not None else None
            with _no_size_is_read(monkeypatch):
                ours = _results(network.cuda(), on_device, on_device_keys)
            _assert_close(ours, theirs, size, 1e-3)
            network.cpu()


@pytest.mark.gpu
def test_a_cuda_graph_serves_bags_of_other_sizes():
    """The graph's work on a bag is the work without a graph in the same room."""
    network, capacity = _network().cuda(), 512
    parameters = list(network.parameters())
    static, keys_B = _in_room(_bag(10), capacity, 0.0).to("cuda"), torch.tensor([7]).cuda()

    def work():
        output = network(static, keys_B)
        loss = output.embeddings_BME.square().sum() + output.logits_BC.square().sum()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            scores_TH = network(static).scores_TH
        return output.logits_BC.detach(), scores_TH, *gradients

    found, replay = CudaGraphs().record(work)
    for seed, size in enumerate([300, 10, 257, 1, 512]):
        bag = _bag(size, seed=seed).to("cuda")
        static.features_TD[size:] = torch.nan
        static.features_TD[:size] = bag.features_TD
        static.offsets_B1.copy_(bag.offsets_B1)
        replay()
        ours = [tensor.clone() for tensor in found]
        for mine, other in zip(ours, work(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
