from dataclasses import replace

import pytest

from mhimdist.cluster.nodes import Node, Share
from mhimdist.config.train import TrainConfig
from mhimdist.errors import SweepError
from mhimdist.search.options import Sweep
from mhimdist.sweep.plan import (
    Calibration,
    largest_share,
    likely_steps,
    num_waves_beside_trials,
    plan,
    runs_per_gpu,
)

GIB = 2**30
CPU = Calibration(epoch_s=2.0, memory_bytes=GIB, gpu_bytes=0, gpu_total_bytes=0, device="cpu")
GPU = Calibration(epoch_s=2.0, memory_bytes=GIB, gpu_bytes=8 * GIB, gpu_total_bytes=80 * GIB, device="cuda")
TRAIN = TrainConfig(epochs=45)


def _sweep(**options):
    return Sweep(**({"train": TRAIN, "scheduler": "none"} | options))


def test_the_scarcest_resource_limits_the_number_at_once():
    nodes = [Node(cpus=4, gpus=0, memory_bytes=3 * GIB), Node(cpus=8, gpus=0, memory_bytes=100 * GIB)]
    found = plan(_sweep(), CPU, nodes, 100)
    assert found.at_once == 2 + 8  # by the first node's memory, and the second one's cores
    assert found.share == Share(1, 0, int(1.25 * GIB))
    assert found.likely_s == found.longest_s == 100 * 45 * 2 / 10
    assert plan(_sweep(cpus_per_run=2), CPU, nodes, 100).at_once == 2 + 4
    assert plan(_sweep(at_once=3), CPU, nodes, 100).limited_by == "at_once"
    assert plan(_sweep(), CPU, nodes, 5).limited_by == "the number of trials"


def test_a_gpu_is_shared_by_as_many_as_its_memory_holds():
    node = Node(cpus=16, gpus=1, memory_bytes=100 * GIB)
    found = plan(_sweep(), GPU, [node], 100)
    assert found.at_once == 7  # of 10 GiB each in 72
    assert found.share.gpus == pytest.approx(1 / 7)
    assert found.limited_by == "GPUs"
    assert plan(_sweep(gpus_per_run=0.5), GPU, [node], 100).at_once == 2
    assert (
        "7 trials at once (limited by GPUs); each 1 CPU, 0.143 GPU (10.0 GiB of its memory) and 1,280 MiB"
    ) in found.text(_sweep())


@pytest.mark.parametrize(
    ("slowdown", "num_sharing_s"),  # seconds of an epoch on a GPU of seven; alone it takes 2
    [(2.0, 14.0), (1.0, 2.0), (1.25, 5.0)],
    ids=["they take turns", "they do not notice each other", "in between"],
)
def test_the_time_counts_what_runs_on_one_gpu_cost_each_other(slowdown, num_sharing_s):
    node = Node(cpus=16, gpus=1, memory_bytes=100 * GIB)
    found = plan(_sweep(), replace(GPU, slowdown=slowdown), [node], 100)
    assert (found.at_once, found.runs_per_gpu) == (7, 7)
    assert found.longest_s == pytest.approx(100 * 45 * num_sharing_s / 7)
    num_waves = num_waves_beside_trials(_sweep(), 7)
    assert found.others_s == pytest.approx(45 * num_sharing_s * num_waves)
    is_said = "; 7 on a GPU, where an epoch takes" in found.text(_sweep())
    assert is_said == (slowdown > 1)
    # Turns gain nothing: the sweep takes as long as on whole GPUs, one trial after the other.
    whole = plan(_sweep(gpus_per_run=1), replace(GPU, slowdown=slowdown), [node], 100)
    assert whole.runs_per_gpu == 1
    assert whole.longest_s == 100 * 45 * 2
    if slowdown == 2.0:
        assert found.longest_s == pytest.approx(whole.longest_s)


def test_a_gpu_is_shared_by_no_more_runs_than_there_are():
    share = Share(2, 0.125, 0)
    node, small = Node(cpus=99, gpus=2, memory_bytes=GIB), Node(cpus=6, gpus=2, memory_bytes=GIB)
    assert runs_per_gpu(share, [node, small], 100) == 8
    assert runs_per_gpu(share, [node, small], 5) == 5
    assert runs_per_gpu(share, [small], 100) == 3  # limited by cores
    assert runs_per_gpu(Share(2, 1, 0), [node], 100) == runs_per_gpu(Share(2, 0, 0), [node], 100) == 1


