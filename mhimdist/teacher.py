"""The teacher: who scores the instances, and how it follows the student (paper, section 3.4, Table 5)."""

import copy

import torch
from torch import Tensor

from mhimdist import config, precision
from mhimdist.data.bags import PackedBags
from mhimdist.draws import Draws
from mhimdist.models import BagModel, BagOutput
from mhimdist.optimizer import flat


class Teacher:
    """A network that scores whole bags without gradients.

    Attributes:
        network: the student itself for a student copy, else a network of the teacher's own.
    """

    def __init__(self, settings: config.Teacher, student: BagModel, pretrained: BagModel | None) -> None:
        """Start from the pre-trained network, from a copy of the student, or as the student itself."""
        self.settings = settings
        if settings.kind == "student_copy":
            self.network = student
            return
        self.network = copy.deepcopy(student)
        if settings.is_pretrained:
            assert pretrained is not None, "the engine makes the first stage before the second"
            self.network.load_state_dict(pretrained.state_dict())
        self.network.requires_grad_(False)

    @property
    def is_own_network(self) -> bool:
        """Whether the teacher has weights apart from the student's."""
        return self.settings.kind != "student_copy"

    @torch.inference_mode()
    def score(self, bags: PackedBags, draws: Draws) -> BagOutput:
        """Scores and embeddings of whole bags (paper, equation 5), in the dtype of their features."""
        keys_B = draws.keys(bags.ids_B, "teacher_dropout") if self.settings.dropout else None
        return precision.call(self.network, bags.features_TD.dtype, bags, keys_B)

    @torch.no_grad()
    def follow(
        self, student: BagModel, *, progress: float, num_bags: int, unless: Tensor | None = None
    ) -> float:
        """Move towards the student: theta_t <- m theta_t + (1 - m) theta_s; gives m.

        Args:
            student: the network after its optimiser step.
            progress: share of the run's bags seen before the step, in [0, 1].
            num_bags: bags of the step over all workers; the momentum of a bag is raised to it, so that the
                teacher moves as far in an epoch whatever the size of a step.
            unless: on the device, 1 where the teacher should stay after all, else 0.
        """
        momentum = self.settings.momentum.at(progress) ** num_bags
        if self.settings.has_momentum:
            own, of_student = flat(self.network).values, flat(student).values
            if unless is None:
                own.lerp_(of_student, 1 - momentum)
            else:
                own.lerp_(of_student, (1 - unless) * (1 - momentum))
        return momentum
