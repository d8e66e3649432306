"""Recorded steps of several workers: two processes over gloo on the CPU, one process over NCCL on a GPU.

On the CPU a stand-in replays the exchange as a CUDA graph does; see `as_on_a_gpu`.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from as_on_a_gpu import AsOnAGpu, Recorder, kernels_as_specified
from test_graphed_step import _bags, _config, _state, _step
from test_workers import _join

from mhimdist.errors import NonFiniteError
from mhimdist.ops.draws import Draws
from mhimdist.training import graphed_step
from mhimdist.training.graphed_step import GraphedStep
from mhimdist.training.step import TrainingStep
from mhimdist.training.workers import DistributedWorkers

pytestmark = pytest.mark.long

pytest.importorskip("triton", reason="the kernels' operators need triton, from the extra dev")

STEPS = [  # the sizes of each worker's bags
    ((), (25,)),  # worker 0 has no bag in the first step, in which both record the update
    ((9, 1), (18,)),
    ((12,), ()),
    ((30, 3), (4, 8)),
    ((11,), (25,)),
    ((), (17, 20)),
    ((9, 1), (18,)),
    ((28, 5), (2, 9)),
]
NOT_FINITE = 5
"""The step in which a feature of worker 1 is NaN; in the first pass over `STEPS` only."""


def _train(step, rank, device):
    """Train on both workers' bags, if there is one worker, or on one's; the losses and masks of each step."""
    found = []
    for number in range(2 * len(STEPS)):
        sizes = STEPS[number % len(STEPS)]
        bags = [
            _bags(part, device, seed=2 * number + worker) if part else None
            for worker, part in enumerate(sizes)
        ]
        if number == NOT_FINITE:
            bags[1].features_TD[4] = torch.nan
        step.set_learning_rate(0.01 / (1 + number))
        same = {"progress": number / (2 * len(STEPS)), "num_bags": sum(map(len, sizes))}
        loss = step(bags[rank], Draws(3, number), **same)
        found.append(None if loss is None else loss.total_B.detach().clone())
    return found


def _work(rank: int, folder: str) -> None:
    """What a worker trains by graphs and without, on the way of a GPU."""
    workers = _join(rank, folder)
    graphed_step.SMALLEST_STEP = 16
    for operator, kernel in kernels_as_specified().items():
        operator._backend_fns[None] = kernel
    found = {}
    with AsOnAGpu():
        config = _config(**{"bags_per_step": 4, "optimizer.clip_norm": 0.5})
        for name, kind, more in (
            ("plain", TrainingStep, {}),
            ("graphed", GraphedStep, {"recorder": Recorder, "most_rows": 40}),
        ):
            step = _step(kind, config, "cpu", workers=workers, **more)
            losses = _train(step, rank, "cpu")
            verdicts = [
                (found_2.tolist(), step._not_finite(found_2[1].item(), place))
                for found_2, place in step.verdicts
            ]
            found[name] = {
                "losses": losses,
                "state": _state(step),
                "is bad": [is_bad for (is_bad, _), _ in verdicts],
                "message": str(verdicts[NOT_FINITE][1]),
            }
        found["graphs"] = len(step._graphs)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of two processes, by rank."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_workers_that_replay_different_graphs_train_as_plain_ones(two):
    for found in two:
        plain, graphed = found["plain"], found["graphed"]
        for ours, theirs in zip(graphed["losses"], plain["losses"], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, equal_nan=True)
        for ours, theirs in zip(graphed["state"], plain["state"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [found["graphs"] for found in two] == [5, 6]


@pytest.mark.parametrize("kind", ["plain", "graphed"])
def test_students_teachers_and_moments_stay_equal_and_skip_a_bad_step_together(two, kind):
    first, second = (found[kind] for found in two)
    assert len(first["state"]) == len(second["state"]) > 20
    assert all(torch.equal(*pair) for pair in zip(first["state"], second["state"], strict=True))
    assert first["is bad"] == second["is bad"] == [float(i == NOT_FINITE) for i in range(2 * len(STEPS))]
    assert all(value.isfinite().all() for value in first["state"])
    assert first["message"].startswith(
        "the loss or a gradient is not finite in epoch 5 at bag(s) of another worker;"
    )
    assert second["message"].startswith("the loss became nan in epoch 5 at bag(s) 11-0, 11-1;")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_graph_records_the_exchange_of_nccl(tmp_path, precision):
    """One worker, whose gradients nevertheless pass through NCCL, while NCCL's watchdog looks on."""
    torch.cuda.set_device(0)
    config = _config(precision=precision)
    store = dist.FileStore(str(tmp_path / "meet"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        steps = [
            _step(TrainingStep, config, "cuda"),
            _step(GraphedStep, config, "cuda", workers=DistributedWorkers(60)),
        ]
        for number in range(24):
            size = (25, 140, 9)[number % 3]
            bags = _bags((size,), "cuda", seed=number).to("cuda", steps[0].dtype)
            for step in steps:
                step(bags, Draws(3, number), progress=number / 24, num_bags=1)
        for step in steps:
            step.check(wait=True)
        plain, graphed = map(_state, steps)
        tolerance = {"rtol": 2e-2, "atol": 2e-3} if precision == "bf16" else {"rtol": 1e-4, "atol": 1e-6}
        for ours, theirs in zip(graphed, plain, strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance)
        assert steps[1]._graphs
        steps[1].release()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_every_worker_raises_where_a_feature_of_one_is_not_finite(tmp_path):
    """On a CPU, where the host reads the verdict at once: no worker is left waiting for another."""
    torch.multiprocessing.spawn(_fail, (str(tmp_path),), nprocs=2)
    messages = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0].startswith(
        "the loss or a gradient is not finite in epoch 1 at bag(s) 0-0 or of another worker;"
    )
    assert messages[1].startswith("the loss became nan in epoch 1 at bag(s) 1-0;")


def _fail(rank: int, folder: str) -> None:
    step = _step(TrainingStep, _config(), "cpu", workers=_join(rank, folder))
    before = _state_of_networks(step)
    bags = _bags((9,), "cpu", seed=rank)
    if rank == 1:
        bags.features_TD[3] = torch.nan
    try:
        step(bags, Draws(0, 1), progress=0.0, num_bags=2)
    except NonFiniteError as error:
        (Path(folder) / f"{rank}.txt").write_text(str(error))
    assert all(torch.equal(*pair) for pair in zip(before, _state_of_networks(step), strict=True))
    dist.destroy_process_group()


def _state_of_networks(step):
    networks = (step.student, step.teacher.network)
    return [p.detach().clone() for network in networks for p in network.parameters()]
