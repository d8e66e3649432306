"""DSMIL: an instance classifier, and attention to each class's top instance (Li et al. 2021).

Dimensions: T instances of a batch, R of a block, B bags, C classes, E embedding width, Q query width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mhimdist import ops
from mhimdist.config import models as model_settings
from mhimdist.data.bags import PackedBags
from mhimdist.models.interface import BagModel, BagOutput, Projection, softmax_over_bags
from mhimdist.models.layers.blocks import ROWS, runs_in_blocks
from mhimdist.models.layers.linear import Linear, linear, wide
from mhimdist.tasks import Truth


@dataclass(frozen=True)
class DSMILOutput(BagOutput):
    """The results of both streams; `logits_BC` are the logits of the bag embeddings.

    Attributes:
        instance_logits_BC: the largest logit per class over the bag's instances.
    """

    instance_logits_BC: Tensor


class DSMIL(BagModel):
    """Two streams over the projected instances, both trained on the bag's label.

    One stream classifies the instances and takes the largest logit per class. The other embeds the bag once
    per class c, F_c = sum_i a_ic v(z_i), by attention to the class's top instance t(c),
    a_ic = softmax_i(q(z_i) . q(z_t(c)) / sqrt(Q)), and mixes the C embeddings into C logits.

    An instance's score for masking is its largest logit, not its attention, as in the authors' code. With
    1,024 features, width 512 and two classes it has 872,708 parameters.
    """

    def __init__(self, settings: model_settings.DSMIL, num_features: int, num_outputs: int) -> None:
        """Make the layers; `initialize` draws their weights.

        Args:
            settings, num_features: see `models.build`.
            num_outputs: number O of outputs for a bag.
        """
        super().__init__()
        width, query_dim = settings.hidden_dim, settings.query_dim
        self.projection = Projection(num_features, width, settings.dropout)
        self.instance_head = Linear(width, num_outputs)
        self.query = nn.Sequential(
            Linear(width, query_dim), nn.ReLU(inplace=True), Linear(query_dim, query_dim), nn.Tanh()
        )
        self.value = Linear(width, width)
        self.head = nn.Conv1d(num_outputs, num_outputs, kernel_size=width)

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> DSMILOutput:
        """See `BagModel.forward`; one head of scores, one embedding per class."""
        if runs_in_blocks(bags, dropout_keys_B):
            values_TE, logits_TC, queries_TQ = self._in_blocks(bags)
            top_BC = ops.segment_argmax(logits_TC, bags.offsets_B1)
            top_logits_BC = logits_TC.gather(0, top_BC)
        else:
            hidden_TE = self.projection(bags, dropout_keys_B)
            logits_TC, queries_TQ = self._logits(hidden_TE), wide(self.query(hidden_TE))
            values_TE = self.value.relu(hidden_TE)
            top_BC = ops.segment_argmax(logits_TC, bags.offsets_B1)
            top_logits_BC = self._top_logits(hidden_TE, top_BC)
        attention_TC = self._attention(queries_TQ, top_BC, bags)
        embeddings_BCE = ops.segment_softmax_pool(attention_TC, values_TE, bags.offsets_B1)
        return DSMILOutput(
            # The convolution's kernel is as wide as the embeddings, so it is a linear layer of all of them.
            logits_BC=linear(embeddings_BCE.flatten(1), self.head.weight.flatten(1), self.head.bias),
            embeddings_BME=embeddings_BCE,
            scores_TH=logits_TC.amax(1, keepdim=True),
            instance_logits_BC=top_logits_BC,
        )

    def attention_weights(self, bags: PackedBags, output: BagOutput) -> Tensor:
        """See `BagModel.attention_weights`: the attention to the top instance of each class, T x C."""
        found = [
            (self.instance_head(wide(hidden_RE)), wide(self.query(hidden_RE)))
            for _, hidden_RE in self.projection.blocks(bags)
        ]
        logits_TC, queries_TQ = (torch.cat(parts) for parts in zip(*found, strict=True))
        top_BC = ops.segment_argmax(logits_TC, bags.offsets_B1)
        return softmax_over_bags(self._attention(queries_TQ, top_BC, bags), bags)

    def instance_probabilities(self, bags: PackedBags) -> Tensor:
        """See `BagModel.instance_probabilities`: the stream that classifies the instances."""
        return self._by_head(bags, self.instance_head)

    def _logits(self, hidden_TE: Tensor) -> Tensor:
        """Each instance's logits, T x C, in float32 because they rank; without gradient: few need one."""
        with torch.no_grad():
            if hidden_TE.device.type != "cpu":
                return self.instance_head(wide(hidden_TE))
            return torch.cat([self.instance_head(wide(hidden_RE)) for hidden_RE in hidden_TE.split(ROWS)])

    def _top_logits(self, hidden_TE: Tensor, top_BC: Tensor) -> Tensor:
        """The logits of the top instances, each for its class, B x C, with their gradients."""
        top_BCE = wide(hidden_TE.index_select(0, top_BC.flatten())).unflatten(0, top_BC.shape)
        return (top_BCE * self.instance_head.weight).sum(2) + self.instance_head.bias

    def _in_blocks(self, bags: PackedBags) -> tuple[Tensor, Tensor, Tensor]:
        """Values, logits and queries, made from each block while it is in the cache."""
        values_TE = bags.features_TD.new_empty(bags.num_rows, self.value.out_features)
        logits, queries = [], []
        for rows, hidden_RE in self.projection.blocks(bags):
            values_TE[rows] = self.value.relu(hidden_RE)
            logits.append(self.instance_head(wide(hidden_RE)))
            queries.append(wide(self.query(hidden_RE)))
        return values_TE, torch.cat(logits), torch.cat(queries)

    def _attention(self, queries_TQ: Tensor, top_BC: Tensor, bags: PackedBags) -> Tensor:
        """Scaled products of each query with its bag's top instances' queries, before the softmax, T x C."""
        num_bags, num_classes = top_BC.shape
        tops_JQ = queries_TQ[top_BC.flatten()]  # J = B x C
        products_TJ = linear(queries_TQ, tops_JQ) * queries_TQ.shape[1] ** -0.5
        if num_bags == 1:
            return products_TJ
        # Products with other bags' instances are few and discarded: this needs no loop and waits for nothing.
        row_T = torch.arange(len(queries_TQ), device=queries_TQ.device)
        bag_T = torch.bucketize(row_T, bags.offsets_B1[1:-1], right=True)
        column_TC = bag_T[:, None] * num_classes + torch.arange(num_classes, device=bag_T.device)
        return products_TJ.gather(1, column_TC)

    def loss(self, output: BagOutput, truth: Truth) -> Tensor:
        """The mean of the two streams' losses, shape B.

        Args:
            output, truth: see `BagModel.loss`.
        """
        assert isinstance(output, DSMILOutput), "it is this network's own output"
        streams = (output.logits_BC, output.instance_logits_BC)
        return torch.stack([self._task_loss(logits_BC, truth) for logits_BC in streams]).mean(0)

    def predictions(self, output: BagOutput) -> Tensor:
        """The mean of the two streams' predictions, B x P."""
        assert isinstance(output, DSMILOutput), "it is this network's own output"
        streams = (output.logits_BC, output.instance_logits_BC)
        return torch.stack([self.task.predict(logits_BC, self.task_values) for logits_BC in streams]).mean(0)
