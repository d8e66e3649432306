"""Measures a run of a sweep's base configuration, once per kind of device, and counts how many fit now.

Where runs are to share a GPU, two of them are measured beside each other, too.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import psutil
import ray
import torch

from mhimdist import files
from mhimdist.cluster import mps
from mhimdist.cluster.connect import Nodes
from mhimdist.cluster.nodes import Share
from mhimdist.config.train import TrainConfig
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.distributed.shared_gpu import GPU_CONTEXT_BYTES
from mhimdist.errors import MhimdistError, SweepError
from mhimdist.search.options import Sweep
from mhimdist.sweep import plan as planner
from mhimdist.sweep import side_by_side
from mhimdist.sweep.memory import is_out_of_memory
from mhimdist.sweep.plan import Calibration, Plan
from mhimdist.sweep.task import Task
from mhimdist.sweep.watch import print_line, warn
from mhimdist.training.cost import measure
from mhimdist.training.first_stage import RECIPE_VERSION

CALIBRATION_VERSION = 3
"""Increased when the measurement changes, so that results of an older release are not used."""


class Planning:
    """Measures a run of a sweep's base configuration when first needed, and counts how many runs fit."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._nodes = Nodes()

    @cached_property
    def calibration(self) -> Calibration:
        """The resources that a run of the base configuration takes, measured where runs will be.

        Raises:
            SweepError: it does not fit into memory even alone, or its process was lost.
            MhimdistError: it cannot be trained for another reason, such as features that are not finite.
        """
        sweep, nodes = self._task.sweep, self._nodes.look()
        takes_gpu = sweep.gpus_per_run != 0 and sweep.train.device != "cpu" and any(n.gpus for n in nodes)
        needs = Share(sweep.cpus_per_run, 1.0 if takes_gpu else 0.0)
        if not planner.num_runs_on(needs, [node for node in nodes if node.is_up]):
            can_grow = planner.num_runs_on(needs, nodes) > 0
            print_line(
                f"no node is up that fits a run{': the autoscaler is asked for one' if can_grow else ''}"
            )
        for name in self._nodes.without_memory:
            print_line(
                f"the autoscaler never adds a node of type {name}, as the type declares no memory and trials "
                'reserve memory: put "memory" among its resources'
            )
        # Two runs are measured beside each other if a GPU is shared, which takes a node that fits two.
        pair = replace(needs, cpus=2 * needs.cpus)
        has_room = takes_gpu and planner.num_runs_on(pair, [node for node in nodes if node.is_up]) > 0
        found = self._measure_in_a_process((pair if has_room else needs).options)
        if takes_gpu and found.device != "cuda":
            warn("a node offers a GPU to Ray, but torch finds none on it: runs train on its CPU")
        return found

    @cached_property
    def share(self) -> Share:
        """The share of the cluster that a run takes.

        Raises:
            MhimdistError: see `calibration`, or the run does not fit on a GPU.
        """
        return planner.planned_share(self._task.sweep, self.calibration)

    def plan(self, num_trials: int) -> Plan:
        """How the sweep will use the cluster; see `plan.plan`.

        Raises:
            MhimdistError: see `calibration`, or no node can hold a trial.
        """
        found = planner.plan(self._task.sweep, self.calibration, self._nodes.look(), num_trials)
        if found.runs_per_gpu > 1 and not self.calibration.has_mps:
            print_line(
                f"{found.runs_per_gpu} runs share a GPU without NVIDIA MPS, so they take turns: stop Ray on "
                f"the GPU nodes, run `{mps.START}` there as the user who runs Ray, and start Ray again "
                f"(docs/cluster.md; `{mps.STOP}` ends MPS)"
            )
        return found

    def largest_share(self) -> Share:
        """The largest share that a run can be given; see `plan.largest_share`."""
        return planner.largest_share(self._task.sweep, self.share, self._nodes.look())

    def num_fitting(self) -> int:
        """Trials that fit on the cluster with the nodes that it has and may add, at least one."""
        sweep = self._task.sweep
        fitting = planner.num_runs_on(self.share, self._nodes.look()) // planner.shares_per_trial(sweep)
        return max(1, min(fitting, sweep.at_once or fitting))

    def _measure_in_a_process(self, options: Mapping[str, float]) -> Calibration:
        # In a separate process that ends: the memory of that process is measured.
        measuring = ray.remote(max_calls=1)(calibrate).options(
            **options, runtime_env={"env_vars": {"MHIMDIST_MEASURED": "1"}}
        )
        try:
            return ray.get(measuring.remote(self._task))
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if isinstance(cause, MhimdistError):
                raise cause from None
            if is_out_of_memory(cause):
                raise SweepError(
                    "the base configuration ran out of memory while it was calibrated alone: make the model "
                    f"smaller, or its steps by train.max_instances ({' '.join(str(cause).split())[:200]})"
                ) from None
            if isinstance(error, ray.exceptions.RayTaskError):
                raise
            raise SweepError(f"the calibration's process was lost: {' '.join(str(error).split())}") from None


def calibrate(task: Task) -> Calibration:
    """Measure a run of the base configuration here; call it in a process that has trained nothing.

    It is measured once per device for all sweeps of a home.
    """
    sweep, config = task.sweep, task.calibrated
    bags = task.bags_of(config)
    made_of = (
        CALIBRATION_VERSION,
        RECIPE_VERSION,
        config.digest(),
        task.splits[0].digest(),
        bags.digest,
        sweep.num_threads,
        _device(config),
        mps.is_running(),
    )
    name = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8).hexdigest()
    file = sweep.home.resolve() / "cache" / "calibration" / f"{name}.json"
    found = _read(file)
    if found is None:
        found = _measure(sweep, config, bags, task.splits[0])
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps(asdict(found)))
    if found.slowdown is None and planner.is_gpu_shared(sweep, found):
        split, threads, of_bags = task.splits[0], sweep.num_threads, (sweep.bag_of, bags.digest)
        beside_s = side_by_side.epoch_s(task.data, config, split, threads, *of_bags)
        found = replace(found, slowdown=max(1.0, beside_s / found.epoch_s))
        files.write_text(file, json.dumps(asdict(found)))
    return found


def _read(file: Path) -> Calibration | None:
    """An earlier measurement; None if there is none, or a damaged one."""
    try:
        return Calibration(**files.json_object(file, SweepError))
    except (SweepError, TypeError):
        return None


def _device(config: TrainConfig) -> tuple[str, int]:
    """The device that runs train on here: its model and its memory in bytes, 0 for a CPU."""
    if config.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine()), 0  # not every architecture names its model


def _measure(sweep: Sweep, config: TrainConfig, bags: StoredBags, split: Split) -> Calibration:
    process = psutil.Process()
    before = process.memory_info()
    cost = measure(config, bags, split, sweep.num_threads)
    after = process.memory_info()
    own_bytes = max(before.rss - before.shared + cost.peak_bytes, after.rss - after.shared)
    if cost.device != "cuda":
        return Calibration(cost.epoch_s, own_bytes, 0, 0, cost.device)
    taken = torch.cuda.max_memory_reserved() + GPU_CONTEXT_BYTES
    return Calibration(
        cost.epoch_s,
        after.rss - after.shared,
        taken,
        torch.cuda.mem_get_info()[1],
        cost.device,
        has_mps=mps.is_running(),
    )
