"""Recorded steps against plain ones; run by `test_kernels.py` in a process of its own, as
`kernels_against_reference.py` is.

Under TRITON_INTERPRET=1 the steps take the way of CUDA on the CPU, recorded by what does there what a CUDA
graph does; without it, on the CUDA device, by CUDA graphs.
"""

import os
from contextlib import nullcontext

import pytest
import torch
from as_on_a_gpu import AsOnAGpu, Recorder

from mhimdist.config import load_config
from mhimdist.data.bags import PackedBags
from mhimdist.draws import Draws
from mhimdist.graphs import Bucket, CudaGraphs, GraphedStep, rounded
from mhimdist.models import build
from mhimdist.step import TrainingStep
from mhimdist.teacher import Teacher

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RECORDER = Recorder if INTERPRETED else CudaGraphs
FEATURES = 12
MODELS = {
    "abmil": {"hidden_dim": 16, "attention_dim": 8},
    "dsmil": {"hidden_dim": 16, "query_dim": 8},
}
# The first two steps share a bucket, and so do the last two.
SIZES = [(100,), (37,), (40, 50, 20), (90, 3, 35)]


def _config(model="abmil", **changes):
    """Everything that can change from step to step does."""
    tree = {
        "model": {"name": model, **MODELS[model]},
        "masking": {
            "high": {"start": 0.3, "kind": "linear", "end": 0.1},
            "high_pool_share": 0.5,
            "low": 0.1,
            "random": {"start": 0.4, "kind": "cosine", "end": 0.3},
        },
        "teacher": {
            "kind": "momentum",
            "momentum": {"start": 0.7, "kind": "cosine", "end": 0.9},
            "dropout": True,
        },
        "loss": {"alpha": 0.5, "class_weights": [1.0, 2.0]},
        "precision": "float32",
    }
    return load_config(tree).override(changes)


def _bags(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bags = [torch.randn(size, FEATURES, generator=generator) for size in sizes]
    labels = torch.randint(2, (len(sizes),), generator=generator).tolist()
    return PackedBags.from_list(bags, labels, [f"{seed}-{i}" for i in range(len(sizes))]).to(DEVICE)


def _step(kind, config, **more):
    student = build(config.model, num_features=FEATURES, num_classes=2, seed=0).to(DEVICE)
    teacher = Teacher(config.teacher, student, student) if config.teacher.kind != "none" else None
    step = kind(config, student, teacher, **more)
    step.verdicts = []
    if INTERPRETED:
        step._read_later = lambda found_2, place: step.verdicts.append((found_2.clone(), place))
    return step


def _graphed(config, **more):
    """A step that is recorded, and the recorders that it has made."""
    recorders = []

    def recorder():
        recorders.append(RECORDER())
        return recorders[-1]

    return _step(GraphedStep, config, recorder=recorder, **more), recorders


def _train(step, bags, number, total):
    epoch = number // len(SIZES)
    step.set_learning_rate(0.01 / (1 + epoch))
    return step(bags, Draws(3, epoch), progress=number / total, num_bags=len(bags))


def _state(step):
    """All that training changes: weights of both networks, Adam's moments and counts."""
    moments = [
        value for p in step.student.parameters() for _, value in sorted(step.optimizer.state[p].items())
    ]
    teacher = step.teacher.network.parameters() if step.teacher else ()
    return [value.detach().clone() for value in (*step.student.parameters(), *teacher, *moments)]


def _assert_close(ours, theirs):
    for mine, other in zip(_state(ours), _state(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.fixture(autouse=True)
def on_the_way_of_cuda():
    with AsOnAGpu() if INTERPRETED else nullcontext():
        yield


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("abmil", {}),
        ("abmil", {"optimizer.clip_norm": 0.1, "teacher.kind": "student_copy"}),
        ("abmil", {"teacher.kind": "none", "loss.alpha": 0, "masking": {"random": 0.2}}),
        ("dsmil", {}),
    ],
)
def test_recorded_steps_train_as_plain_ones(model, changes):
    """Losses, masks, weights, moments and teacher, over epochs, while all schedules move."""
    config = _config(model, **changes)
    plain, (graphed, _) = _step(TrainingStep, config), _graphed(config)
    total = 3 * len(SIZES)
    for number in range(total):
        bags = _bags(SIZES[number % len(SIZES)], seed=number)
        theirs, ours = (_train(step, bags, number, total) for step in (plain, graphed))
        assert ours.num_instances == theirs.num_instances
        for name in ("num_kept", "masked_high", "masked_low", "masked_random"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        for name in ("total_B", "classification_B", "consistency_B"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name).detach())
        assert graphed.momentum == plain.momentum
    _assert_close(graphed, plain)
    assert graphed._graphs
    assert len(graphed._graphs) <= 4


def test_a_graph_serves_all_steps_of_its_bucket_and_the_unused_one_goes_first():
    config = _config(masking={"random": 0.25})
    plain, (graphed, recorders) = _step(TrainingStep, config), _graphed(config, most_graphs=2)
    sizes = [(300,), (100,), (120,), (60, 60), (90, 3), (100,), (301,), (20, 100), (90,)]
    buckets = [Bucket(len(s), rounded(sum(s)), 384 if sum(s) > 128 else 128) for s in sizes]
    recorded = []
    for number, bag_sizes in enumerate(sizes):
        bags, before = _bags(bag_sizes, seed=number), len(graphed._graphs)
        for step in (plain, graphed):
            _train(step, bags, number, 10)
        recorded.append(graphed._graphs)
        assert next(reversed(graphed._graphs)) == buckets[number]
        assert before <= len(graphed._graphs) <= 2
    _assert_close(graphed, plain)
    assert len(recorders) == 2
