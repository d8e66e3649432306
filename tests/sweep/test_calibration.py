"""What is measured of a run, and kept: with faked measurements, as if a GPU was there."""

import dataclasses

import pytest
from memory_bags import MemoryBags

from mhimdist.cluster import mps
from mhimdist.cluster.nodes import Node
from mhimdist.config.train import TrainConfig
from mhimdist.search.options import Sweep
from mhimdist.sweep import calibration, side_by_side
from mhimdist.sweep.calibration import Planning, calibrate
from mhimdist.sweep.plan import Calibration
from mhimdist.sweep.task import Task

GIB = 2**30
ALONE = Calibration(epoch_s=2.0, memory_bytes=GIB, gpu_bytes=8 * GIB, gpu_total_bytes=80 * GIB, device="cuda")


@pytest.fixture
def measured(bags: MemoryBags, monkeypatch):
    """The measurements in their order: how many runs each was of. Two beside each other take 3 s an epoch."""
    found: list[int] = []

    def alone(*arguments) -> Calibration:
        found.append(1)
        return dataclasses.replace(ALONE, has_mps=mps.is_running())

    def beside(*arguments) -> float:
        found.append(2)
        return 3.0

    monkeypatch.setattr(Task, "bags", lambda self: bags)
    monkeypatch.setattr(calibration, "_measure", alone)
    monkeypatch.setattr(calibration, "_device", lambda config: ("a card", 80 * GIB))
    monkeypatch.setattr(side_by_side, "epoch_s", beside)
    monkeypatch.setattr(mps, "is_running", lambda: False)
    return found


@pytest.fixture
def task(bags: MemoryBags, tmp_path):
    def made(**options) -> Task:
        sweep = Sweep(home=tmp_path, train=TrainConfig(), **options)
        return Task(sweep, [bags.holdout()], tmp_path, tmp_path / "trials", tmp_path / "stop")

    return made


def test_two_are_measured_beside_each_other_only_where_a_gpu_is_shared_and_only_once(measured, task):
    assert calibrate(task(gpus_per_run=1)) == ALONE
    assert measured == [1]
    shared = dataclasses.replace(ALONE, slowdown=1.5)
    assert calibrate(task()) == shared  # a share by memory
    assert measured == [1, 2]
    assert calibrate(task(gpus_per_run=0.5)) == calibrate(task(gpus_per_run=1)) == shared
    assert measured == [1, 2]


def test_a_second_run_that_seems_to_speed_up_the_first_costs_nothing(measured, task, monkeypatch):
    monkeypatch.setattr(side_by_side, "epoch_s", lambda *arguments: 1.9)
    assert calibrate(task()).slowdown == 1.0


def test_with_mps_it_is_measured_anew(measured, task, monkeypatch):
    calibrate(task())
    monkeypatch.setattr(mps, "is_running", lambda: True)
    assert calibrate(task()).has_mps
    assert measured == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("found", "is_told"),
    [
        (dataclasses.replace(ALONE, slowdown=1.9), True),
        (dataclasses.replace(ALONE, slowdown=1.1, has_mps=True), False),
        (dataclasses.replace(ALONE, gpu_bytes=40 * GIB), False),  # one fits on a GPU
    ],
)
def test_whoever_shares_a_gpu_without_mps_is_told_the_commands(found, is_told, task, monkeypatch, capsys):
    monkeypatch.setattr("mhimdist.sweep.calibration.Nodes", lambda: None)
    planning = Planning(task())
    planning.calibration = found
    planning._nodes = type("Nodes", (), {"look": lambda self: [Node(16, 1, 100 * GIB)]})()
    planning.plan(100)
    said = capsys.readouterr().out
    assert ("7 runs share a GPU without NVIDIA MPS" in said) == is_told
    assert ("`nvidia-cuda-mps-control -d`" in said) == is_told
    assert ("`echo quit | nvidia-cuda-mps-control`" in said) == is_told
