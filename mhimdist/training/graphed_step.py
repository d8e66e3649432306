"""Training steps as CUDA graphs: one graph serves all steps of about the same size.

A recorded step repeats the same work, on the same memory and with the same arguments. The bags are therefore
copied into memory that stays allocated, padded to a size that many steps share. Everything else that changes
from step to step is read from memory, too (`step_numbers`).

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
from mhimdist.errors import ConfigError
from mhimdist.method.flat_parameters import flatten_parameters
from mhimdist.method.masking import most_kept
from mhimdist.method.mhim import StepLoss
from mhimdist.method.step_numbers import StepNumbers
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.ops.draws import Draws
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
    graph has run.
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
        # Another thread may be reading the next batch; its work must not become part of the graph.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = work()
        return outputs, graph.replay


@dataclass(frozen=True)
class Bucket:
    """The sizes of the steps that one graph serves.

    Attributes:
        num_bags: exact number of bags in the step.
        rows: most instances in the bags.
        capacity: most instances that masking keeps.
    """

    num_bags: int
    rows: int
    capacity: int


def rounded(count: int) -> int:
    """Round a count up to one of eight sizes per octave, which are at least `SMALLEST_STEP` = 128 apart.

    From 1024 on the result is at most an eighth larger than the count.
    """
    step = max(1 << max(count.bit_length() - 4, 0), SMALLEST_STEP)
    return -(-count // step) * step


@dataclass(frozen=True)
class _Graph:
    """A recorded step: the memory from which it reads the bags, how to run it again, and its outputs."""

    bags: PackedBags
    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]


class GraphedStep(TrainingStep):
    """`TrainingStep` with CUDA graphs, one per `Bucket`, recorded when a step first needs it.

    Losses, weights and masks equal those of `TrainingStep` as far as sums over padded bags have the same
    order. After a step was recorded, nothing may replace the tensors of the optimiser's state.
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
    ) -> None:
        """Take the networks, already on their device.

        Args:
            config, student, teacher, workers: see `TrainingStep`.
            recorder: makes a recorder; called again whenever all graphs so far are dropped.
            most_graphs: most graphs kept at once, at least 1.

        Raises:
            ConfigError: the networks are not on a CUDA device, or several workers share a step.
        """
        super().__init__(config, student, teacher, workers)
        device = flatten_parameters(student).values.device
        if device.type == "cpu":
            raise ConfigError(f"cuda_graphs: expected a CUDA device, got {device.type}")
        if self.workers.world_size > 1:
            raise ConfigError(
                f"cuda_graphs: expected 1 worker, got {self.workers.world_size}: CUDA graphs cannot record "
                "the exchange of gradients between workers; turn cuda_graphs off, or use 1 worker"
            )
        self._make_recorder, self._most_graphs = recorder, most_graphs
        self._recorder = recorder()
        self._graphs: OrderedDict[Bucket, _Graph] = OrderedDict()
        self._features_TD = torch.empty(0, 0, device=device)
        self._numbers = StepNumbers.of(config.masking, Draws(0, 0), 0.0).to(device)
        self._learning_rate = config.optimizer.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"], group["capturable"] = self._numbers.learning_rate, True

    def set_learning_rate(self, rate: float) -> None:
        """See `TrainingStep.set_learning_rate`."""
        self._learning_rate = rate

    def __call__(
        self, bags: PackedBags | None, draws: Draws, *, progress: float, num_bags: int
    ) -> StepLoss | None:
        """Train on the bags of a step and return their losses; a single worker has all bags of a step.

        Args:
            bags, draws, progress, num_bags: see `TrainingStep.__call__`.

        Raises:
            NonFiniteError: the loss or a gradient of an earlier step is not finite.
        """
        assert bags is not None, "a single worker has all bags of a step"
        assert len(bags) == num_bags, "a single worker has all bags of a step"
        teacher_share = self._teacher_share(progress, num_bags)
        bucket = self._bucket(bags, progress)
        graph = self._graphs.get(bucket)
        if graph is None:
            self._set_numbers(draws, progress, teacher_share, is_rehearsal=True)
            graph = self._graphs[bucket] = self._record(bucket, bags)
            if len(self._graphs) > self._most_graphs:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(bucket)
        _copy(bags, graph.bags)
        self._set_numbers(draws, progress, teacher_share)
        graph.replay()
        verdict_2, *results = graph.outputs
        self._read_later(verdict_2, place_of(bags, draws))
        losses_3B, counts_4, sums_7 = (tensor.clone() for tensor in results)  # the next step writes there
        total_B, classification_B, consistency_B = losses_3B.unbind()
        num_kept, high, low, random = counts_4.unbind()
        return StepLoss(
            total_B=total_B,
            classification_B=classification_B,
            consistency_B=consistency_B,
            num_instances=len(bags.features_TD),
            num_kept=num_kept,
            masked_high=high,
            masked_low=low,
            masked_random=random,
            sums_7=sums_7,
        )

    def _set_numbers(
        self, draws: Draws, progress: float, teacher_share: float, *, is_rehearsal: bool = False
    ) -> None:
        self._numbers.fill(
            StepNumbers.of(
                self.config.masking,
                draws,
                progress,
                learning_rate=self._learning_rate,
                teacher_share=teacher_share,
                is_rehearsal=is_rehearsal,
            )
        )

    def _bucket(self, bags: PackedBags, progress: float) -> Bucket:
        rows = rounded(len(bags.features_TD))
        # The capacity moves with the mask ratios; rounding it makes a new graph only per 32nd of the rows.
        share = max(-(-rows // 32), SMALLEST_STEP // 2)
        capacity = -(-most_kept(self.config.masking, rows, len(bags), progress) // share) * share
        return Bucket(len(bags), rows, min(capacity, rows))

    def _record(self, bucket: Bucket, bags: PackedBags) -> _Graph:
        """Record a step on bags of this size; it changes no weight."""
        if bucket.rows > len(self._features_TD):
            # The features move to larger memory, and the graphs so far read the old one.
            self._graphs.clear()
            self._recorder = self._make_recorder()
            self._features_TD = bags.features_TD.new_zeros(bucket.rows, bags.features_TD.shape[1])
        static_bags = PackedBags(
            features_TD=self._features_TD[: bucket.rows],
            offsets_B1=torch.empty_like(bags.offsets_B1),
            labels_B=torch.empty_like(bags.labels_B),
            ids_B=torch.empty_like(bags.ids_B),
            keys=bags.keys,
        )
        _copy(bags, static_bags)

        def work() -> tuple[Tensor, ...]:
            loss = self.method.loss_by(static_bags, self._numbers, capacity=bucket.capacity)
            mean = self._mean(loss.total_B, bucket.num_bags)
            verdict_2 = self._learn(mean, self._numbers.teacher_share, self._numbers.is_rehearsal)
            assert verdict_2 is not None, "steps on a GPU return their verdict"
            losses = (loss.total_B.detach(), loss.classification_B, loss.consistency_B)
            counts = (loss.num_kept, loss.masked_high, loss.masked_low, loss.masked_random)
            return verdict_2, torch.stack(losses), torch.stack(counts), loss.sums_7

        outputs, replay = self._recorder.record(work)
        return _Graph(static_bags, replay, outputs)


def _copy(bags: PackedBags, static_bags: PackedBags) -> None:
    """Copy bags to the memory that a graph reads; old rows after the last bag stay there and are ignored."""
    static_bags.features_TD[: len(bags.features_TD)].copy_(bags.features_TD)
    static_bags.offsets_B1.copy_(bags.offsets_B1)
    static_bags.labels_B.copy_(bags.labels_B)
    static_bags.ids_B.copy_(bags.ids_B)