def test_a_requested_share_that_the_measured_run_would_outgrow_is_refused():
    node = Node(cpus=16, gpus=1, memory_bytes=100 * GIB)
    with pytest.raises(SweepError, match=r"at least 0\.111, as a run takes 8\.0 GiB of .* got 0\.1: ask for"):
        plan(_sweep(gpus_per_run=0.1), GPU, [node], 1)
    assert plan(_sweep(gpus_per_run=0.112), GPU, [node], 100).at_once == 8


def test_a_share_of_a_gpu_that_was_asked_for_holds_where_the_calibration_saw_none():
    node = Node(cpus=16, gpus=1, memory_bytes=100 * GIB)
    assert plan(_sweep(gpus_per_run=0.5), CPU, [node], 100).at_once == 2
    assert plan(_sweep(), CPU, [node], 100).share.gpus == 0


def test_nodes_that_the_autoscaler_may_add_count_and_the_plan_says_so():
    head = Node(cpus=0, gpus=0, memory_bytes=30 * GIB)
    there = Node(cpus=16, gpus=1, memory_bytes=40 * GIB)
    coming = Node(cpus=16, gpus=1, memory_bytes=40 * GIB, is_up=False)
    found = plan(_sweep(gpus_per_run=0.25), GPU, [head, there, *[coming] * 7], 100)
    assert (found.at_once, found.at_first, found.num_addable_nodes) == (32, 4, 7)
    assert "4 on the nodes that are up and the others on up to 7 nodes that the autoscaler" in found.text(
        _sweep()
    )
    assert plan(_sweep(gpus_per_run=0.25), GPU, [head, coming], 100).at_first == 0
    assert "autoscaler" not in plan(_sweep(gpus_per_run=0.25), GPU, [there], 100).text(_sweep())


def test_the_largest_share_leaves_no_room_for_another_trial():
    share = Share(1, 0.25, GIB)
    nodes = [Node(0, 0, 99 * GIB), Node(16, 4, 40 * GIB), Node(16, 1, 30 * GIB)]
    # The head, without a core, does not count.
    assert largest_share(_sweep(), share, nodes) == Share(1, 1, 40 * GIB)
    assert largest_share(_sweep(folds=2, parallel_folds=2), share, nodes) == Share(1, 1, 30 * GIB)
    assert largest_share(_sweep(folds=3, parallel_folds=3), share, nodes) == Share(1, 1, 20 * GIB)
    assert largest_share(_sweep(folds=3, parallel_folds=3), share, [Node(4, 1, 30 * GIB)]) == Share(
        1, pytest.approx(1 / 3), 10 * GIB
    )


def test_first_stages_and_final_runs_take_their_time():
    train = TRAIN.override({"teacher.kind": "init"})
    sweep = _sweep(train=train, folds=3, final_seeds=2, final_top=2)
    assert num_waves_beside_trials(sweep, 100) == 3  # first stages; those of the final seeds; final runs
    assert num_waves_beside_trials(sweep, 4) == 1 + 2 + 3
    assert plan(sweep, CPU, [Node(4, 0, 99 * GIB)], 10).others_s == 45 * 2 * 6
    assert num_waves_beside_trials(_sweep(train=TRAIN.first_stage(), final_seeds=2), 1) == 2


def test_parallel_folds_and_workers_take_several_shares():
    node = Node(cpus=8, gpus=0, memory_bytes=100 * GIB)
    parallel = plan(_sweep(folds=4, parallel_folds=4), CPU, [node], 10)
    assert parallel.at_once == 2
    assert parallel.longest_s == 10 * 45 * 2 / 2
    together = plan(_sweep(workers=4), CPU, [node], 10)
    assert together.at_once == 2
    assert together.longest_s == 10 * 45 * 2 / 4 / 2  # an epoch is shared by four


def test_a_run_that_fits_on_no_node_is_refused():
    with pytest.raises(SweepError, match=r"takes 1 x \(2 CPU, 1,280 MiB .* 1 node can hold 0 of them: 1 CPU"):
        plan(_sweep(cpus_per_run=2), CPU, [Node(1, 0, 9 * GIB)], 1)
    huge = Calibration(1.0, GIB, gpu_bytes=70 * GIB, gpu_total_bytes=80 * GIB, device="cuda")
    with pytest.raises(SweepError, match=r"takes 70\.0 GiB of a GPU of 80\.0 GiB"):
        plan(_sweep(), huge, [Node(8, 1, 99 * GIB)], 1)


def test_early_stopping_shortens_the_likely_time():
    assert likely_steps(_sweep(scheduler="asha", grace_epochs=5), 45) == pytest.approx(5 + 10 / 3 + 30 / 9)
    assert likely_steps(_sweep(scheduler="median"), 45) == 45
    assert likely_steps(_sweep(scheduler="asha", grace_epochs=99), 45) == 45
