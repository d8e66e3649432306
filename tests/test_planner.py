import pytest

from mhimdist.config import TrainConfig
from mhimdist.errors import SweepError
from mhimdist.planner import Calibration, Node, likely_steps, plan
from mhimdist.sweep import Sweep

GIB = 2**30
CPU = Calibration(epoch_s=2.0, memory_bytes=GIB, gpu_bytes=0, gpu_total_bytes=0, device="cpu")
GPU = Calibration(epoch_s=2.0, memory_bytes=GIB, gpu_bytes=8 * GIB, gpu_total_bytes=80 * GIB, device="cuda")
TRAIN = TrainConfig(epochs=45)


def _sweep(**options):
    return Sweep(**({"train": TRAIN, "scheduler": "none"} | options))


def test_what_is_short_limits_the_number_at_once():
    nodes = [Node(cpus=4, gpus=0, memory_bytes=3 * GIB), Node(cpus=8, gpus=0, memory_bytes=100 * GIB)]
    found = plan(_sweep(), CPU, nodes, 100)
    assert found.at_once == 2 + 8  # by the first node's memory, and the second one's cores
    assert found.memory_bytes == 1.25 * GIB
    assert found.likely_s == found.longest_s == 100 * 45 * 2 / 10
    assert plan(_sweep(cpus_per_run=2), CPU, nodes, 100).at_once == 2 + 4
    assert plan(_sweep(at_once=3), CPU, nodes, 100).limited_by == "at_once"
    assert plan(_sweep(), CPU, nodes, 5).limited_by == "the number of trials"


def test_a_gpu_is_shared_by_as_many_as_its_memory_holds():
    node = Node(cpus=16, gpus=1, memory_bytes=100 * GIB)
    found = plan(_sweep(), GPU, [node], 100)
    assert found.at_once == 7  # of 10 GiB each in 72
    assert found.gpus == pytest.approx(1 / 7)
    assert found.limited_by == "GPUs"
    assert plan(_sweep(gpus_per_run=0.5), GPU, [node], 100).at_once == 2
    assert "7 trials at once (limited by GPUs), each 1 CPU, 0.142857 GPU and 1,280 MiB" in found.text(
        _sweep()
    )


def test_parallel_folds_and_workers_take_several_shares():
    node = Node(cpus=8, gpus=0, memory_bytes=100 * GIB)
    parallel = plan(_sweep(folds=4, parallel_folds=4), CPU, [node], 10)
    assert parallel.at_once == 2
    assert parallel.longest_s == 10 * 45 * 2 / 2
    assert plan(_sweep(workers=4), CPU, [node], 10).at_once == 2


def test_what_fits_nowhere_is_refused():
    with pytest.raises(SweepError, match=r"takes 1 x \(2 CPU, 1,280 MiB .* 1 node can hold 0 such: 1 CPU"):
        plan(_sweep(cpus_per_run=2), CPU, [Node(1, 0, 9 * GIB)], 1)
    huge = Calibration(1.0, GIB, gpu_bytes=70 * GIB, gpu_total_bytes=80 * GIB, device="cuda")
    with pytest.raises(SweepError, match=r"takes 70\.0 GiB of a GPU of 80\.0 GiB"):
        plan(_sweep(), huge, [Node(8, 1, 99 * GIB)], 1)


def test_early_stopping_shortens_what_is_likely():
    assert likely_steps(_sweep(scheduler="asha", grace_epochs=5), 45) == pytest.approx(5 + 10 / 3 + 30 / 9)
    assert likely_steps(_sweep(scheduler="median"), 45) == 45
    assert likely_steps(_sweep(scheduler="asha", grace_epochs=99), 45) == 45
