"""Max- and mean-pooling: a bag's logits are the maximum (or the mean) of its instances' logits."""

from torch import Tensor

from mhimdist import ops
from mhimdist.config import models as model_settings
from mhimdist.data.bags import PackedBags
from mhimdist.models.interface import BagModel, BagOutput, Projection
from mhimdist.models.layers.linear import Linear, wide


class PoolingMIL(BagModel):
    """A projection and a linear head on every instance, pooled class by class; has no scores to mask by."""

    def __init__(self, settings: model_settings.Pooling, num_features: int, num_outputs: int) -> None:
        """Make the layers; `initialize` draws their weights.

        Args:
            settings, num_features: see `models.build`.
            num_outputs: number O of outputs for a bag.
        """
        super().__init__()
        self.projection = Projection(num_features, settings.hidden_dim, settings.dropout)
        self.head = Linear(settings.hidden_dim, num_outputs)
        self.pool = ops.segment_max if settings.name == "max_pooling" else ops.segment_mean

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> BagOutput:
        """See `BagModel.forward`; the embedding is the mean of the projected instances."""
        hidden_TE = wide(self.projection(bags, dropout_keys_B))
        logits_BC = self.pool(self.head(hidden_TE), bags.offsets_B1)
        embedding_BE = ops.segment_mean(hidden_TE, bags.offsets_B1)
        return BagOutput(logits_BC, embedding_BE[:, None], None)

    def instance_probabilities(self, bags: PackedBags) -> Tensor:
        """See `BagModel.instance_probabilities`: the instance's logits, which the model pools."""
        return self._by_head(bags, self.head)
