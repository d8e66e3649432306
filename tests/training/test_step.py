import copy
from dataclasses import replace

import pytest
import torch
from memory_bags import gaussian_bags

from mhimdist.config.presets import preset
from mhimdist.config.train import load_config
from mhimdist.data.bags import PackedBags
from mhimdist.errors import NonFiniteError
from mhimdist.method.precision import cast
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training.run_state import Totals
from mhimdist.training.step import TrainingStep

pytestmark = pytest.mark.numeric
SIZES = (300, 40, 1)


def _config(model, **changes):
    return preset("c16", model).override({"device": "cpu", **changes})


def _bags(sizes=SIZES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(size, 24, generator=generator).to(dtype) for size in sizes]
    return PackedBags.from_list(features, [i % 2 for i in range(len(sizes))])


def _step(config, device="cpu"):
    student = build(config.model, num_features=24, num_classes=2, seed=0).to(device)
    return TrainingStep(config, student, Teacher(config.teacher, student, student))


def _weights(network):
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


def _follow_by_hand(config, bags, num_steps):
    """The step in plain code: per-parameter Adam, a loop for the moving average, float32."""
    ours = _step(config)
    student, teacher = ours.student, ours.teacher.network
    optimizer = torch.optim.Adam(
        student.parameters(), lr=config.optimizer.learning_rate, weight_decay=1e-5, foreach=False
    )
    momentum = config.teacher.momentum.start ** len(bags)
    for epoch in range(num_steps):
        loss = ours.method.loss(bags, Draws(0, epoch), 0.0).total_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for own, of_student in zip(teacher.parameters(), student.parameters(), strict=True):
                own.mul_(momentum).add_((1 - momentum) * of_student)
    return _weights(student), _weights(teacher)


@pytest.mark.parametrize("model", ["abmil", "dsmil"])
def test_flat_optimiser_and_average_are_those_of_single_parameters(model):
    config = _config(model, **{"teacher.momentum.start": 0.9})
    step, bags = _step(config), _bags()
    for epoch in range(4):
        step(bags, Draws(0, epoch), progress=0.0, num_bags=3)
    student, teacher = _follow_by_hand(config, bags, 4)
    torch.testing.assert_close(_weights(step.student), student, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_weights(step.teacher.network), teacher, rtol=1e-5, atol=1e-6)
    assert step.momentum == pytest.approx(0.9**3)


@pytest.mark.long
@pytest.mark.parametrize("model", ["abmil", "dsmil", "transmil"])
def test_bf16_follows_float32(model):
    """Gradients against the true ones in float64; masters, gradients and moments stay float32."""
    # 16 bits may rank scores differently, so masks by score could differ; random masks are the same.
    masked = {"masking": {"random": {"start": 0.5}}}
    exact, narrow = (_step(_config(model, precision=name, **masked)) for name in ("float32", "bf16"))
    assert narrow.dtype == torch.bfloat16
    exact.student.double(), exact.teacher.network.double()
    exact_loss = exact.method.loss(_bags(dtype=torch.float64), Draws(0, 0), 1.0)
    narrow_loss = narrow.method.loss(_bags(dtype=torch.bfloat16), Draws(0, 0), 1.0)
    assert narrow_loss.total_B.dtype == torch.float32
    torch.testing.assert_close(narrow_loss.total_B.double(), exact_loss.total_B, rtol=0.05, atol=0.05)
    exact_loss.total_B.sum().backward()
    narrow_loss.total_B.sum().backward()
    of_exact, of_narrow = (
        torch.cat([p.grad.double().flatten() for p in step.student.parameters()]) for step in (exact, narrow)
    )
    assert {p.grad.dtype for p in narrow.student.parameters()} == {torch.float32}
    assert torch.cosine_similarity(of_exact, of_narrow, dim=0) > 0.98


