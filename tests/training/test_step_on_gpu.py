"""A step of every model on the way of CUDA: nothing waits, and its numbers are those of a CPU.

Without a GPU, tensors without data and CPU tensors that claim to be on one take the same way.
"""

import os
from contextlib import contextmanager, nullcontext

import pytest
import torch
from as_on_a_gpu import AsOnAGpu, OneDevice, Recording, kernels_as_specified
from host_waits import host_waits

from mhimdist.config.presets import preset
from mhimdist.data.bags import PackedBags
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training.run_state import Totals
from mhimdist.training.step import TrainingStep

pytestmark = pytest.mark.numeric
pytest.importorskip("triton", reason="the kernels' operators need triton, from the extra dev")

FEATURES = 24
ATTENTION = {"model.hidden_dim": 32, "model.attention_dim": 16}
# Changes of the preset of the model with which the name starts, and reads of sizes per step of several bags.
MODELS = {
    "abmil": (ATTENTION, 0),
    "abmil gated": ({**ATTENTION, "model.gated": True, "model.activation": "tanh"}, 0),
    "dsmil": ({"model.hidden_dim": 32, "model.query_dim": 16}, 0),
    "transmil": ({"model.hidden_dim": 32, "model.num_heads": 4, "model.num_landmarks": 8}, 1),
    "clam_sb": (ATTENTION, 0),
    "clam_mb": ({**ATTENTION, "model.subtyping": True, "model.instance_loss": "cross_entropy"}, 0),
    "dtfd": ({**ATTENTION, "model.distillation": "AFS", "model.dropout": 0.25}, 0),
    "dtfd MaxMinS": ({**ATTENTION, "model.distillation": "MaxMinS"}, 0),
    "max_pooling": ({"model.hidden_dim": 32}, 0),
    "mean_pooling": ({"model.hidden_dim": 32}, 0),
}


def _num_reads(name, sizes):
    """How often a step reads sizes on the host; of a single bag, the device finds the end."""
    return MODELS[name][1] if len(sizes) > 1 else 0


PRECISIONS = ["float32", "bf16"]
SIZES = {"one bag": (300,), "several bags": (300, 40, 1, 3), "one instance": (1,)}


def _config(name, **changes):
    """Every mask and dropout that the model has, in student and teacher."""
    config = preset("c16", name.split()[0]).override(MODELS[name][0])
    config = config.override({"optimizer.clip_norm": 5.0, "masking": {"random": 0.3}, "device": "cpu"})
    if config.teacher.kind != "none":
        by_score = {"high": 0.2, "high_pool_share": 0.5, "low": 0.1, "random": 0.3}
        teacher = {"kind": "momentum", "momentum": {"start": 0.9}, "dropout": True}
        config = config.override({"masking": by_score, "teacher": teacher})
    return config.override(changes)


def _networks(config, device):
    student = build(config.model, num_features=FEATURES, num_classes=2, seed=0).to(device)
    return student, Teacher(config.teacher, student, student) if config.teacher.kind != "none" else None


def _bags(sizes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(size, FEATURES, generator=generator).to(dtype) for size in sizes]
    return PackedBags.from_list(features, [i % 2 for i in range(len(sizes))])


