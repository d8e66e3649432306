"""The teacher, which scores the instances and follows the student (paper, section 3.4, Table 5)."""

import copy

import torch
from torch import Tensor

from mhimdist.config import method as config
from mhimdist.data.bags import PackedBags
from mhimdist.method import precision
from mhimdist.method.flat_parameters import flatten_parameters
from mhimdist.models import BagModel, BagOutput


class Teacher:
    """A network that scores whole bags without gradients.

    Attributes:
        network: the student itself if the settings' kind is "student_copy", otherwise a separate network.
    """

    def __init__(self, settings: config.Teacher, student: BagModel, pretrained: BagModel | None) -> None:
        """Start from the pre-trained network, from a copy of the student, or as the student itself.

        Args:
            settings: which of these to start from, and how the teacher moves.
            student: the network with which training begins, on its device.
            pretrained: the first stage's network; required if the settings start from it.
        """
        self.settings = settings
        if settings.kind == "student_copy":
            self.network = student
            return
        self.network = copy.deepcopy(student)
        if settings.is_pretrained:
            assert pretrained is not None, "training makes the first stage before the second"
            self.network.load_state_dict(pretrained.state_dict())
        self.network.requires_grad_(False)

    @property
    def is_own_network(self) -> bool:
        """Whether the teacher has weights apart from the student's."""
        return self.settings.kind != "student_copy"

    @torch.inference_mode()
    def score(self, bags: PackedBags, dropout_keys_B: Tensor) -> BagOutput:
        """Scores and embeddings of whole bags (paper, equation 5), in the dtype of their features.

        Args:
            bags: whole bags.
            dropout_keys_B: the bags' keys, used only if the settings ask for dropout in the teacher.
        """
        keys_B = dropout_keys_B if self.settings.dropout else None
        return precision.call(self.network, bags.features_TD.dtype, bags, keys_B)

    def momentum(self, *, progress: float, num_bags: int) -> float:
        """The momentum m of a step: the momentum of one bag, raised to the number of bags.

        So the teacher moves equally far in an epoch, whatever the size of a step.

        Args:
            progress: share of the run's bags seen before the step, in [0, 1].
            num_bags: bags of the step, over all workers.
        """
        return self.settings.momentum.at(progress) ** num_bags

    @torch.no_grad()
    def follow(self, student: BagModel, share: float | Tensor) -> None:
        """Move towards the student: theta_t <- theta_t + share (theta_s - theta_t), with share = 1 - m.

        Args:
            student: the network after its optimiser step.
            share: a number, or a float32 scalar on the device.
        """
        if self.settings.has_momentum:
            flatten_parameters(self.network).values.lerp_(flatten_parameters(student).values, share)
