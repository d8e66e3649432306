"""Training steps as CUDA graphs: one graph serves all steps of about the same size.

A recorded step repeats the same work, on the same memory and with the same arguments. The bags are therefore
copied into memory that stays allocated, padded to a size that many steps share. Everything else that changes
from step to step is read from memory, too (`step_numbers`).

A step is two graphs: one from the bags to their gradients, for steps of about a size; and one from the
gradients to the new weights, for all steps. Each worker records the first one whenever its own bags need it,
and recording runs the work several times. So the exchange between workers is in the second one, which all
workers record together, in their first step. A worker without a bag runs the second one alone.

Dimensions: T instances of a batch, B bags, D features.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import PackedBags
from mhimdist.method.masking import most_kept
from mhimdist.method.mhim import StepLoss
from mhimdist.method.step_numbers import StepNumbers
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.ops.draws import Draws
from mhimdist.tasks.memory import Memory
from mhimdist.training.step import TrainingStep, place_of
from mhimdist.training.workers import Workers

MOST_GRAPHS = 64
"""Most graphs kept at once; beyond it, the least recently used one is dropped."""

SMALLEST_STEP = 128
_REHEARSALS = 3


class Recorder(Protocol):
    """Records work and repeats it."""

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """Record work; recording may run it any number of times.

        Returns:
            The tensors that the work returned, and a function that runs the work again on the same memory.
            The tensors are part of that memory.
        """


class CudaGraphs:
    """Records with `torch.cuda.graph`; all graphs of a recorder share one pool of memory.

    Sharing is safe: no two graphs run at the same time, and nothing reads a graph's results after another
    graph of the same recorder has run.
    """

    def __init__(self) -> None:
        """Reserve a memory pool and a stream on the current CUDA device."""
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """See `Recorder`; rehearsals compile the kernels and allocate what is allocated only once."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_REHEARSALS):
                work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be reading the next batch, or be NCCL's watchdog, which asks for events; neither
        # belongs to the graph.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = work()
        return outputs, graph.replay


@dataclass(frozen=True)
class Bucket:
    """The sizes of the steps that one graph serves.

    Attributes:
        num_bags: exact number of this worker's bags in the step.
        rows: most instances in the bags.
        capacity: most instances that masking keeps.
        num_bags_of_all: exact number of bags in the step over all workers.
    """

    num_bags: int
    rows: int
    capacity: int
    num_bags_of_all: int


def rounded(count: int) -> int:
    """Round a count up to one of eight sizes per octave, which are at least `SMALLEST_STEP` = 128 apart.

    From 1024 on the result is at most an eighth larger than the count.
    """
    step = max(1 << max(count.bit_length() - 4, 0), SMALLEST_STEP)
    return -(-count // step) * step


@dataclass(frozen=True)
class _Graph:
    """Recorded work on bags: the memory from which it reads them, how to run it again, and its outputs."""

    bags: PackedBags
    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]