def test_a_cast_gives_every_parameter_and_its_gradient():
    network = _step(_config("dsmil")).student
    copies = cast(network, torch.bfloat16)
    for name, parameter in network.named_parameters():
        assert torch.equal(copies[name], parameter.bfloat16())
    sum((copy * (i + 1)).sum() for i, copy in enumerate(copies.values())).backward()
    for i, parameter in enumerate(network.parameters()):
        assert torch.equal(parameter.grad, torch.full_like(parameter, i + 1))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_loss_that_is_not_finite_changes_nothing_and_names_the_bag(precision):
    step = _step(_config("abmil", precision=precision))
    step(_bags(dtype=step.dtype), Draws(0, 0), progress=0.0, num_bags=3)
    before = [_weights(step.student), _weights(step.teacher.network)]
    moments = copy.deepcopy(step.optimizer.state)
    bags = _bags(dtype=step.dtype)
    bags.features_TD[5] = torch.nan
    with pytest.raises(NonFiniteError, match=r"the loss became nan in epoch 3 at bag\(s\) 0, 1, 2;"):
        step(bags, Draws(0, 3), progress=0.0, num_bags=3)
    assert torch.equal(before[0], _weights(step.student))
    assert torch.equal(before[1], _weights(step.teacher.network))
    for place, state in step.optimizer.state.items():
        assert all(torch.equal(value, moments[place][name]) for name, value in state.items())


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing_and_names_the_bag(clip_norm):
    step, bags = _step(_config("abmil", **{"optimizer.clip_norm": clip_norm})), _bags()
    step(bags, Draws(0, 0), progress=0.0, num_bags=3)
    before = [_weights(step.student), _weights(step.teacher.network)]
    moments = copy.deepcopy(step.optimizer.state)
    step.student.head.weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    with pytest.raises(NonFiniteError, match=r"a gradient is not finite in epoch 3 at bag\(s\) 0, 1, 2;"):
        step(bags, Draws(0, 3), progress=0.0, num_bags=3)
    assert torch.equal(before[0], _weights(step.student))
    assert torch.equal(before[1], _weights(step.teacher.network))
    for place, state in step.optimizer.state.items():
        assert all(torch.equal(value, moments[place][name]) for name, value in state.items())


def test_a_verdict_on_the_device_keeps_student_and_teacher_as_they_are():
    """The way of a GPU, where the host learns too late: `found_inf` stops Adam, a share of 0 the average."""
    step, bags = _step(_config("abmil")), _bags()
    step(bags, Draws(0, 0), progress=0.0, num_bags=3)
    before = [_weights(step.student), _weights(step.teacher.network)]
    for is_bad in (1.0, 0.0):
        step.student.zero_grad()
        step.method.loss(bags, Draws(0, 1), 0.0).total_B.sum().backward()
        step.optimizer.found_inf = torch.tensor(is_bad)
        step.optimizer.step()
        step.teacher.follow(step.student, (1 - torch.tensor(is_bad)) * 1e-4)
        assert torch.equal(before[0], _weights(step.student)) == bool(is_bad)
        assert torch.equal(before[1], _weights(step.teacher.network)) == bool(is_bad)


def _norm(parameters):
    return torch.cat([p.grad.flatten() for p in parameters]).norm().item()


@pytest.mark.parametrize("model", ["abmil", "dtfd"])
def test_gradients_are_clipped_after_the_backward_pass_and_in_dtfd_each_tier_by_itself(model):
    config = _config(model).first_stage()
    steps = [
        _step(config.override({"teacher.kind": "none", "optimizer.clip_norm": clip})) for clip in (None, 0.05)
    ]
    for step in steps:
        step(_bags(), Draws(0, 0), progress=0.0, num_bags=3)
    free, clipped = (step.student for step in steps)
    tiers = {"abmil": [lambda n: n.parameters()]}.get(
        model,
        [
            lambda n: [
                *n.projection.parameters(),
                *n.pseudo_attention.parameters(),
                *n.pseudo_head.parameters(),
            ],
            lambda n: [*n.attention.parameters(), *n.head.parameters()],
        ],
    )
    assert sum(len(list(tier(free))) for tier in tiers) == len(list(free.parameters()))
    for tier in tiers:
        norm = _norm(tier(free))
        assert norm > 0.05
        for mine, theirs in zip(tier(clipped), tier(free), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad * 0.05 / norm, rtol=1e-4, atol=1e-8)


@pytest.fixture
def fused_on_meta(monkeypatch):
    from torch.optim import optimizer

    devices = optimizer._get_fused_kernels_supported_devices()
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*devices, "meta"])


