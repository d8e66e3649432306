"""The interface of all bag models: `BagModel`, its `BagOutput`, and the `Projection` that they share.

Dimensions: T instances of a batch, B bags, C classes, D input features, E embedding width, H heads of
scores, M embeddings per bag (1, or one per class).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mhimdist import ops
from mhimdist.data.bags import PackedBags
from mhimdist.models.layers.blocks import blocks
from mhimdist.models.layers.linear import Linear, projection, wide
from mhimdist.tasks import Task, Truth


@dataclass(frozen=True)
class BagOutput:
    """The results of a model for packed bags.

    Attributes:
        logits_BC: the outputs for each bag that the task makes predictions of, such as a logit per class.
        embeddings_BME: the bag embeddings that the consistency loss compares.
        scores_TH: instance scores before the softmax, the higher the more salient. None if the model has no
            scores to mask by, and for TransMIL while gradients are on, because only a teacher's scores are
            used.
    """

    logits_BC: Tensor
    embeddings_BME: Tensor
    scores_TH: Tensor | None


class BagModel(nn.Module, ABC):
    """A network that predicts bags; the bags of a batch never influence each other.

    Attributes:
        task: what the outputs mean.
        task_values: what the task learns besides the network, shape V; None if it learns nothing.
    """

    projection: "Projection"
    task: Task
    task_values: nn.Parameter | None

    def __init__(self) -> None:
        """Take no task yet; `models.build` gives one."""
        super().__init__()
        self.register_parameter("task_values", None)

    @abstractmethod
    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> BagOutput:
        """Predict packed bags, with dropout if the bags' dropout keys are given."""

    def loss(self, output: BagOutput, truth: Truth) -> Tensor:
        """The loss of each bag, shape B.

        Args:
            output: the results of the model for the bags.
            truth: what is known of the bags.
        """
        return self._task_loss(output.logits_BC, truth)

    def predictions(self, output: BagOutput) -> Tensor:
        """The task's predictions for each bag, B x P, such as class probabilities."""
        return self.task.predict(output.logits_BC, self.task_values)

    def _task_loss(self, outputs_BO: Tensor, truth: Truth) -> Tensor:
        return self.task.loss(outputs_BO, truth, self.task_values)

    def attention_weights(self, bags: PackedBags, output: BagOutput) -> Tensor | None:
        """The weight of each instance in its bag, T x H, for pictures and not for training.

        By default the softmax of `scores_TH` over each bag. Every column adds up to 1 over a bag.

        Args:
            bags: whole bags.
            output: the results of the model for them, made without gradients.

        Returns:
            The weights, in float32 at least; None if the model has none.
        """
        return None if output.scores_TH is None else softmax_over_bags(output.scores_TH, bags)

    def instance_probabilities(self, bags: PackedBags) -> Tensor | None:
        """The task's predictions for each instance alone, T x P; None if the model does not define them.

        Made without gradients, for pictures and not for training.
        """
        return None

    def _by_head(self, bags: PackedBags, head: nn.Module) -> Tensor:
        """The predictions of a head on each projected instance, T x P, with one block projected at a time."""
        blocks = (head(wide(hidden_RE)) for _, hidden_RE in self.projection.blocks(bags))
        return torch.cat([self.task.predict(outputs_RO, self.task_values) for outputs_RO in blocks])

    def waits_for_sizes(self, num_bags: int) -> bool:
        """Whether a forward pass of that many bags reads their sizes on the host.

        Such a pass cannot be recorded as a CUDA graph.
        """
        return False

    def clip_groups(self) -> Sequence[Iterable[nn.Parameter]]:
        """All parameters, in groups whose gradient norms are clipped separately; by default one group."""
        return [self.parameters()]

    def initialize(self, generator: torch.Generator) -> None:
        """Draw Xavier-normal weights and set biases to zero, as the authors initialise every linear layer.

        Convolutions start as in torch, uniform in +-1/sqrt(fan-in), because the authors leave them so.
        """
        for module in self.modules():
            match module:
                case nn.Linear():
                    nn.init.xavier_normal_(module.weight, generator=generator)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                case nn.LayerNorm():
                    module.reset_parameters()
                case nn.Conv1d() | nn.Conv2d():
                    bound = module.weight[0].numel() ** -0.5
                    for parameter in module.parameters():
                        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def softmax_over_bags(scores_TH: Tensor, bags: PackedBags) -> Tensor:
    """The softmax of each column of scores over each bag, T x H in at least float32, without gradient."""
    columns = [ops.segment_softmax(wide(scores_T), bags.offsets_B1) for scores_T in scores_TH.unbind(1)]
    return torch.stack(columns, dim=1)


class Projection(nn.Module):
    """Projects each instance's features to the model's width: linear layer, ReLU, dropout."""

    def __init__(self, num_features: int, hidden_dim: int, dropout: float, *, bias: bool = True) -> None:
        """Make the linear layer.

        Args:
            num_features: D.
            hidden_dim: E.
            dropout: share of the projected values that is dropped, in [0, 1).
            bias: whether the linear layer has a bias.
        """
        super().__init__()
        self.linear = Linear(num_features, hidden_dim, bias=bias)
        self.dropout = dropout

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None) -> Tensor:
        """Projected instances, T x E."""
        return projection(bags, self.linear, self.dropout, dropout_keys_B)

    def blocks(self, bags: PackedBags) -> Iterator[tuple[slice, Tensor]]:
        """The rows of each block, one block after the other, and their projection without dropout."""
        for rows in blocks(bags):
            yield rows, self.linear.relu(bags.block(rows))
