"""MHIM: the teacher scores, the salient instances are masked, the student learns from the rest.

Dimensions: B bags, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mhimdist import ops
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import PackedBags
from mhimdist.method import precision
from mhimdist.method.losses import consistency
from mhimdist.method.masking import mask_bags, most_kept, ranked
from mhimdist.method.step_numbers import StepNumbers
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel, BagOutput
from mhimdist.ops.draws import Draws
from mhimdist.tasks import Truth
from mhimdist.tasks.interface import Others
from mhimdist.tasks.memory import Memory


@dataclass(frozen=True)
class StepLoss:
    """The losses of packed bags, and how many instances were masked.

    Counts are scalars. All of them except `num_instances` are on the device, and nothing here waits for them.

    Attributes:
        total_B: the loss that the optimiser minimises, one value per bag.
        task_B: the task's loss, such as the cross-entropy, without gradient.
        consistency_B: the consistency loss before its weight, without gradient; 0 if alpha is 0.
        num_instances: instances of the whole bags.
        num_kept: instances of the masked bags.
        masked_high, masked_low, masked_random: instances that each mask takes; masks overlap.
        sums_7: float64: num_kept, the three losses summed over the bags, masked_high, masked_low and
            masked_random.
        predictions_BP: the student's predictions, without gradient; None if the task compares no bags.
    """

    total_B: Tensor
    task_B: Tensor
    consistency_B: Tensor
    num_instances: int
    num_kept: Tensor
    masked_high: Tensor
    masked_low: Tensor
    masked_random: Tensor
    sums_7: Tensor
    predictions_BP: Tensor | None = None


class MHIM:
    """The method's forward pass (paper, equations 4 to 10), for any student and teacher."""

    def __init__(
        self,
        config: TrainConfig,
        student: BagModel,
        teacher: Teacher | None,
        lap: Callable[[str], None] = lambda part: None,
        memory: Memory | None = None,
    ) -> None:
        """Take the networks.

        Args:
            config: the run's settings.
            student: the network to train.
            teacher: the teacher; None if the settings ask for none.
            lap: called with the name of each part of the forward pass when the part is over.
            memory: the last predictions for all training bags, if the task compares a bag with them.
        """
        self.config = config
        self.student = student
        self.teacher = teacher
        self.memory = memory
        self._lap = lap
        self._losses = torch.compile(self._losses_of) if config.compile else self._losses_of
        weights = config.loss.class_weights
        self.class_weights_C = (
            torch.tensor(weights, device=next(student.parameters()).device) if weights else None
        )

    def loss(self, bags: PackedBags, draws: Draws, progress: float) -> StepLoss:
        """Score and mask whole bags, run the student on the kept instances, and form its losses.

        Args:
            bags: whole bags; the student's projection sees only the kept instances.
            draws: the epoch's random streams.
            progress: share of the run's bags already seen, in [0, 1].
        """
        masking = self.config.masking
        numbers = StepNumbers.of(masking, draws, progress).to(bags.features_TD.device)
        return self.loss_by(
            bags, numbers, capacity=most_kept(masking, len(bags.features_TD), len(bags), progress)
        )

    def loss_by(self, bags: PackedBags, step: StepNumbers, *, capacity: int) -> StepLoss:
        """`loss`, with the host's numbers of the step already on the device, except for shapes.

        Args:
            bags: see `loss`; on CUDA padding may follow the last bag.
            step: the ratios and the streams.
            capacity: room for the kept instances: `masking.most_kept`, or more.
        """
        numbers = ops.bag_numbers(bags.offsets_B1, bags.ids_B, step.ratios_4, step.streams_S)
        seen_by_teacher = self.teacher.score(bags, numbers.teacher_dropout_B) if self.teacher else None
        scores_TH = seen_by_teacher.scores_TH if seen_by_teacher else None
        self._lap("teacher")
        salience_TH = ranked(self.config.masking, scores_TH, bags)
        kept, selection = mask_bags(bags, salience_TH, numbers, capacity=capacity)
        self._lap("mask and gather")

        output = precision.call(self.student, bags.features_TD.dtype, kept, numbers.student_dropout_B)
        teacher_BME = seen_by_teacher.embeddings_BME if seen_by_teacher else None
        if self.config.compile and teacher_BME is not None:
            teacher_BME = teacher_BME.clone()  # a compiled backward pass may keep it, but no inference tensor
        truth, predictions_BP = self._truth(output, bags)
        total_B, task_B, consistency_B = self._losses(output, truth, teacher_BME)
        with torch.no_grad():
            masked = (selection.masked_high, selection.masked_low, selection.masked_random)
            counts_4 = torch.stack([kept.offsets_B1[-1], *masked]).double()
            losses_3 = torch.stack([total_B, task_B, consistency_B]).sum(1, dtype=torch.float64)
            sums_7 = torch.cat([counts_4[:1], losses_3, counts_4[1:]])
        return StepLoss(
            total_B=total_B,
            task_B=task_B.detach(),
            consistency_B=consistency_B.detach(),
            num_instances=len(bags.features_TD),
            num_kept=kept.offsets_B1[-1],
            masked_high=selection.masked_high,
            masked_low=selection.masked_low,
            masked_random=selection.masked_random,
            sums_7=sums_7,
            predictions_BP=predictions_BP,
        )

    def _truth(self, output: BagOutput, bags: PackedBags) -> tuple[Truth, Tensor | None]:
        """What is known of bags and of those they are compared with, and what the student says of them."""
        compares_with = self.student.task.compares_with
        if compares_with == "nothing":
            return Truth.of(bags, self.class_weights_C), None
        with torch.no_grad():
            predictions_BP = self.student.predictions(output).detach()
        if compares_with == "step":
            assert bags.targets_BK is not None, "a task that compares bags has targets"
            others = Others.of_step(bags.targets_BK, predictions_BP)
        else:
            assert self.memory is not None, "whoever trains such a task makes its memory"
            others = self.memory.others(bags.ids_B)
        return Truth.of(bags, self.class_weights_C, others), predictions_BP

    def _losses_of(
        self, output: BagOutput, truth: Truth, teacher_BME: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each bag, and its two parts; no shape here depends on the sizes of the bags."""
        task_B = self.student.loss(output, truth)
        if teacher_BME is None or not self.config.loss.alpha:
            return task_B, task_B, torch.zeros_like(task_B)
        consistency_B = consistency(output.embeddings_BME, teacher_BME, self.config.loss.temperature)
        return task_B + self.config.loss.alpha * consistency_B, task_B, consistency_B