class GraphedStep(TrainingStep):
    """`TrainingStep` with CUDA graphs: one per `Bucket`, made when a step first needs it, and one to update.

    Losses, weights and masks equal those of `TrainingStep` as far as sums over padded bags have the same
    order. After the first step, nothing may replace the tensors of the optimiser's state.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: BagModel,
        teacher: Teacher | None,
        workers: Workers | None = None,
        *,
        recorder: Callable[[], Recorder] = CudaGraphs,
        most_graphs: int = MOST_GRAPHS,
        most_rows: int = 0,
        memory: Memory | None = None,
    ) -> None:
        """Take the networks, already on their CUDA device.

        Args:
            config, student, teacher, workers, memory: see `TrainingStep`.
            recorder: makes a recorder; called again whenever all graphs of bags so far are dropped.
            most_graphs: most graphs of bags kept at once, at least 1.
            most_rows: most instances of this worker in a step. A larger step is trained, too; it moves the
                features to larger memory and drops all graphs of bags.
        """
        super().__init__(config, student, teacher, workers, memory=memory)
        self._make_recorder, self._most_graphs, self._most_rows = recorder, most_graphs, most_rows
        self._recorder, self._graphs = recorder(), OrderedDict[Bucket, _Graph]()
        # The update has a recorder to itself: the results of the other graph are read after it has run.
        self._update_recorder = recorder()
        self._recorded_update: tuple[tuple[Tensor, ...], Callable[[], None]] | None = None
        device = self._gradients.shared.device
        self._features_TD = torch.empty(0, 0, device=device)
        self._numbers = StepNumbers.of(config.masking, Draws(0, 0), 0.0).to(device)
        self._learning_rate = config.optimizer.learning_rate
        self.optimizer.learning_rate = self._numbers.learning_rate

    def release(self) -> None:
        """Drop all graphs; NCCL's process group cannot end before the graphs that hold its work.

        A further step records them again.
        """
        self._graphs.clear()
        self._recorded_update = None

    def set_learning_rate(self, rate: float) -> None:
        """See `TrainingStep.set_learning_rate`."""
        self._learning_rate = rate

    def __call__(
        self, bags: PackedBags | None, draws: Draws, *, progress: float, num_bags: int
    ) -> StepLoss | None:
        """Train on this worker's bags of a step; return their losses, or None if it has no bag.

        Args:
            bags, draws, progress, num_bags: see `TrainingStep.__call__`.

        Raises:
            NonFiniteError: the loss or a gradient of an earlier step is not finite.
        """
        self._set_numbers(draws, progress, self._teacher_share(progress, num_bags))
        if self._recorded_update is None:
            self._recorded_update = self._record_update()
        (verdict_2,), update = self._recorded_update
        if bags is None:
            self._gradients.clear()
            update()
            self._read_later(verdict_2, place_of(bags, draws))
            return None
        graph = self._graph_for(bags, self._bucket(bags, progress, num_bags))
        _copy(bags, graph.bags)
        graph.replay()
        self._look_at_features(bags)
        update()
        self._read_later(verdict_2, place_of(bags, draws))
        # The next step writes there.
        losses_3B, counts_4, sums_7 = (tensor.clone() for tensor in graph.outputs)
        total_B, task_B, consistency_B = losses_3B.unbind()
        num_kept, high, low, random = counts_4.unbind()
        return StepLoss(
            total_B=total_B,
            task_B=task_B,
            consistency_B=consistency_B,
            num_instances=len(bags.features_TD),
            num_kept=num_kept,
            masked_high=high,
            masked_low=low,
            masked_random=random,
            sums_7=sums_7,
        )

    def _set_numbers(self, draws: Draws, progress: float, teacher_share: float) -> None:
        self._numbers.fill(
            StepNumbers.of(
                self.config.masking,
                draws,
                progress,
                learning_rate=self._learning_rate,
                teacher_share=teacher_share,
            )
        )

    def _bucket(self, bags: PackedBags, progress: float, num_bags: int) -> Bucket:
        rows = rounded(len(bags.features_TD))
        # The capacity moves with the mask ratios; rounding it makes a new graph only per 32nd of the rows.
        share = max(-(-rows // 32), SMALLEST_STEP // 2)
        capacity = -(-most_kept(self.config.masking, rows, len(bags), progress) // share) * share
        return Bucket(len(bags), rows, min(capacity, rows), num_bags)

    def _record_update(self) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """Record the exchange, Adam and the moving average; it changes no weight."""
        self._gradients.clear()
        self._gradients.loss.fill_(torch.nan)  # as after a bad step, neither student nor teacher may change

        def work() -> tuple[Tensor, ...]:
            verdict_2 = self._update(self._numbers.teacher_share)
            assert verdict_2 is not None, "the networks are on a CUDA device"
            return (verdict_2,)

        return self._update_recorder.record(work)

    def _graph_for(self, bags: PackedBags, bucket: Bucket) -> _Graph:
        graph = self._graphs.get(bucket)
        if graph is None:
            self._finish()  # recording waits for the device, without a limit
            graph = self._graphs[bucket] = self._record(bucket, bags)
            if len(self._graphs) > self._most_graphs:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(bucket)
        return graph

    def _record(self, bucket: Bucket, bags: PackedBags) -> _Graph:
        """Record the work from bags of this size to their gradients."""
        if bucket.rows > len(self._features_TD):
            if self._graphs:  # they read the memory that the features leave now
                self._graphs.clear()
                self._recorder = self._make_recorder()
            rows = max(bucket.rows, rounded(self._most_rows))
            self._features_TD = bags.features_TD.new_zeros(rows, bags.features_TD.shape[1])
        static_bags = PackedBags(
            features_TD=self._features_TD[: bucket.rows],
            offsets_B1=torch.empty_like(bags.offsets_B1),
            labels_B=torch.empty_like(bags.labels_B),
            ids_B=torch.empty_like(bags.ids_B),
            keys=bags.keys,
            targets_BK=None if bags.targets_BK is None else torch.empty_like(bags.targets_BK),
        )
        _copy(bags, static_bags)

        def work() -> tuple[Tensor, ...]:
            loss = self.method.loss_by(static_bags, self._numbers, capacity=bucket.capacity)
            self._take_gradients(static_bags, loss, bucket.num_bags_of_all)
            losses = (loss.total_B.detach(), loss.task_B, loss.consistency_B)
            counts = (loss.num_kept, loss.masked_high, loss.masked_low, loss.masked_random)
            return torch.stack(losses), torch.stack(counts), loss.sums_7

        outputs, replay = self._recorder.record(work)
        return _Graph(static_bags, replay, outputs)


def _copy(bags: PackedBags, static_bags: PackedBags) -> None:
    """Copy bags to the memory that a graph reads; old rows after the last bag stay there and are ignored."""
    static_bags.features_TD[: len(bags.features_TD)].copy_(bags.features_TD)
    static_bags.offsets_B1.copy_(bags.offsets_B1)
    static_bags.labels_B.copy_(bags.labels_B)
    static_bags.ids_B.copy_(bags.ids_B)
    if static_bags.targets_BK is not None and bags.targets_BK is not None:
        static_bags.targets_BK.copy_(bags.targets_BK)