@pytest.fixture
def reads(monkeypatch):
    """The bags whose sizes were read from the device; numbers take the place of what a GPU would say."""
    reads = []

    def sizes(bags):
        if bags.host_sizes is None:
            reads.append(bags)
        return bags.host_sizes or (bags.num_rows // len(bags),) * len(bags)

    monkeypatch.setattr(PackedBags, "sizes", sizes)
    return reads


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_no_step_reads_from_the_device_but_the_sizes_it_states(monkeypatch, reads, name, sizes, precision):
    """Whole steps on tensors without data: to read a value, or a shape that depends on one, raises.

    The meta device takes the way of CUDA: kernels run as their fakes, verdicts are read later. Where torch
    has no CUDA, its fake CUDA tensors have neither gradients nor slices.
    """
    from torch.optim import optimizer

    devices = [*optimizer._get_fused_kernels_supported_devices(), "meta"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: devices)
    config = _config(name, precision=precision)
    step, verdicts, totals = TrainingStep(config, *_networks(config, "meta")), [], Totals()
    monkeypatch.setattr(step, "_read_later", lambda found_2, place: verdicts.append(found_2))
    bags = _bags(sizes, step.dtype).to("meta")
    with OneDevice("meta"):
        for epoch in range(2):
            totals.add(step(bags, Draws(0, epoch), progress=0.5, num_bags=len(bags)))
    assert [found_2.device.type for found_2 in verdicts] == ["meta"] * 2
    assert len(reads) == 2 * _num_reads(name, sizes)
    assert all(p.grad.device.type == "meta" for p in step.student.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "read", [torch.Tensor.item, torch.Tensor.tolist, torch.nonzero, bool, torch.Tensor.cpu]
)
def test_reading_from_the_meta_device_raises(read):
    """The assumption of the test above."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones(3, device="meta").sum())


def test_tensors_of_two_devices_cannot_be_mixed_without_notice():
    """The other one. A number may come from the CPU, as for CUDA, and a copy has two devices by nature."""
    on_device = torch.ones(3, device="meta", requires_grad=True)
    numbers = torch.ones(3), torch.tensor(0.0)
    with OneDevice("meta"):
        (on_device * torch.tensor(2.0) + torch.ones(3).to("meta")).sum().backward()
        for number in numbers:
            with pytest.raises(AssertionError, match="aten::where has arguments on a CPU"):
                torch.where(on_device > 0, on_device, number)
        with pytest.raises(AssertionError, match="aten::index has arguments on a CPU"):
            on_device[torch.tensor([0, 1])]


@contextmanager
def _as_on_a_gpu(monkeypatch):
    if os.environ.get("TRITON_INTERPRET") != "1":
        for operator, kernel in kernels_as_specified().items():
            monkeypatch.setitem(operator._backend_fns, None, kernel)
    with AsOnAGpu():
        yield


def _train(config, device, sizes, num_steps=2):
    """The losses of some steps, all gradients of the last one, and the weights of student and teacher."""
    step, losses = TrainingStep(config, *_networks(config, device)), []
    step.set_learning_rate(0.01)
    step.optimizer.epsilon = 1e-3  # otherwise rounding decides where a gradient is 0
    if device == "cpu":
        step._read_later = lambda found_2, place: None
    for number in range(num_steps):
        bags = _bags(sizes, step.dtype, seed=number).to(device)
        found = step(bags, Draws(0, number), progress=0.5, num_bags=len(bags))
        losses += [found.total_B.detach(), found.sums_7.float()]
    step.check(wait=True)
    networks = (step.student, step.teacher.network) if step.teacher else (step.student,)
    weights = [p.detach() for network in networks for p in network.parameters()]
    gradients = [p.grad for p in step.student.parameters() if p.grad is not None]
    return [each.cpu() for each in (*losses, *gradients, *weights)]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_the_way_of_cuda_trains_as_that_of_a_cpu(monkeypatch, name, sizes):
    """Losses, masks, gradients and weights, with padding behind the kept rows and nothing read there."""
    config = _config(name, precision="float32")
    on_cpu = _train(config, "cpu", sizes)
    with _as_on_a_gpu(monkeypatch), Recording() if not _num_reads(name, sizes) else nullcontext():
        as_on_a_gpu = _train(config, "cpu", sizes)
    for ours, theirs in zip(as_on_a_gpu, on_cpu, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_trains_as_a_cpu(name, sizes, precision):
    """Losses, gradients and weights. In bf16 scores round and tie otherwise, so masks are random."""
    changes = {"masking": {"random": 0.3}} if precision == "bf16" else {}
    config = _config(name, precision=precision, **changes)
    # 16-bit products keep 8 bits, and a gradient is the sum of many of them.
    close = {"rtol": 1e-3, "atol": 2e-5} if precision == "float32" else {"rtol": 0.05, "atol": 0.02}
    for ours, theirs in zip(_train(config, "cuda", sizes), _train(config, "cpu", sizes), strict=True):
        torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_cuda_finds_no_wait_in_a_step_but_those_it_states(name, sizes, precision):
    config = _config(name, precision=precision, device="cuda")
    step = TrainingStep(config, *_networks(config, "cuda"))
    bags = _bags(sizes, step.dtype).to("cuda")
    step(bags, Draws(0, 0), progress=0.0, num_bags=len(bags))  # compiles the kernels
    before = [p.detach().clone() for p in step.student.parameters()]
    with host_waits() as waits:
        for epoch in range(1, 4):
            step(bags, Draws(0, epoch), progress=0.0, num_bags=len(bags))
    assert waits.total() == 3 * _num_reads(name, sizes), waits
    step.check(wait=True)
    assert any(not torch.equal(*pair) for pair in zip(before, step.student.parameters(), strict=True))
