"""DSMIL: an instance classifier beside attention to each class's top instance (Li et al. 2021).

Dimensions: T instances of a batch, N of one bag, B bags, C classes, E embedding width, Q query width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mhimdist import config, ops
from mhimdist.data.bags import PackedBags
from mhimdist.models.interface import BagModel, BagOutput, Projection


@dataclass(frozen=True)
class DSMILOutput(BagOutput):
    """A bag's view by both streams; `logits_BC` are those of the bag embeddings.

    Attributes:
        instance_logits_BC: the largest logit that an instance of the bag has for each class.
    """

    instance_logits_BC: Tensor


class DSMIL(BagModel):
    """Two streams over the projected instances, both trained on the bag's label.

    One classifies instances and takes the largest logit of each class. The other embeds the bag once for
    every class c, F_c = sum_i a_ic v(z_i), by attention to the class's top instance t(c),
    a_ic = softmax_i(q(z_i) . q(z_t(c)) / sqrt(Q)), and mixes the C embeddings into C logits.

    Instances are masked by their largest logit, not by the attention, as in the authors' code. With 1,024
    features, width 512 and two classes it has 872,708 parameters.
    """

    def __init__(self, settings: config.DSMIL, num_features: int, num_classes: int) -> None:
        super().__init__()
        width, query_dim = settings.hidden_dim, settings.query_dim
        self.projection = Projection(num_features, width, settings.dropout)
        self.instance_head = nn.Linear(width, num_classes)
        self.query = nn.Sequential(
            nn.Linear(width, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh()
        )
        self.value = nn.Linear(width, width)
        self.head = nn.Conv1d(num_classes, num_classes, kernel_size=width)

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> DSMILOutput:
        """See `BagModel.forward`; one head of scores, one embedding for each class."""
        hidden_TE = self.projection(bags, dropout_keys_B)
        instance_logits_TC = self.instance_head(hidden_TE)
        top_BC = ops.segment_argmax(instance_logits_TC, bags.offsets_B1)

        attention_TC = self._attention(hidden_TE, top_BC, bags)
        values_TE = functional.relu(self.value(hidden_TE))
        embeddings = [
            ops.segment_softmax_pool(attention_T, values_TE, bags.offsets_B1)
            for attention_T in attention_TC.unbind(1)
        ]
        embeddings_BCE = torch.stack(embeddings, dim=1)
        return DSMILOutput(
            logits_BC=self.head(embeddings_BCE).squeeze(2),
            embeddings_BME=embeddings_BCE,
            scores_TH=instance_logits_TC.amax(1, keepdim=True),
            instance_logits_BC=instance_logits_TC.gather(0, top_BC),
        )

    def _attention(self, hidden_TE: Tensor, top_BC: Tensor, bags: PackedBags) -> Tensor:
        """Scaled products of every query with those of its bag's top instances, before the softmax."""
        queries_TQ = self.query(hidden_TE)
        queries_of_bags = queries_TQ.split(bags.sizes_B.tolist())
        scale = queries_TQ.shape[1] ** -0.5
        return torch.cat(
            [
                queries_NQ @ top_CQ.T * scale
                for queries_NQ, top_CQ in zip(queries_of_bags, queries_TQ[top_BC], strict=True)
            ]
        )

    def classification_loss(
        self, output: BagOutput, labels_B: Tensor, class_weights_C: Tensor | None = None
    ) -> Tensor:
        """The mean of the two streams' cross-entropies, shape B."""
        assert isinstance(output, DSMILOutput)
        losses = [
            functional.cross_entropy(logits_BC, labels_B, class_weights_C, reduction="none")
            for logits_BC in (output.logits_BC, output.instance_logits_BC)
        ]
        return torch.stack(losses).mean(0)

    def probabilities(self, output: BagOutput) -> Tensor:
        """The mean of the two streams' softmaxes, B x C."""
        assert isinstance(output, DSMILOutput)
        logits_2BC = torch.stack([output.logits_BC, output.instance_logits_BC])
        return torch.softmax(logits_2BC, dim=2).mean(0)
