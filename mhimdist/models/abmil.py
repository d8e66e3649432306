"""AB-MIL: attention-based pooling of instances (Ilse et al. 2018; MHIM-MIL paper, equation 1)."""

import torch
from torch import Tensor, nn

from mhimdist import config, ops
from mhimdist.data.bags import PackedBags
from mhimdist.models.interface import BagModel, BagOutput, Projection


class Attention(nn.Module):
    """A score for each instance: w(act(V z)), or gated w(act(V z) * sigmoid(U z)); no biases."""

    def __init__(self, settings: config.AttentionMIL) -> None:
        super().__init__()
        self.branch = nn.Linear(settings.hidden_dim, settings.attention_dim, bias=False)
        self.gate = (
            nn.Linear(settings.hidden_dim, settings.attention_dim, bias=False) if settings.gated else None
        )
        self.score = nn.Linear(settings.attention_dim, 1, bias=False)
        self.activation = torch.relu if settings.activation == "relu" else torch.tanh

    def forward(self, hidden_TE: Tensor) -> Tensor:
        """Scores before the softmax, T x 1."""
        attention = self.activation(self.branch(hidden_TE))
        if self.gate is not None:
            attention = attention * torch.sigmoid(self.gate(hidden_TE))
        return self.score(attention)


class AttentionMIL(BagModel):
    """Projection, attention, softmax over the bag, weighted mean, linear head.

    With 1,024 features, width 512 and two classes it has 591,490 parameters, gated 657,026.
    """

    def __init__(self, settings: config.AttentionMIL, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.projection = Projection(num_features, settings.hidden_dim, settings.dropout)
        self.attention = Attention(settings)
        self.head = nn.Linear(settings.hidden_dim, num_classes)

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> BagOutput:
        """See `BagModel.forward`; one head of scores, one embedding a bag."""
        hidden_TE = self.projection(bags, dropout_keys_B)
        scores_TH = self.attention(hidden_TE)
        embedding_BE = ops.segment_softmax_pool(scores_TH.squeeze(1), hidden_TE, bags.offsets_B1)
        return BagOutput(self.head(embedding_BE), embedding_BE[:, None], scores_TH)
