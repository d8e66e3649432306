"""Self-attention in linear time through landmarks (Nystromformer, Xiong et al. 2021).

Dimensions: L tokens of a bag (the class token first), S tokens with padding, P landmarks, H heads, K width
of a head, E = H * K width of a token.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from mhimdist.models.layers.block_attention import attend, attend_both, attend_weighted
from mhimdist.models.layers.depthwise import depthwise
from mhimdist.models.layers.linear import linear
from mhimdist.models.layers.pseudo_inverse import PseudoInverse, inverse_times, times_inverse

RESIDUAL_TAPS = 33
_FAR, _FAR_COLUMNS = -(2.0**100), 8


@dataclass(frozen=True)
class Room:
    """Where a sequence of a length that only the device knows lies in a larger one, whose length is fixed.

    The larger sequence has P - 1 zeros, the class token, T instances and rows after them. Of the zeros, the
    last -L mod P take part, as in a sequence of known length. All other rows are outside: no landmark is a
    mean of them, no softmax over tokens sees them, and no gradient reaches them.

    Attributes:
        bag_offsets_2: int64, 0 and the number of instances, L - 1.
        offsets_2: int64, 0 and L.
        landmark_rows: rows of which a landmark is the mean, an int64 scalar.
        is_landmarks_PS: whether a row is one of a landmark's.
        is_outside_S1: whether a row takes no part.
    """

    bag_offsets_2: Tensor
    offsets_2: Tensor
    landmark_rows: Tensor
    is_landmarks_PS: Tensor
    is_outside_S1: Tensor

    @classmethod
    def of(cls, bag_offsets_2: Tensor, num_rows: int, num_landmarks: int) -> "Room":
        """Find the sequence.

        Args:
            bag_offsets_2: int64, 0 and the number of instances, on the device.
            num_rows: T, at least the number of instances.
            num_landmarks: P.
        """
        device = bag_offsets_2.device
        offsets_2 = bag_offsets_2 + torch.arange(2, device=device)
        num_tokens = offsets_2[1]
        landmark_rows = (num_tokens + (num_landmarks - 1)) // num_landmarks
        num_zeros = landmark_rows * num_landmarks - num_tokens
        places_S = torch.arange(1 - num_landmarks, num_rows + 1, device=device) + num_zeros
        landmarks_S = places_S // landmark_rows  # floored: -1 or less for zeros that take no part
        is_landmarks_PS = landmarks_S == torch.arange(num_landmarks, device=device)[:, None]
        is_outside_S1 = ~is_landmarks_PS.any(0)[:, None]
        return cls(bag_offsets_2, offsets_2, landmark_rows, is_landmarks_PS, is_outside_S1)

    def means(self, padded_SE: Tensor, dtype: torch.dtype) -> Tensor:
        """The mean of each landmark's rows, P x E: a product, whose sums have the same order in every run."""
        return (self.is_landmarks_PS.to(padded_SE.dtype) @ padded_SE).to(dtype) / self.landmark_rows

    def apart(self, queries_HPK: Tensor, keys_HSK: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys with more columns, whose product is 0, but so low for rows outside that exp is 0.

        The attention then needs no mask, which would be one more pass over its matrix. The columns are eight,
        because products of 16-bit numbers are slow on rows that do not start at multiples of 16 bytes.
        """
        ones_HPJ = queries_HPK.new_ones(1).expand(*queries_HPK.shape[:2], _FAR_COLUMNS)
        far_S1 = keys_HSK.new_zeros(self.is_outside_S1.shape).masked_fill_(self.is_outside_S1, _FAR)
        far_HSJ = far_S1.expand(*keys_HSK.shape[:2], _FAR_COLUMNS)
        return torch.cat([queries_HPK, ones_HPJ], dim=2), torch.cat([keys_HSK, far_HSJ], dim=2)


@dataclass(frozen=True)
class _Landmarks:
    """The landmarks of a bag, in float32 at least.

    Attributes:
        queries_HPK, keys_HPK: queries and keys, both divided by the root of K for products with tokens.
        near_HPP: softmax(Q~ K~^T).
        class_token_H1P: the class token's row of softmax(Q K~^T).
    """

    queries_HPK: Tensor
    keys_HPK: Tensor
    near_HPP: Tensor
    class_token_H1P: Tensor


class NystromAttention(nn.Module):
    """Attention of L tokens to each other: softmax(Q K^T), approximated by three thin factors.

        softmax(Q K~^T)  pinv(softmax(Q~ K~^T))  softmax(Q~ K^T)

    The landmarks Q~ and K~ are the means of P segments of the sequence, which is zero-padded in front to a
    multiple of P. The zeros take part in the last softmax, as in the authors' code. A depth-wise convolution
    of the values along the sequence is added.

    No product of two of the factors is formed, and the two large factors are formed one block at a time.
    Computations on the landmarks alone are in at least float32, whatever the dtype of the tokens.
    """

    def __init__(self, width: int, num_heads: int, num_landmarks: int, pinv_iterations: int) -> None:
        """Make the layers.

        Args:
            width: E, a multiple of the number of heads.
            num_heads: H.
            num_landmarks: P.
            pinv_iterations: iterations that approximate the pseudo-inverse, at least 1.
        """
        super().__init__()
        self.num_heads = num_heads
        self.num_landmarks = num_landmarks
        self.pinv_iterations = pinv_iterations
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.residual = nn.Conv2d(
            num_heads,
            num_heads,
            (RESIDUAL_TAPS, 1),
            padding=(RESIDUAL_TAPS // 2, 0),
            groups=num_heads,
            bias=False,
        )

    def forward(self, *tokens_LE: Tensor) -> tuple[Tensor, Tensor | None]:
        """The values that every token gathers, L x E, and the class token's attention to all tokens, H x L.

        A teacher scores by the attention, which is formed only while gradients are off and is None otherwise.

        Args:
            tokens_LE: the sequence, whole or in parts.
        """
        gathered, attention_HL = self.in_blocks(sum(map(len, tokens_LE)), tokens_LE)
        return torch.cat(list(gathered)), attention_HL

    def in_blocks(
        self,
        num_tokens: int,
        tokens_LE: Iterable[Tensor],
        rows_at_once: int | None = None,
        room: Room | None = None,
    ) -> tuple[Iterator[Tensor], Tensor | None]:
        """`forward`, for a sequence that comes and goes in parts.

        Args:
            num_tokens: L; with room T + 1.
            tokens_LE: parts of the sequence, of any size.
            rows_at_once: most tokens per returned part; by default all in one. If there is more than one
                part, the first holds the class token alone.
            room: where the tokens are if only the device knows their number. The results for rows after them
                then mean nothing, and their gradients must be zero.
        """
        padded_SE, num_padding = self._pad(num_tokens, tokens_LE, room)
        dtype = padded_SE.dtype
        marks = self._landmarks(padded_SE, num_padding, room)
        queries_HPK = marks.queries_HPK.to(dtype)
        keys_HSK, values_HSK = self._project(padded_SE, 1), self._project(padded_SE, 2)
        if room is not None:
            queries_HPK, keys_HSK = room.apart(queries_HPK, keys_HSK)
        attention_HL = None
        if torch.is_grad_enabled():
            spread_HPK = attend(queries_HPK, keys_HSK, values_HSK).to(marks.near_HPP.dtype)
            mixed_HPK = inverse_times(marks.near_HPP, spread_HPK, self.pinv_iterations)
        else:
            inverse = PseudoInverse(marks.near_HPP, self.pinv_iterations)
            weights_HP = inverse.after(marks.class_token_H1P).squeeze(1)
            spread_HPK, attention_HS = attend_both(weights_HP, queries_HPK, keys_HSK, values_HSK)
            mixed_HPK = inverse.times(spread_HPK.to(weights_HP.dtype))
            attention_HL = attention_HS[:, num_padding:]

        def gathered() -> Iterator[Tensor]:
            for start, stop in _ranges(num_padding, len(padded_SE), rows_at_once):
                queries_HRK = self._project(padded_SE[start:stop], 0)
                gathered_HRK = attend(queries_HRK, marks.keys_HPK.to(dtype), mixed_HPK.to(dtype))
                gathered_RE = gathered_HRK.transpose(0, 1).flatten(1) + self._residual(
                    values_HSK, start, stop
                )
                yield linear(gathered_RE, self.output.weight, self.output.bias)

        return gathered(), attention_HL

    def class_token(self, *tokens_LE: Tensor) -> tuple[Tensor, Tensor]:
        """The values that the class token gathers, 1 x E, and its attention, H x L, as in `forward`.

        One row of the attention is enough, and it weights the tokens before they are projected to values. So
        no other token's query is formed, and no values but those in the convolution's window.
        """
        return self.class_token_of(sum(map(len, tokens_LE)), tokens_LE)

    def class_token_of(
        self, num_tokens: int, tokens_LE: Iterable[Tensor], room: Room | None = None
    ) -> tuple[Tensor, Tensor]:
        """`class_token`, for a sequence that comes in parts; the arguments are those of `in_blocks`."""
        padded_SE, num_padding = self._pad(num_tokens, tokens_LE, room)
        marks = self._landmarks(padded_SE, num_padding, room)
        weights_H1P = times_inverse(marks.class_token_H1P, marks.near_HPP, self.pinv_iterations)
        queries_HPK, keys_HSK = marks.queries_HPK.to(padded_SE.dtype), self._project(padded_SE, 1)
        if room is not None:
            queries_HPK, keys_HSK = room.apart(queries_HPK, keys_HSK)
        attention_HS = attend_weighted(weights_H1P.squeeze(1), queries_HPK, keys_HSK)
        value_HKE = self.qkv.weight.chunk(3)[2].unflatten(0, (self.num_heads, -1))
        context_HE = (attention_HS.to(padded_SE.dtype) @ padded_SE).to(value_HKE.dtype)
        gathered_HK = torch.einsum("hke,he->hk", value_HKE, context_HE)
        # Only the half of the convolution's window from the class token on holds values.
        window_WE = padded_SE[num_padding:][: RESIDUAL_TAPS // 2 + 1]
        window_HWK = self._project(window_WE, 2).to(value_HKE.dtype)
        taps_HW = self.residual.weight[:, 0, RESIDUAL_TAPS // 2 :, 0][:, : len(window_WE)]
        gathered_HK = gathered_HK + torch.einsum("hw,hwk->hk", taps_HW, window_HWK)
        gathered_1E = gathered_HK.reshape(1, -1).to(padded_SE.dtype)
        output_1E = linear(gathered_1E, self.output.weight, self.output.bias)
        return output_1E, attention_HS[:, num_padding:]

    def _pad(self, num_tokens: int, tokens_LE: Iterable[Tensor], room: Room | None) -> tuple[Tensor, int]:
        """The whole sequence with zeros in front, and the number of zeros."""
        num_padding = -num_tokens % self.num_landmarks if room is None else self.num_landmarks - 1
        parts = iter(tokens_LE)
        first_LE = next(parts)
        zeros = first_LE.new_zeros(num_padding, first_LE.shape[1])
        if room is not None:
            # Not a product: what is outside may be NaN.
            return torch.where(room.is_outside_S1, 0, torch.cat([zeros, first_LE, *parts])), num_padding
        if torch.is_grad_enabled():
            return torch.cat([zeros, first_LE, *parts]), num_padding
        padded_SE = first_LE.new_empty(num_padding + num_tokens, first_LE.shape[1])
        start = 0
        for part_LE in chain([zeros, first_LE], parts):
            padded_SE[start : start + len(part_LE)] = part_LE
            start += len(part_LE)
        return padded_SE, num_padding

    def _landmarks(self, padded_SE: Tensor, num_padding: int, room: Room | None) -> _Landmarks:
        # The projections are linear, without bias: with the mean first, P rows are projected instead of S.
        exact = torch.promote_types(padded_SE.dtype, torch.float32)
        if room is None:
            means_PE = padded_SE.unflatten(0, (self.num_landmarks, -1)).mean(1).to(exact)
        else:
            means_PE = room.means(padded_SE, exact)
        token_1E = padded_SE[num_padding : num_padding + 1].to(exact)
        queries_HPK, keys_HPK = self._project(means_PE, 0), self._project(means_PE, 1)
        scale = queries_HPK.shape[-1] ** -0.5
        scaled_HPK = keys_HPK * scale
        return _Landmarks(
            queries_HPK=queries_HPK * scale,
            keys_HPK=scaled_HPK,
            near_HPP=torch.softmax(queries_HPK @ scaled_HPK.mT, dim=-1),
            class_token_H1P=torch.softmax(self._project(token_1E, 0) @ scaled_HPK.mT, dim=-1),
        )

    def _residual(self, values_HSK: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the convolution of the values along the sequence."""
        first = max(start - RESIDUAL_TAPS // 2, 0)
        values_WE = values_HSK[:, first : stop + RESIDUAL_TAPS // 2].transpose(0, 1).flatten(1)
        kernel_EJ1 = self.residual.weight[:, 0].repeat_interleave(values_HSK.shape[-1], dim=0)
        convolved_WE = depthwise(values_WE[:, None], kernel_EJ1.to(values_WE.dtype)).squeeze(1)
        return convolved_WE[start - first : stop - first]

    def _project(self, tokens_LE: Tensor, part: int) -> Tensor:
        """The tokens' queries (part 0), keys (1) or values (2), split into heads, H x L x K."""
        projected_LE = linear(tokens_LE, self.qkv.weight.chunk(3)[part])
        return projected_LE.unflatten(1, (self.num_heads, -1)).transpose(0, 1)


def _ranges(start: int, stop: int, rows_at_once: int | None) -> Iterator[tuple[int, int]]:
    """Ranges of nearly equal size; if there is more than one, the first row comes before them alone."""
    if rows_at_once is None or stop - start <= rows_at_once:
        yield start, stop
        return
    yield start, start + 1
    num_ranges = math.ceil((stop - start - 1) / rows_at_once)
    size = math.ceil((stop - start - 1) / num_ranges)
    for first in range(start + 1, stop, size):
        yield first, min(first + size, stop)
