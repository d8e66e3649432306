"""One optimiser step: teacher, masks, student, backward pass, Adam, moving average.

On a CUDA device the host never waits within a step. Counts stay on the device. The device itself checks that
the loss is finite and otherwise leaves the weights alone; the host reads the verdict later.

A mask can hide an instance that is not finite from the loss, in all steps of a run. So the first step with a
bag, and every step with a sample of one, also looks at the features.
"""

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import PackedBags
from mhimdist.errors import NonFiniteError
from mhimdist.method import precision
from mhimdist.method.flat_parameters import Gradients, NamedAdam, flatten_parameters
from mhimdist.method.mhim import MHIM, StepLoss
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.ops.draws import Draws
from mhimdist.tasks.memory import Memory
from mhimdist.training.workers import Workers

_ELSEWHERE = "of another worker"


class TrainingStep:
    """Trains the student, and moves the teacher after it.

    Attributes:
        method: the forward pass.
        optimizer: Adam on the student's parameters.
        dtype: data type of matrix products and features.
        momentum: the teacher's momentum in the last step; None if the teacher shares the student's weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: BagModel,
        teacher: Teacher | None,
        workers: Workers | None = None,
        lap: Callable[[str], None] = lambda part: None,
        memory: Memory | None = None,
    ) -> None:
        """Take the networks, already on their device; the student gets worker 0's weights.

        Args:
            config: the run's settings.
            student, teacher: the networks.
            workers: the processes that share each step; by default this process alone.
            lap: called with the name of each part of the step at its end; for benchmarks.
            memory: the last predictions for all training bags, if the task compares a bag with them.
        """
        self.config, self.student, self.teacher, self._lap = config, student, teacher, lap
        self.workers = workers or Workers()
        weights = flatten_parameters(student).values
        self.workers.share_first(weights)
        self.dtype = precision.compute_dtype(config.precision, weights.device)
        self.optimizer = NamedAdam(student, config.optimizer)
        self.method, self.memory = MHIM(config, student, teacher, lap, memory), memory
        self._gradients = Gradients(student, memory.num_news if memory else 0)
        if memory is not None:
            memory.join(self._gradients.news)
        self._clip_groups = [list(group) for group in student.clip_groups()]
        self.momentum: float | None = None
        self._known_keys: set[str] = set()
        self._unread: deque[tuple[Tensor, torch.cuda.Event, str]] = deque()

    def __call__(
        self, bags: PackedBags | None, draws: Draws, *, progress: float, num_bags: int
    ) -> StepLoss | None:
        """Train on this worker's bags of a step; return their losses, or None if it has no bag.

        The loss is the sum over this worker's bags, divided by the number of bags in the step. The sum over
        the workers is then the mean over the bags, however unevenly the workers share them.

        Args:
            bags: whole bags on the student's device, features in `dtype`; None if this worker has no bag.
            draws: the epoch's random streams.
            progress: share of the run's bags seen before the step, in [0, 1].
            num_bags: bags in the step over all workers.

        Raises:
            NonFiniteError: the loss, a gradient or a feature of a new bag or sample is not finite on any
                worker, in this step or, on a GPU, in an earlier one. That step has changed neither student
                nor teacher.
        """
        step_loss = None
        if bags is None:
            self._gradients.clear()
        else:
            step_loss = self.method.loss(bags, draws, progress)
            self._lap("student")
            self._take_gradients(bags, step_loss, num_bags)
            self._look_at_features(bags)
        place = place_of(bags, draws)
        verdict_2 = self._update(self._teacher_share(progress, num_bags), place)
        if verdict_2 is not None:
            self._read_later(verdict_2, place)
        return step_loss

    def _look_at_features(self, bags: PackedBags) -> None:
        """Make the step's loss NaN if a bag that is new to this process holds NaN or infinity.

        Every sample of a bag is new. If all is finite, 0 is added to a number that moves no weight. No host
        waits for it.
        """
        if self.config.trains_on_sub_bags or not self._known_keys.issuperset(bags.keys):
            self._known_keys.update(bags.keys)
            nothing = bags.features_TD.sum(dtype=torch.float32) * 0
            self._gradients.loss.add_(nothing)
            self._gradients.own_loss.add_(nothing)

    def _take_gradients(self, bags: PackedBags, step_loss: StepLoss, num_bags: int) -> None:
        """Take the gradients of this worker's bags, and the news of them for the memory."""
        self._gradients.of(mean_share(step_loss.total_B, num_bags))
        if self.memory is not None and step_loss.predictions_BP is not None:
            self.memory.note(bags.ids_B, step_loss.predictions_BP)

    def release(self) -> None:
        """Give up what only further steps need."""

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of all steps from now on."""
        self.optimizer.learning_rate = rate

    def _teacher_share(self, progress: float, num_bags: int) -> float:
        """How far the teacher moves after the step, in [0, 1]; stores its momentum."""
        if self.teacher is None or not self.teacher.is_own_network:
            return 0.0
        self.momentum = self.teacher.momentum(progress=progress, num_bags=num_bags)
        return 1 - self.momentum

    def _update(self, share: float | Tensor, place: str = "") -> Tensor | None:
        """Exchange the gradients, then take Adam's step and move the teacher; all workers must call this.

        A loss or gradient that is not finite on any worker keeps the weights of all as they are.

        Args:
            share: how far the teacher moves, in [0, 1].
            place: the step's place, for messages.

        Returns:
            On a GPU two values: 1 if the loss or a gradient is not finite, and no weight was changed,
            otherwise 0; and this worker's loss. On the CPU None.

        Raises:
            NonFiniteError: on the CPU, if the loss or a gradient is not finite.
        """
        gradients = self._gradients
        self.workers.add_up(gradients.shared)
        loss_and_norm = gradients.loss + self._gradient_norm()
        # inf - inf is NaN, too; `isfinite` takes twice the launches.
        is_bad = None if loss_and_norm.device.type == "cpu" else (loss_and_norm - loss_and_norm != 0).float()
        if is_bad is None and not math.isfinite(loss_and_norm):
            raise self._not_finite(gradients.own_loss.item(), place)
        self._lap("backward")
        # If it is 1, fused Adam leaves weights and moments alone.
        self.optimizer.found_inf = is_bad
        self.optimizer.step()
        if self.memory is not None:
            self.memory.take(is_bad)
        self._lap("optimiser")
        if self.teacher is not None and self.teacher.is_own_network:
            self.teacher.follow(self.student, share if is_bad is None else (1 - is_bad) * share)
        self._lap("average")
        return None if is_bad is None else torch.stack([is_bad, gradients.own_loss])

    def _gradient_norm(self) -> Tensor:
        """The norm of all gradients before clipping; if groups are clipped, the sum of the groups' norms."""
        clip_norm = self.config.optimizer.clip_norm
        if clip_norm is None:
            grads = [p.grad for p in self.student.parameters() if p.grad is not None]
            return torch.nn.utils.get_total_norm(grads)
        norms = [torch.nn.utils.clip_grad_norm_(group, clip_norm) for group in self._clip_groups]
        return norms[0] if len(norms) == 1 else torch.stack(norms).sum()

    def _read_later(self, verdict_2: Tensor, place: str) -> None:
        """Send a verdict and the loss to the host, without waiting for them."""
        self.check()
        on_host_2 = torch.empty(2, pin_memory=True)
        on_host_2.copy_(verdict_2, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._unread.append((on_host_2, copied, place))

    def _finish(self) -> None:
        """Wait until the device has finished all steps so far, but no longer than for a lost worker.

        Raises:
            WorkerLostError: another worker was killed or does not answer.
        """
        if self._unread:
            self.workers.wait(self._unread[-1][1])

    def check(self, *, wait: bool = False) -> None:
        """Raise for an earlier step whose loss or gradient was not finite.

        Args:
            wait: also wait for the steps that the device has not finished, as before a checkpoint. All
                workers must call this. They meet first: with a lost worker, the device never finishes.

        Raises:
            NonFiniteError: such a step was found; the message names its bags.
            WorkerLostError: another worker was killed or does not answer.
        """
        if wait:
            self.workers.meet()
        while self._unread and (wait or self._unread[0][1].query()):
            on_host_2, copied, place = self._unread.popleft()
            self.workers.wait(copied)
            is_bad, loss = on_host_2.tolist()
            if is_bad:
                raise self._not_finite(loss, place)

    def _not_finite(self, loss: float, place: str) -> NonFiniteError:
        what = f"the loss became {loss}"
        if math.isfinite(loss):
            what = "a gradient is not finite"
            if self.workers.world_size > 1:
                what = "the loss or a gradient is not finite"
                if not place.endswith(_ELSEWHERE):
                    place = f"{place} or {_ELSEWHERE}"
        return NonFiniteError(
            f"{what} {place}; the step changed no weight: look for NaN or huge features, or lower the "
            "learning rate"
        )


def mean_share(total_B: Tensor, num_bags: int) -> Tensor:
    """The share of some bags in the mean loss of a step that has `num_bags` bags over all workers."""
    return total_B.sum() if num_bags == 1 else total_B.sum() * (1 / num_bags)


def place_of(bags: PackedBags | None, draws: Draws) -> str:
    """A step's place, for messages."""
    return f"in epoch {draws.epoch} at bag(s) {', '.join(bags.keys) if bags else _ELSEWHERE}"
