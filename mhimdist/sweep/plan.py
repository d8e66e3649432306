"""How many trials fit at once, what each takes, and how long a sweep lasts: arithmetic on a calibration."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mhimdist.cluster.nodes import Node, Share, largest_equal_part
from mhimdist.distributed.shared_gpu import USABLE_GPU_SHARE
from mhimdist.errors import SweepError
from mhimdist.report import formats
from mhimdist.search.options import Sweep

MEMORY_MARGIN = 1.25
"""Bytes that a run is given per byte of the calibration, as a sweep's configurations differ."""


@dataclass(frozen=True)
class Calibration:
    """The resources that one run of the base configuration took in a separate process.

    Attributes:
        epoch_s: seconds of an epoch with its validation.
        memory_bytes: resident memory of the process, without the data set's pages that all processes share.
        gpu_bytes, gpu_total_bytes: on a GPU, the memory that the process took, and the GPU's; 0 on a CPU.
        device: "cuda" or "cpu".
        slowdown: how many times as long an epoch takes beside another run on the same GPU, at least 1; None
            if it was not measured, because no GPU is shared.
        has_mps: whether NVIDIA MPS ran on the node.
    """

    epoch_s: float
    memory_bytes: int
    gpu_bytes: int
    gpu_total_bytes: int
    device: str
    slowdown: float | None = None
    has_mps: bool = False

    def slowed(self, num_runs: int) -> float:
        """How many times as long an epoch takes if so many runs share a GPU: each adds what the second did.

        Runs that take turns (2.0) get nothing done sooner than one after the other; with 1.0 they are free.
        """
        return 1 + (num_runs - 1) * ((self.slowdown or 1.0) - 1)


@dataclass(frozen=True)
class Plan:
    """How a sweep will use the cluster.

    Attributes:
        at_once: trials that run at the same time, once the autoscaler has added all nodes that it may add.
        at_first: trials that fit on the nodes that are up.
        num_addable_nodes: nodes that the autoscaler may add.
        limited_by: the resource or setting that limits `at_once`.
        share: what Ray reserves for a run; a trial is more than one run if folds run in parallel.
        gpu_bytes: GPU memory that a run takes, with room to spare; 0 on a CPU.
        runs_per_gpu: runs that share a GPU at a time; 1 without a shared GPU.
        slowed: how many times as long an epoch of theirs takes as one alone.
        likely_s, longest_s: seconds for all trials, with usual early stopping and with none stopped.
        others_s: seconds of the first stages before them and of the final runs after them.
    """

    at_once: int
    at_first: int
    num_addable_nodes: int
    limited_by: str
    share: Share
    gpu_bytes: int
    runs_per_gpu: int
    slowed: float
    likely_s: float
    longest_s: float
    others_s: float

    def text(self, sweep: Sweep) -> str:
        """One line for the terminal."""
        gpu = f", {self.share.gpus:.3g} GPU" if self.share.gpus else ""
        if self.gpu_bytes:
            gpu += f" ({self.gpu_bytes / 2**30:.1f} GiB of its memory)"
        runs = f" x {sweep.parallel_folds} folds" if sweep.parallel_folds > 1 else ""
        if sweep.workers > 1:
            runs = f" x {sweep.workers} workers"
        growth = ""
        if self.at_first < self.at_once:
            growth = (
                f", {self.at_first} on the nodes that are up and the others on up to "
                f"{formats.count(self.num_addable_nodes, 'node')} that the autoscaler adds"
            )
        likely = f"about {formats.rounded(self.likely_s)}"
        if self.longest_s > 1.05 * self.likely_s:
            likely += f", at most {formats.rounded(self.longest_s)} if no trial is stopped"
        slowed = ""
        if self.slowed > 1.05:
            slowed = (
                f"; {self.runs_per_gpu} on a GPU, where an epoch takes {self.slowed:.1f} x as long as alone"
            )
        return (
            f"plan: {formats.count(self.at_once, 'trial')} at once{runs} (limited by {self.limited_by})"
            f"{growth}; each {self.share.cpus:g} CPU{gpu} and {formats.mib(self.share.memory_bytes)}"
            f"{slowed}; "
            f"{likely}; first stages and final runs about {formats.rounded(self.others_s)} more"
        )


