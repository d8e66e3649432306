"""Training while a thread reads ahead, with recorded steps: on a GPU, or with stand-ins on a CPU."""

import os

import pytest
import torch
from as_on_a_gpu import AsOnAGpu, Recorder, kernels_as_specified
from feature_folders import NUM_FEATURES, normal_shards

from mhimdist.config.train import Loading, load_config
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.resident import DeviceBags
from mhimdist.data.shards import BagShards
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training import graphed_step
from mhimdist.training.graphed_step import CudaGraphs, GraphedStep

pytest.importorskip("triton", reason="the kernels' operators need triton, from the extra dev")

STEPS = [[1], [3], [1, 3], [0, 1], [2, 1, 0], [3, 1]]
EPOCHS = 3


@pytest.fixture
def bags(tmp_path):
    return BagShards(normal_shards(tmp_path, "float16"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch, bags):  # the bags are written before tensors claim to be on a GPU
    monkeypatch.setattr(graphed_step, "SMALLEST_STEP", 16)
    if request.param == "cuda":
        yield "cuda"
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        for operator, kernel in kernels_as_specified().items():
            monkeypatch.setitem(operator._backend_fns, None, kernel)
    with AsOnAGpu():
        yield "cpu"


def _trained(device, precision, bags, loading):
    """The weights of student and teacher after some epochs, and the losses of all bags."""
    config = load_config(
        {
            "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
            "masking": {"high": 0.2, "random": 0.3},
            "teacher": {"kind": "momentum", "momentum": {"start": 0.8}},
            "loss": {"alpha": 0.5},
            "precision": precision,
        }
    )
    student = build(config.model, num_features=NUM_FEATURES, num_classes=2, seed=0).to(device)
    teacher = Teacher(config.teacher, student, student)
    recorder = CudaGraphs if device == "cuda" else Recorder
    step = GraphedStep(config, student, teacher, recorder=recorder)
    if device == "cpu":
        step._read_later = lambda found_2, place: None
    step.set_learning_rate(0.01)
    before = [p.detach().clone() for p in student.parameters()]
    losses = []
    for epoch in range(EPOCHS):
        with read_ahead(bags, STEPS, dtype=step.dtype, device=device, loading=loading) as batches:
            for number, batch in enumerate(batches):
                done = step(
                    batch, Draws(3, epoch), progress=(epoch + number / 8) / EPOCHS, num_bags=len(batch)
                )
                losses.append(done.total_B.detach().clone())
    assert not any(torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True))
    networks = student, teacher.network
    return [p.detach().cpu().clone() for network in networks for p in network.parameters()] + losses


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_recorded_steps_train_the_same_weights_while_a_thread_reads_ahead(device, precision, bags):
    """Every reader brings the same bits, and neither the thread nor its copies get into a graph."""
    waiting = _trained(device, precision, bags, Loading(read_ahead=False))
    sources = [(bags, Loading())] * 2 + [(DeviceBags(bags, device), Loading(cache="device"))]
    for source, loading in sources:
        trained = _trained(device, precision, source, loading)
        assert len(trained) == len(waiting)
        assert all(torch.equal(*pair) for pair in zip(trained, waiting, strict=True))
