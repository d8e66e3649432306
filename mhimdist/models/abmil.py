"""AB-MIL: attention-based pooling of instances (Ilse et al. 2018; MHIM-MIL paper, equation 1).

Dimensions: T instances of a batch, R of a block, B bags, E embedding width.
"""

import torch
from torch import Tensor, nn

from mhimdist import ops
from mhimdist.config import models as model_settings
from mhimdist.data.bags import PackedBags
from mhimdist.models.interface import BagModel, BagOutput, Projection
from mhimdist.models.layers.blocks import BagPool, runs_in_blocks
from mhimdist.models.layers.linear import Linear, wide


class Attention(nn.Module):
    """One score per instance: w(act(V z)), or gated w(act(V z) * sigmoid(U z)); no biases."""

    def __init__(self, settings: model_settings.AttentionMIL) -> None:
        super().__init__()
        width, attention_dim = settings.hidden_dim, settings.attention_dim
        self.branch = Linear(width, attention_dim, bias=False)
        self.gate = Linear(width, attention_dim, bias=False) if settings.gated else None
        self.score = Linear(attention_dim, 1, bias=False)
        self.is_relu = settings.activation == "relu"

    def forward(self, hidden_TE: Tensor) -> Tensor:
        """Scores before the softmax, T x 1, in float32 because they rank the instances."""
        attention = self.branch.relu(hidden_TE) if self.is_relu else torch.tanh(self.branch(hidden_TE))
        if self.gate is not None:
            attention = attention * torch.sigmoid(self.gate(hidden_TE))
        return self.score(wide(attention))

    def pool(self, hidden_TE: Tensor, offsets_B1: Tensor) -> tuple[Tensor, Tensor]:
        """The bags' embeddings, B x 1 x E, and the scores that weight their instances, T x 1."""
        if hidden_TE.device.type != "cpu":
            scores_T1 = self(hidden_TE)
            return ops.segment_softmax_pool(scores_T1, hidden_TE, offsets_B1), scores_T1
        dtype = hidden_TE.dtype
        return ops.attention_pool(
            hidden_TE,
            offsets_B1,
            branch_AE=self.branch.weight.to(dtype),
            gate_AE=self.gate.weight.to(dtype) if self.gate is not None else None,
            score_1A=self.score.weight,
            is_relu=self.is_relu,
        )


class AttentionMIL(BagModel):
    """Projection, attention, softmax over the bag, weighted mean, linear head.

    With 1,024 features, width 512 and two classes it has 591,490 parameters; the gated variant has 657,026.
    """

    def __init__(self, settings: model_settings.AttentionMIL, num_features: int, num_outputs: int) -> None:
        """Make the layers; `initialize` draws their weights.

        Args:
            settings, num_features: see `models.build`.
            num_outputs: number O of outputs for a bag.
        """
        super().__init__()
        self.projection = Projection(num_features, settings.hidden_dim, settings.dropout)
        self.attention = Attention(settings)
        self.head = Linear(settings.hidden_dim, num_outputs)

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> BagOutput:
        """See `BagModel.forward`; one head of scores, one embedding per bag."""
        if runs_in_blocks(bags, dropout_keys_B):
            embedding_B1E, scores_T1 = self._in_blocks(bags)
        else:
            hidden_TE = self.projection(bags, dropout_keys_B)
            embedding_B1E, scores_T1 = self.attention.pool(hidden_TE, bags.offsets_B1)
        return BagOutput(self.head(embedding_B1E[:, 0]), embedding_B1E, scores_T1)

    def instance_probabilities(self, bags: PackedBags) -> Tensor:
        """See `BagModel.instance_probabilities`: what the model says of a bag of that instance alone."""
        return self._by_head(bags, self.head)

    def _in_blocks(self, bags: PackedBags) -> tuple[Tensor, Tensor]:
        """The embeddings and the scores, with at most one block of projected instances at a time."""
        pool, scores = BagPool(bags), []
        for rows, hidden_RE in self.projection.blocks(bags):
            scores.append(self.attention(hidden_RE))
            pool.add(rows, scores[-1], hidden_RE)
        return pool.result(), torch.cat(scores)