def gpu_share(sweep: Sweep, calibration: Calibration) -> float:
    """The share of a GPU that a run takes: as requested, or by the memory that it needs.

    Raises:
        SweepError: a run does not fit on a GPU, or not into the requested share of it.
    """
    asked = 1.0 if sweep.workers > 1 else sweep.gpus_per_run
    if calibration.device != "cuda":
        return sweep.gpus_per_run or 0.0
    taken = max(1.0, calibration.gpu_bytes * MEMORY_MARGIN)
    fitting = int(USABLE_GPU_SHARE * calibration.gpu_total_bytes / taken)
    if fitting < 1:
        raise SweepError(
            f"a run takes {calibration.gpu_bytes / 2**30:.1f} GiB of a GPU of "
            f"{calibration.gpu_total_bytes / 2**30:.1f} GiB, which leaves too little to spare: make the "
            "model smaller, or its steps by train.max_instances"
        )
    if asked is not None and 0 < asked < 1:
        needs = calibration.gpu_bytes / (USABLE_GPU_SHARE * calibration.gpu_total_bytes)
        if asked < needs:
            raise SweepError(
                f"gpus_per_run: expected at least {needs:.3f}, as a run takes "
                f"{calibration.gpu_bytes / 2**30:.1f} GiB of a GPU of "
                f"{calibration.gpu_total_bytes / 2**30:.1f} GiB, CUDA's context included; got {asked:g}: "
                "ask for more, or leave it out, and each run gets what it needs"
            )
    return asked if asked is not None else 1 / min(fitting, 16)


def is_gpu_shared(sweep: Sweep, calibration: Calibration) -> bool:
    """Whether several runs can be on one GPU at the same time.

    Raises:
        SweepError: see `gpu_share`.
    """
    return calibration.device == "cuda" and 0 < gpu_share(sweep, calibration) <= 0.5


def runs_per_gpu(share: Share, nodes: Sequence[Node], num_runs: int) -> int:
    """The most runs that share a GPU at a time; Ray fills one GPU of a node before it begins another.

    Args:
        share: the share of a run.
        nodes: of the cluster.
        num_runs: runs at the same time on the whole cluster.
    """
    if not 0 < share.gpus < 1:
        return 1
    on_a_node = max((min(share.fits(node).values()) for node in nodes), default=1)
    return max(1, min(int(1 / share.gpus + 1e-9), on_a_node, num_runs))


def planned_share(sweep: Sweep, calibration: Calibration) -> Share:
    """The share that Ray reserves for a run.

    Raises:
        SweepError: a run does not fit on a GPU.
    """
    return Share(
        sweep.cpus_per_run,
        gpu_share(sweep, calibration),
        int(calibration.memory_bytes * MEMORY_MARGIN),
    )


def num_runs_on(share: Share, nodes: Sequence[Node]) -> int:
    """How many runs fit on nodes at the same time."""
    return sum(min(share.fits(node).values()) for node in nodes)


def shares_per_trial(sweep: Sweep) -> int:
    """How many such shares a trial takes."""
    return sweep.workers if sweep.workers > 1 else sweep.parallel_folds


def largest_share(sweep: Sweep, share: Share, nodes: Sequence[Node]) -> Share:
    """The share with the most GPU and memory that each run of a trial can be given.

    Args:
        sweep: says how many runs of a trial there are at the same time.
        share: the planned share of a run.
        nodes: of the cluster.
    """
    if sweep.workers > 1:
        return share  # for the process that follows the workers
    count = sweep.parallel_folds
    fitting = [node for node in nodes if min(share.fits(node).values())]
    gpus = min(1.0, largest_equal_part([node.gpus for node in fitting], count)) if share.gpus else 0.0
    memory = int(largest_equal_part([node.memory_bytes for node in fitting], count))
    return Share(share.cpus, max(gpus, share.gpus), max(memory, share.memory_bytes))


