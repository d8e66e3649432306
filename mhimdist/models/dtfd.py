"""DTFD-MIL: classifies random pseudo-bags, then the bag by features distilled from them (Zhang et al. 2022).

Dimensions: T instances of a batch, B bags, P pseudo-bags of all bags, B1 and P1 their offsets, G pseudo-bags
of one bag, C classes, E embedding width, Z distilled features of all bags.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from mhimdist import ops
from mhimdist.config import models as model_settings
from mhimdist.data.bags import PackedBags
from mhimdist.models.interface import BagModel, BagOutput, Projection
from mhimdist.models.layers.gated_attention import GatedAttention
from mhimdist.models.layers.linear import Linear, linear
from mhimdist.ops.draws import Draws, instance_words, mix
from mhimdist.tasks import Truth

CUT_SITE = 3


@dataclass(frozen=True)
class DTFDOutput(BagOutput):
    """The second tier's results for packed bags, and the first tier's for their pseudo-bags.

    Attributes:
        pseudo_logits_PC: class logits of the pseudo-bags, grouped by bag; on CUDA padding may follow them.
        pseudo_offsets_B1: int64 offsets of the bags among the pseudo-bags.
    """

    pseudo_logits_PC: Tensor
    pseudo_offsets_B1: Tensor


@dataclass(frozen=True)
class Cut:
    """Bags cut into pseudo-bags.

    Attributes:
        order_T: int64 rows of the batch, grouped by pseudo-bag; any padding stays behind them.
        offsets_P1: int64 offsets of the pseudo-bags in `order_T`. On CUDA pseudo-bags without instances may
            follow the last bag's.
        offsets_B1: int64 offsets of the bags among the pseudo-bags.
    """

    order_T: Tensor
    offsets_P1: Tensor
    offsets_B1: Tensor


def cut(bags: PackedBags, num_pseudo_bags: int, keys_B: Tensor) -> Cut:
    """Cut each bag at random into pseudo-bags; their sizes differ by at most 1, and no bag's is empty.

    All numbers are computed where the bags are. On CUDA P is `num_pseudo_bags` per bag, which the host knows
    without waiting; whatever the bags do not fill is padding.

    Args:
        bags: whole bags; a bag of fewer than `num_pseudo_bags` instances has one pseudo-bag per instance.
        num_pseudo_bags: pseudo-bags per bag.
        keys_B: int64 keys of the bags' streams; a bag's cut depends on nothing else.
    """
    words_T = instance_words(keys_B, bags.offsets_B1, bags.num_rows).squeeze(1)
    row_T = torch.arange(bags.num_rows, device=words_T.device)
    # Padding counts as bag B, so it stays last.
    bag_T = torch.bucketize(row_T, bags.offsets_B1[1:], right=True)
    shuffled_T = torch.argsort(words_T, stable=True)
    order_T = shuffled_T[torch.argsort(bag_T[shuffled_T], stable=True)]

    parts_B = bags.sizes_B.clamp_max(num_pseudo_bags)
    offsets_B1 = _offsets(parts_B)
    is_cpu = words_T.device.type == "cpu"
    num_parts = int(offsets_B1[-1]) if is_cpu else len(bags) * num_pseudo_bags
    bag_P = _bag_of(num_parts, offsets_B1)
    part_P = torch.arange(num_parts, device=bag_P.device) - offsets_B1[bag_P]
    parts_P = parts_B[bag_P]
    sizes_P = (bags.sizes_B[bag_P] + parts_P - 1 - part_P) // parts_P
    return Cut(order_T, _offsets(torch.where(part_P < parts_P, sizes_P, 0)), offsets_B1)


def _offsets(sizes_N: Tensor) -> Tensor:
    return functional.pad(sizes_N.cumsum(0), (1, 0))


def _bag_of(num_rows: int, offsets_B1: Tensor) -> Tensor:
    """The bag of each row, int64; the last bag for padding."""
    row_T = torch.arange(num_rows, device=offsets_B1.device)
    return torch.bucketize(row_T, offsets_B1[1:-1], right=True)


class DTFD(BagModel):
    """Two tiers of gated attention: the first over each pseudo-bag's instances, the second over the bag.

    The second tier sees the features that are distilled from the pseudo-bags. An instance's class activation
    is softmax(W a_i z_i), with the first tier's attention a and head W (without the head's bias); the
    activation of the last class ranks the instances. The second tier's loss also reaches the projection,
    through the distilled features.

    With 1,024 features, widths 512 and 128 and two classes it has 789,254 parameters.
    """

    def __init__(self, settings: model_settings.DTFD, num_features: int, num_outputs: int) -> None:
        """Make the layers; `initialize` draws their weights.

        Args:
            settings, num_features: see `models.build`.
            num_outputs: number O of outputs for a bag.
        """
        super().__init__()
        self.settings = settings
        width, attention_dim = settings.hidden_dim, settings.attention_dim
        self.projection = Projection(num_features, width, settings.dropout, bias=False)
        self.pseudo_attention = GatedAttention(width, attention_dim)
        self.pseudo_head = Linear(width, num_outputs)
        self.attention = GatedAttention(width, attention_dim)
        self.head = Linear(width, num_outputs)

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> DTFDOutput:
        """See `BagModel.forward`; no scores to mask by, one embedding per bag.

        The dropout keys decide the cut into pseudo-bags, so it differs from epoch to epoch. Without keys a
        bag is always cut in the same way. On CUDA the host waits for nothing.
        """
        pseudo, hidden_TE, scores_T, attended_PE = self._first_tier(bags, dropout_keys_B)
        rows_Z = self._distilled_rows(hidden_TE, scores_T, pseudo)
        distilled_ZE = attended_PE if rows_Z is None else hidden_TE[rows_Z]
        offsets_B1 = pseudo.offsets_B1 * self._num_distilled
        embedding_BE = ops.segment_softmax_pool(
            self.attention(distilled_ZE, offsets_B1).squeeze(1), distilled_ZE, offsets_B1
        )
        return DTFDOutput(
            logits_BC=self.head(embedding_BE),
            embeddings_BME=embedding_BE[:, None],
            scores_TH=None,
            pseudo_logits_PC=self.pseudo_head(attended_PE),
            pseudo_offsets_B1=pseudo.offsets_B1,
        )

    def clip_groups(self) -> Sequence[Iterable[nn.Parameter]]:
        """One group per tier, as the authors give each its own optimiser; the projection is in the first."""
        first = (self.projection, self.pseudo_attention, self.pseudo_head)
        own = [] if self.task_values is None else [self.task_values]
        return [
            chain.from_iterable(part.parameters() for part in first),
            chain(self.attention.parameters(), self.head.parameters(), own),
        ]

    def attention_weights(self, bags: PackedBags, output: BagOutput) -> Tensor:
        """See `BagModel.attention_weights`: how much of an instance is in the bag's embedding, T x 1.

        With AFS it is the attention within the pseudo-bag times that of the second tier to the pseudo-bag.
        Otherwise it is the second tier's attention to the distilled instances, and 0 for all others.
        """
        pseudo, hidden_TE, scores_T, attended_PE = self._first_tier(bags, None)
        rows_Z = self._distilled_rows(hidden_TE, scores_T, pseudo)
        distilled_ZE = attended_PE if rows_Z is None else hidden_TE[rows_Z]
        offsets_B1 = pseudo.offsets_B1 * self._num_distilled
        second_Z = ops.segment_softmax(self.attention(distilled_ZE, offsets_B1).squeeze(1), offsets_B1)
        if rows_Z is None:
            within_T = ops.segment_softmax(scores_T, pseudo.offsets_P1)
            ordered_T = within_T * second_Z[_bag_of(len(within_T), pseudo.offsets_P1)]
        else:  # an instance may be the largest and the smallest of its pseudo-bag
            ordered_T = torch.zeros_like(scores_T).index_add(0, rows_Z, second_Z)
        return torch.zeros_like(ordered_T).index_copy(0, pseudo.order_T, ordered_T)[:, None]

    def instance_probabilities(self, bags: PackedBags) -> Tensor:
        """See `BagModel.instance_probabilities`: what the model says of a bag of that instance alone."""
        return self._by_head(bags, self.head)

    @property
    def _num_distilled(self) -> int:
        """Features that the second tier sees of each pseudo-bag."""
        return 2 if self.settings.distillation == "MaxMinS" else 1

    def _first_tier(
        self, bags: PackedBags, dropout_keys_B: Tensor | None
    ) -> tuple[Cut, Tensor, Tensor, Tensor]:
        """The pseudo-bags, their instances projected, T x E, and scored, T, and their embeddings, P x E."""
        if dropout_keys_B is None:
            keys_B = Draws(seed=0, epoch=0).keys(bags.ids_B, "pseudo_bags")
        else:
            keys_B = mix(dropout_keys_B + CUT_SITE)
        pseudo = cut(bags, self.settings.num_pseudo_bags, keys_B)
        hidden_TE = self.projection(bags, dropout_keys_B)[pseudo.order_T]
        scores_T = self.pseudo_attention(hidden_TE, pseudo.offsets_P1).squeeze(1)
        attended_PE = ops.segment_softmax_pool(scores_T, hidden_TE, pseudo.offsets_P1)
        return pseudo, hidden_TE, scores_T, attended_PE

    def _distilled_rows(self, hidden_TE: Tensor, scores_T: Tensor, pseudo: Cut) -> Tensor | None:
        """The instances that the second tier sees, Z, in the order of the pseudo-bags.

        None if it sees the pseudo-bags' embeddings instead.
        """
        if self.settings.distillation == "AFS":
            return None
        with torch.no_grad():  # the activations only rank
            attention_T = ops.segment_softmax(scores_T, pseudo.offsets_P1)
            activation_TC = linear(attention_T[:, None] * hidden_TE, self.pseudo_head.weight)
            # The softmax of a single output is 1, whatever the output.
            shares_TC = activation_TC if activation_TC.shape[1] == 1 else torch.softmax(activation_TC, dim=1)
            last_T1 = shares_TC[:, -1:]
            rows = [ops.segment_argmax(last_T1, pseudo.offsets_P1)]
            if self.settings.distillation == "MaxMinS":
                rows.append(ops.segment_argmax(-last_T1, pseudo.offsets_P1))
        # A pseudo-bag without instances has no such row. It is padding of the second tier, whatever it takes.
        return torch.cat(rows, dim=1).flatten().clamp_min(0)

    def loss(self, output: BagOutput, truth: Truth) -> Tensor:
        """The mean loss of a bag's pseudo-bags, which share its label, plus that of the bag itself, shape B.

        Args:
            output, truth: see `BagModel.loss`.
        """
        assert isinstance(output, DTFDOutput), "it is this network's own output"
        bag_P = _bag_of(len(output.pseudo_logits_PC), output.pseudo_offsets_B1)
        pseudo_loss_P = self._task_loss(output.pseudo_logits_PC, truth.repeated(bag_P))
        pseudo_loss_B = ops.segment_mean(pseudo_loss_P, output.pseudo_offsets_B1)
        return pseudo_loss_B + self._task_loss(output.logits_BC, truth)
