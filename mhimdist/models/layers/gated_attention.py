"""The gated attention of CLAM and DTFD-MIL (Ilse et al. 2018, with biases).

Dimensions: T instances of a batch, B1 = B + 1 offsets of B bags, E embedding width, H heads of scores.
"""

import torch
from torch import Tensor, nn

from mhimdist.models.layers.linear import Linear, wide
from mhimdist.ops import keyed_dropout


class GatedAttention(nn.Module):
    """Scores of each instance, w_h(tanh(V z) * sigmoid(U z)) for every head h; all layers have biases.

    AB-MIL's attention (`abmil.Attention`) has no biases and a choice of activation.
    """

    def __init__(self, width: int, attention_dim: int, *, num_heads: int = 1, dropout: float = 0.0) -> None:
        """Make the layers.

        Args:
            width: E.
            attention_dim: width of the two branches.
            num_heads: H.
            dropout: share dropped of each branch, in [0, 1).
        """
        super().__init__()
        self.branch = Linear(width, attention_dim)
        self.gate = Linear(width, attention_dim)
        self.score = Linear(attention_dim, num_heads)
        self.dropout = dropout

    def forward(self, hidden_TE: Tensor, offsets_B1: Tensor, dropout_keys_B: Tensor | None = None) -> Tensor:
        """Scores before the softmax, T x H in float32.

        Args:
            hidden_TE: packed instances.
            offsets_B1: int64 offsets of the bags.
            dropout_keys_B: keys of the bags' dropout streams, for both branches; None for no dropout.
        """
        branch, gate = torch.tanh(self.branch(hidden_TE)), torch.sigmoid(self.gate(hidden_TE))
        branch = keyed_dropout(branch, self.dropout, offsets_B1, dropout_keys_B, site=1)
        gate = keyed_dropout(gate, self.dropout, offsets_B1, dropout_keys_B, site=2)
        return self.score(wide(branch * gate))