def plan(sweep: Sweep, calibration: Calibration, nodes: Sequence[Node], num_trials: int) -> Plan:
    """How many trials fit at once and how long all of them take.

    Args:
        sweep: says what each run takes of the cluster.
        calibration: of the base configuration.
        nodes: of the cluster.
        num_trials: trials to run.

    Raises:
        SweepError: a run does not fit on a GPU, or no node can hold a trial.
    """
    taken = planned_share(sweep, calibration)
    shares_each = shares_per_trial(sweep)
    runs = num_runs_on(taken, nodes)
    at_once = runs // shares_each
    if at_once < 1:
        needs = f"{taken.cpus:g} CPU" + (f", {taken.gpus:g} GPU" if taken.gpus else "")
        raise SweepError(
            f"a trial takes {shares_each} x ({needs}, {formats.mib(taken.memory_bytes)} of memory), but the "
            f"cluster's {formats.count(len(nodes), 'node')} can hold {runs} of them: "
            + "; ".join(
                f"{node.cpus:g} CPU, {node.gpus:g} GPU, {formats.mib(node.memory_bytes)}" for node in nodes
            )
        )
    fitting: Counter[str] = Counter()
    for node in nodes:
        fitting.update(taken.fits(node))
    limited_by = min(fitting, key=lambda name: fitting[name])
    for limit, name in ((num_trials, "the number of trials"), (sweep.at_once, "at_once")):
        if limit is not None and limit < at_once:
            at_once, limited_by = max(1, limit), name
    num_steps = sweep.num_waves * sweep.train.epochs
    epoch_s = calibration.epoch_s / sweep.workers
    num_sharing = runs_per_gpu(taken, nodes, at_once * shares_each)
    slowed = calibration.slowed(num_sharing)
    per_step = epoch_s * slowed / at_once
    others_slowed = calibration.slowed(runs_per_gpu(taken, nodes, runs))
    return Plan(
        at_once=at_once,
        at_first=min(at_once, num_runs_on(taken, [node for node in nodes if node.is_up]) // shares_each),
        num_addable_nodes=sum(not node.is_up and min(taken.fits(node).values()) > 0 for node in nodes),
        limited_by=limited_by,
        share=taken,
        gpu_bytes=int(calibration.gpu_bytes * MEMORY_MARGIN),
        runs_per_gpu=num_sharing,
        slowed=slowed,
        likely_s=per_step * num_trials * likely_steps(sweep, num_steps),
        longest_s=per_step * num_trials * num_steps,
        others_s=epoch_s * others_slowed * sweep.train.epochs * num_waves_beside_trials(sweep, runs),
    )


def num_waves_beside_trials(sweep: Sweep, runs: int) -> int:
    """How many groups of first stages and final runs train one after another.

    Args:
        sweep: says which of them exist.
        runs: number of runs that fit at the same time.
    """
    if sweep.workers > 1:
        runs = 1  # they train one after another
    teacher = sweep.train.teacher
    # A group of workers makes a first stage when the first trial needs it.
    stages = sweep.folds_per_trial if teacher.is_pretrained and teacher.weights is None else 0
    each = sweep.final_seeds * (sweep.folds if sweep.protocol == "strict" else 1)
    finals, plain = sweep.final_top * each, each if teacher.kind != "none" else 0
    if plain and not stages and sweep.protocol != "strict":
        plain += sweep.folds_per_trial  # its inner runs, which are not first stages of the trials
    # A plain run is the first stage that final runs wait for.
    groups = (stages, plain, finals) if teacher.is_pretrained else (stages, plain + finals)
    return sum(-(-group // runs) for group in groups)


def likely_steps(sweep: Sweep, num_steps: int) -> float:
    """Mean number of epochs of a trial if one trial in `reduction_factor` passes each rung."""
    if sweep.scheduler not in ("asha", "hyperband") or not sweep.is_pruning:
        return num_steps
    rung, passing, total, done = min(sweep.grace_epochs, num_steps), 1.0, 0.0, 0
    while done < num_steps:
        total += passing * (min(rung, num_steps) - done)
        done, rung = min(rung, num_steps), rung * sweep.reduction_factor
        passing /= sweep.reduction_factor
    return total
