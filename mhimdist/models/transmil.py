"""TransMIL: a transformer over a bag's instances and a class token (Shao et al. 2021).

Dimensions: T instances of a batch, N of one bag, L = N + 1 tokens (the class token first), B bags, E width
of a token, H heads.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from mhimdist.config import models as model_settings
from mhimdist.data.bags import PackedBags
from mhimdist.models.interface import BagModel, BagOutput, Projection
from mhimdist.models.layers.depthwise import depthwise
from mhimdist.models.layers.linear import Linear, wide
from mhimdist.models.layers.nystrom import NystromAttention, Room
from mhimdist.ops import keyed_dropout, square_convolution

LARGEST_KERNEL = 7
ROWS = 1024
"""Tokens per part on a CPU while gradients are off: intermediate results exist for no more at a time."""


class PositionEncoding(nn.Module):
    """PPEG: three depth-wise convolutions over the instances laid out as a square, plus the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv7 = nn.Conv2d(width, width, 7, groups=width)
        self.conv5 = nn.Conv2d(width, width, 5, groups=width)
        self.conv3 = nn.Conv2d(width, width, 3, groups=width)

    def forward(self, tokens_NE: Tensor) -> Tensor:
        """The instance tokens with their position in the square encoded, N x E.

        The square has sides of ceil(sqrt(N)); a repetition of the first tokens completes it. A square smaller
        than 7 x 7 is filled with zero tokens to 49 tokens, which are laid out as 7 x 7: its layout is lost.
        """
        return torch.cat(list(self.in_blocks(tokens_NE)))

    def in_blocks(self, tokens_NE: Tensor, rows_at_once: int | None = None) -> Iterator[Tensor]:
        """`forward`, in parts of whole rows of the square.

        Args:
            tokens_NE: the instance tokens, in the order of the bag.
            rows_at_once: approximate number of tokens per part; by default all.
        """
        num_tokens = len(tokens_NE)
        side = math.ceil(math.sqrt(num_tokens))
        kernel_EJI, bias_E = self._merged(tokens_NE.dtype)
        if side < LARGEST_KERNEL:
            square_SE = torch.cat([tokens_NE, tokens_NE[: side**2 - num_tokens]])
            square_SE = functional.pad(square_SE, (0, 0, 0, LARGEST_KERNEL**2 - len(square_SE)))
            encoded = depthwise(square_SE.unflatten(0, (LARGEST_KERNEL, -1)), kernel_EJI, bias_E)
            yield encoded.flatten(0, 1)[:num_tokens] + tokens_NE
            return
        height = side if rows_at_once is None else max(rows_at_once // side, 1)
        halo = LARGEST_KERNEL // 2
        for top in range(0, math.ceil(num_tokens / side), height):
            first, last = max(top - halo, 0), min(top + height + halo, side)
            around_SE = tokens_NE[first * side : last * side]
            missing = (last - first) * side - len(around_SE)
            if missing:
                around_SE = torch.cat([around_SE, tokens_NE[:missing]])
            encoded = depthwise(around_SE.unflatten(0, (-1, side)), kernel_EJI, bias_E)[top - first :]
            own_RE = tokens_NE[top * side : (top + height) * side]
            yield encoded.flatten(0, 1)[: len(own_RE)] + own_RE

    def on_device(self, tokens_TE: Tensor, offsets_2: Tensor) -> Tensor:
        """`forward` for a bag whose size only the device knows, T x E; rows after the bag become zero.

        Args:
            tokens_TE: the instance tokens and any rows after them.
            offsets_2: int64, 0 and the number of instances.
        """
        return square_convolution(tokens_TE, *self._merged(tokens_TE.dtype), offsets_2)

    def _merged(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The summed kernels and biases: convolutions are linear, so one does the work of all three."""
        kernel_E1JI = (
            self.conv7.weight
            + functional.pad(self.conv5.weight, (1, 1, 1, 1))
            + functional.pad(self.conv3.weight, (2, 2, 2, 2))
        )
        convs = (self.conv7, self.conv5, self.conv3)
        bias_E = torch.stack([conv.bias for conv in convs if conv.bias is not None]).sum(0)
        return kernel_E1JI.squeeze(1).to(dtype), bias_E.to(dtype)


class Layer(nn.Module):
    """A residual layer: layer normalisation, Nystrom attention, dropout, added to the tokens."""

    def __init__(self, settings: model_settings.TransMIL, site: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.hidden_dim)
        self.attention = NystromAttention(
            settings.hidden_dim, settings.num_heads, settings.num_landmarks, settings.pinv_iterations
        )
        self.dropout = settings.attention_dropout
        self.site = site

    def forward(
        self,
        token_1E: Tensor,
        instances_NE: Tensor,
        dropout_key_1: Tensor | None,
        room: Room | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The class token and the instances after the layer, and the attention of `NystromAttention`.

        On a CPU, if gradients are off and nothing is dropped, the instances are changed in place, part by
        part.

        Args:
            token_1E: the class token.
            instances_NE: the bag's other tokens.
            dropout_key_1: key of the bag's dropout stream; None for no dropout.
            room: see `NystromAttention.in_blocks`.
        """
        in_place = runs_in_parts(instances_NE) and dropout_key_1 is None
        tokens = self._normalised(token_1E, instances_NE.split(ROWS) if in_place else [instances_NE])
        gathered, attention_HL = self.attention.in_blocks(
            1 + len(instances_NE), tokens, ROWS if in_place else None, room
        )
        first_LE = next(gathered)
        if not in_place or len(first_LE) > 1:
            gathered_LE = self._drop(first_LE, dropout_key_1, room)
            gathered_1E, gathered_NE = gathered_LE.split([1, len(instances_NE)])
            return token_1E + gathered_1E, instances_NE + gathered_NE, attention_HL
        start = 0
        for gathered_RE in gathered:
            instances_NE[start : start + len(gathered_RE)] += gathered_RE
            start += len(gathered_RE)
        return token_1E + first_LE, instances_NE, attention_HL

    def class_token(
        self,
        token_1E: Tensor,
        num_instances: int,
        instances: Iterable[Tensor],
        dropout_key_1: Tensor | None,
        room: Room | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The class token alone after the layer, 1 x E, and its attention, H x L.

        Args:
            token_1E, dropout_key_1, room: see `forward`.
            num_instances: N.
            instances: the bag's other tokens, in parts of any size.
        """
        tokens = self._normalised(token_1E, instances)
        gathered_1E, attention_HL = self.attention.class_token_of(1 + num_instances, tokens, room)
        return token_1E + self._drop(gathered_1E, dropout_key_1), attention_HL

    def _normalised(self, token_1E: Tensor, instances: Iterable[Tensor]) -> Iterator[Tensor]:
        for tokens_RE in chain([token_1E], instances):
            yield normalise(self.norm, tokens_RE)

    def _drop(self, values_LE: Tensor, dropout_key_1: Tensor | None, room: Room | None = None) -> Tensor:
        if dropout_key_1 is None:
            return values_LE
        offsets_2 = (
            torch.arange(2, device=values_LE.device) * len(values_LE) if room is None else room.offsets_2
        )
        return keyed_dropout(values_LE, self.dropout, offsets_2, dropout_key_1, self.site)


class TransMIL(BagModel):
    """Projection, two Nystrom layers with a position encoding between them, and a head on the class token.

    This is the MHIM variant: the class token starts from N(0, 1) (MHIM-MIL paper, equations 2 and 3), unless
    the settings say 1e-6, the standard deviation in the authors' standalone TransMIL. The scores of the
    instances are the class token's attention to them in each head. This attention is the product of the
    Nystrom factors: it has no softmax of its own and may be negative. Scores are formed only while gradients
    are off, as they are for a teacher. The result depends on the order of the instances.

    Bags run one at a time. A step of one bag on a GPU reads no size on the host: the bag then lies in room
    for more instances, and the device finds landmarks and square. With 1,024 features, width 512 and two
    classes it has 2,672,146 parameters.
    """

    def __init__(self, settings: model_settings.TransMIL, num_features: int, num_outputs: int) -> None:
        """Make the layers; `initialize` draws their weights.

        Args:
            settings, num_features: see `models.build`.
            num_outputs: number O of outputs for a bag.
        """
        super().__init__()
        width = settings.hidden_dim
        self.score_layer, self.class_token_std = settings.score_layer, settings.class_token_std
        self.projection = Projection(num_features, width, settings.dropout)
        self.class_token = nn.Parameter(torch.empty(1, width))
        self.layer1 = Layer(settings, site=1)
        self.position = PositionEncoding(width)
        self.layer2 = Layer(settings, site=2)
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, num_outputs)

    def initialize(self, generator: torch.Generator) -> None:
        """Initialise as every model does, and draw the class token from a normal distribution around 0."""
        super().initialize(generator)
        nn.init.normal_(self.class_token, std=self.class_token_std, generator=generator)

    def waits_for_sizes(self, num_bags: int) -> bool:
        """See `BagModel.waits_for_sizes`; several bags run one by one, so the host must know their rows."""
        return num_bags > 1

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> BagOutput:
        """See `BagModel.forward`; one head of scores per attention head, one embedding per bag."""
        if len(bags) == 1 and bags.features_TD.device.type != "cpu":
            return self._output([self._embed_on_device(bags, dropout_keys_B)])
        bags = bags.without_padding()  # the square's layout needs the sizes: the only read of a step
        hidden_TE = self.projection(bags, dropout_keys_B)
        hidden = hidden_TE.split(bags.sizes())
        keys = dropout_keys_B.split(1) if dropout_keys_B is not None else [None] * len(bags)
        return self._output(list(map(self._embed, hidden, keys)))

    def _output(self, embedded: list[tuple[Tensor, Tensor | None]]) -> BagOutput:
        embeddings, scores = zip(*embedded, strict=True)
        embeddings_BE = torch.cat(embeddings)
        scores_TH = None if torch.is_grad_enabled() else torch.cat(scores)
        return BagOutput(self.head(embeddings_BE), embeddings_BE[:, None], scores_TH)

    def _embed_on_device(self, bag: PackedBags, dropout_key_1: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`_embed` for a bag with rows after its instances, whose number nothing waits for."""
        features_TD = bag.features_TD
        if torch.is_grad_enabled():
            # The gradient of the projection adds up products with all rows, and zero times NaN is NaN.
            is_instance_T = torch.arange(len(features_TD), device=features_TD.device) < bag.offsets_B1[1]
            bag = replace(bag, features_TD=torch.where(is_instance_T[:, None], features_TD, 0))
        room = Room.of(bag.offsets_B1, len(features_TD), self.layer1.attention.num_landmarks)
        return self._embed(self.projection(bag, dropout_key_1), dropout_key_1, room)

    def _embed(
        self, hidden_NE: Tensor, dropout_key_1: Tensor | None, room: Room | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The embedding of one bag, 1 x E, and the scores of its instances, N x H."""
        token_1E, tokens_NE, attention1_HL = self.layer1(
            self.class_token.to(hidden_NE.dtype), hidden_NE, dropout_key_1, room
        )
        if room is None:
            encoded = self.position.in_blocks(tokens_NE, 4 * ROWS if runs_in_parts(tokens_NE) else None)
        else:
            encoded = iter([self.position.on_device(tokens_NE, room.bag_offsets_2)])
        token_1E, attention2_HL = self.layer2.class_token(
            token_1E, len(tokens_NE), encoded, dropout_key_1, room
        )
        embedding_1E = normalise(self.norm, wide(token_1E))
        attention_HL = (attention1_HL, attention2_HL)[self.score_layer]
        return embedding_1E, None if attention_HL is None else attention_HL[:, 1:].T


def runs_in_parts(tokens: Tensor) -> bool:
    """Whether to work on some tokens after the other: on a CPU, without gradients."""
    return tokens.device.type == "cpu" and not torch.is_grad_enabled()


def normalise(norm: nn.LayerNorm, tokens_LE: Tensor) -> Tensor:
    """Layer normalisation in the tokens' dtype, with statistics in at least float32."""
    dtype = tokens_LE.dtype
    return functional.layer_norm(
        tokens_LE, norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps
    )