@pytest.mark.parametrize("model", ["abmil", "dsmil"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("sizes", [(300,), SIZES])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_nothing_of_the_step_waits_for_the_device(
    monkeypatch, fused_on_meta, model, precision, sizes, clip_norm
):
    """Run the whole step on tensors without data: reading a value, or a shape that depends on one, raises.

    The meta device takes the code path of CUDA: kernels run as their fakes, verdicts are read later.
    """
    config = _config(model, precision=precision, **{"optimizer.clip_norm": clip_norm})
    step = _step(config, "meta")
    verdicts = []
    monkeypatch.setattr(step, "_read_later", lambda found_2, where: verdicts.append((found_2, where)))
    bags = _bags(sizes, step.dtype).to("meta")
    totals = Totals()
    for epoch in range(2):
        totals.add(step(bags, Draws(0, epoch), progress=0.5, num_bags=len(bags)))
    assert [found_2.device.type for found_2, _ in verdicts] == ["meta"] * 2
    assert all(p.grad.device.type == "meta" for p in step.student.parameters())


@pytest.mark.gpu
def test_cuda_names_the_bag_of_a_loss_that_was_not_finite():
    step = _step(preset("c16", "abmil").override({"device": "cuda"}), "cuda")
    before = _weights(step.student)
    bags = _bags(dtype=step.dtype)
    bags.features_TD[5] = torch.nan
    step(bags.to("cuda"), Draws(0, 3), progress=0.0, num_bags=3)
    with pytest.raises(NonFiniteError, match=r"the loss became nan in epoch 3 at bag\(s\) 0, 1, 2;"):
        step.check(wait=True)
    assert torch.equal(before, _weights(step.student))


def test_training_in_bf16_learns():
    from mhimdist.training.trainer import Trainer

    bags = gaussian_bags()
    config = load_config(
        {
            "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
            "masking": {"high": 0.1, "random": 0.3},
            "teacher": {"kind": "momentum"},
            "optimizer": {"learning_rate": 5e-3},
            "epochs": 8,
            "device": "cpu",
            "precision": "bf16",
        }
    )
    trainer = Trainer(config, bags, bags.holdout())
    records = list(trainer.epochs())
    assert records[-1].loss < records[0].loss
    assert trainer.best.student_validation_score > 0.9


@pytest.mark.faults(43)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("model", ["abmil", "dsmil"])
def test_a_feature_behind_the_mask_that_is_not_finite_changes_nothing_and_names_the_bag(
    model, precision, value
):
    """With alpha 0 nothing else sees it: neither the loss nor a gradient."""
    config = _config(
        model,
        **{
            "precision": precision,
            "loss.alpha": 0.0,
            "masking.high": 0.0,
            "masking.high_pool_share": 1.0,
            "masking.low": 0.0,
            "masking.random": 0.9,
        },
    )
    bags = _bags((300,), dtype=(step := _step(config)).dtype)
    draws = next(
        draws
        for draws in (Draws(0, epoch) for epoch in range(100))
        if _is_hidden(step, bags, draws, value, row=7)
    )
    before = [_weights(step.student), _weights(step.teacher.network)]
    bags.features_TD[7, 3] = value
    with pytest.raises(NonFiniteError, match=r"the loss became nan in epoch \d+ at bag\(s\) 0;"):
        step(bags, draws, progress=0.0, num_bags=1)
    assert torch.equal(before[0], _weights(step.student))
    assert torch.equal(before[1], _weights(step.teacher.network))


def _is_hidden(step, bags, draws, value, row) -> bool:
    """Whether the loss of the method is finite although a feature is not."""
    bad = bags.features_TD.clone()
    bad[row, 3] = value
    return bool(step.method.loss(replace(bags, features_TD=bad), draws, 0.0).total_B.isfinite().all())


def test_a_bags_features_are_looked_at_once():
    step, bags = _step(_config("abmil")), _bags()
    sums = []
    real = torch.Tensor.sum
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            torch.Tensor, "sum", lambda self, *a, **n: sums.append(self.shape) or real(self, *a, **n)
        )
        for epoch in range(3):
            step(bags, Draws(0, epoch), progress=0.0, num_bags=3)
    assert sums.count(bags.features_TD.shape) == 1
