"""How many trials fit at once, what each takes, and how long a sweep will be: arithmetic on a calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

from mhimdist.errors import SweepError
from mhimdist.report import formats
from mhimdist.sweep import Sweep

GPU_ROOM = 0.9
"""Share of a GPU's memory that trials may fill together."""

MEMORY_ROOM = 1.25
"""What a run is given for each byte that the calibration took: configurations of a sweep differ."""


@dataclass(frozen=True)
class Calibration:
    """What one run of the base configuration took in a process of its own.

    Attributes:
        epoch_s: seconds of an epoch with its validation.
        memory_bytes: resident memory of the process, less the pages of the data set that all processes share.
        gpu_bytes, gpu_total_bytes: on a GPU, what the process took of how much; 0 on a CPU.
        device: "cuda" or "cpu".
    """

    epoch_s: float
    memory_bytes: int
    gpu_bytes: int
    gpu_total_bytes: int
    device: str


@dataclass(frozen=True)
class Node:
    """What a node of the cluster lends to Ray."""

    cpus: float
    gpus: float
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """How a sweep will use the cluster.

    Attributes:
        at_once: trials that run at the same time.
        limited_by: what keeps it from being more.
        cpus, gpus, memory_bytes: of a run; a trial is several where folds run in parallel.
        likely_s, longest_s: seconds of all trials, with early stopping as usual and with none stopped.
    """

    at_once: int
    limited_by: str
    cpus: float
    gpus: float
    memory_bytes: int
    likely_s: float
    longest_s: float

    def text(self, sweep: Sweep) -> str:
        """One line for the terminal."""
        share = f", {self.gpus:g} GPU" if self.gpus else ""
        runs = f" x {sweep.parallel_folds} folds" if sweep.parallel_folds > 1 else ""
        likely = f"about {formats.rounded(self.likely_s)}"
        if self.longest_s > 1.05 * self.likely_s:
            likely += f", at most {formats.rounded(self.longest_s)} if no trial is stopped"
        return (
            f"plan: {formats.count(self.at_once, 'trial')} at once{runs} (limited by {self.limited_by}), "
            f"each "
            f"{self.cpus:g} CPU{share} and {self.memory_bytes / 2**20:,.0f} MiB; {likely}"
        )


def gpu_share(sweep: Sweep, calibration: Calibration) -> float:
    """The share of a GPU that a run takes: as asked for, or by the memory that it needs.

    Raises:
        SweepError: a run does not fit on a GPU.
    """
    if calibration.device != "cuda":
        return 0.0
    if sweep.workers > 1:
        return 1.0
    needed = calibration.gpu_bytes * MEMORY_ROOM
    fitting = int(GPU_ROOM * calibration.gpu_total_bytes / needed)
    if fitting < 1:
        raise SweepError(
            f"a run takes {calibration.gpu_bytes / 2**30:.1f} GiB of a GPU of "
            f"{calibration.gpu_total_bytes / 2**30:.1f} GiB, too much with room to spare: make the model "
            f"smaller, "
            "or bags by train.max_instances"
        )
    if sweep.gpus_per_run is not None:
        return sweep.gpus_per_run
    return 1 / min(fitting, 16)


def plan(sweep: Sweep, calibration: Calibration, nodes: Sequence[Node], num_trials: int) -> Plan:
    """How many trials fit at once and how long all of them take.

    Args:
        sweep: what each run takes of the cluster.
        calibration: of the base configuration.
        nodes: of the cluster.
        num_trials: trials to run.

    Raises:
        SweepError: no node can hold a single run.
    """
    gpus = gpu_share(sweep, calibration)
    memory = int(calibration.memory_bytes * MEMORY_ROOM)
    fitting = {
        "CPU cores": sum(int(node.cpus // sweep.cpus_per_run) for node in nodes),
        "memory": sum(int(node.memory_bytes // memory) for node in nodes),
    }
    if gpus:
        fitting["GPUs"] = sum(int(node.gpus / gpus + 1e-9) for node in nodes)
    runs = sum(
        min(
            int(node.cpus // sweep.cpus_per_run),
            int(node.memory_bytes // memory),
            *([int(node.gpus / gpus + 1e-9)] if gpus else []),
        )
        for node in nodes
    )
    per_trial = sweep.workers if sweep.workers > 1 else sweep.parallel_folds
    at_once = runs // per_trial
    if at_once < 1:
        needs = f"{sweep.cpus_per_run:g} CPU" + (f", {gpus:g} GPU" if gpus else "")
        raise SweepError(
            f"a trial takes {per_trial} x ({needs}, {memory / 2**20:,.0f} MiB of memory), but the cluster's "
            f"{formats.count(len(nodes), 'node')} can hold {runs} such: "
            + "; ".join(
                f"{node.cpus:g} CPU, {node.gpus:g} GPU, {node.memory_bytes / 2**20:,.0f} MiB"
                for node in nodes
            )
        )
    limited_by = min(fitting, key=lambda name: fitting[name])
    for limit, name in ((num_trials, "the number of trials"), (sweep.at_once, "at_once")):
        if limit is not None and limit < at_once:
            at_once, limited_by = max(1, limit), name
    num_steps = sweep.num_waves * sweep.train.epochs
    per_step = calibration.epoch_s / at_once
    return Plan(
        at_once=at_once,
        limited_by=limited_by,
        cpus=sweep.cpus_per_run,
        gpus=gpus,
        memory_bytes=memory,
        likely_s=per_step * num_trials * likely_steps(sweep, num_steps),
        longest_s=per_step * num_trials * num_steps,
    )


def likely_steps(sweep: Sweep, num_steps: int) -> float:
    """Mean number of epochs of a trial where one in `reduction_factor` passes each rung."""
    if sweep.scheduler not in ("asha", "hyperband") or not sweep.is_pruning:
        return num_steps
    rung, passing, total, done = min(sweep.grace_epochs, num_steps), 1.0, 0.0, 0
    while done < num_steps:
        total += passing * (min(rung, num_steps) - done)
        done, rung = min(rung, num_steps), rung * sweep.reduction_factor
        passing /= sweep.reduction_factor
    return total
