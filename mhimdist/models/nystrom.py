"""Self-attention in linear time through landmarks (Nystromformer, Xiong et al. 2021).

Dimensions: L tokens of a bag (the class token first), S tokens with padding, P landmarks, H heads, K width
of a head, E = H * K width of a token.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

RESIDUAL_TAPS = 33


def pseudo_inverse(matrix_HPP: Tensor, num_iterations: int) -> Tensor:
    """The Moore-Penrose inverse of each head's matrix, approached by the iteration of Razavi et al. (2014).

    The start, A^T / (largest row sum x largest column sum), makes it converge. Both sums are the largest
    over all heads, as in the authors' code, but of one bag alone, so that bags do not influence each other.
    """
    magnitude_HPP = matrix_HPP.abs()
    inverse_HPP = matrix_HPP.mT / (magnitude_HPP.sum(-1).amax() * magnitude_HPP.sum(-2).amax())
    one_PP = torch.eye(matrix_HPP.shape[-1], dtype=matrix_HPP.dtype, device=matrix_HPP.device)
    for _ in range(num_iterations):
        product_HPP = matrix_HPP @ inverse_HPP
        residual_HPP = 15 * one_PP - product_HPP @ (7 * one_PP - product_HPP)
        inverse_HPP = 0.25 * inverse_HPP @ (13 * one_PP - product_HPP @ residual_HPP)
    return inverse_HPP


class NystromAttention(nn.Module):
    """Attention of L tokens to each other, softmax(Q K^T) approximated by three thin factors.

        softmax(Q K~^T)  pinv(softmax(Q~ K~^T))  softmax(Q~ K^T)

    The landmarks Q~ and K~ are the means of P segments of the sequence, zero-padded in front to a multiple
    of P. The zeros take part in the last softmax, as in the authors' code. A depth-wise convolution of the
    values along the sequence is added.
    """

    def __init__(self, width: int, num_heads: int, num_landmarks: int, pinv_iterations: int) -> None:
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

    def forward(self, tokens_LE: Tensor) -> tuple[Tensor, Tensor]:
        """What every token gathers, L x E, and the class token's attention to all tokens, H x L."""
        padded_SE, num_padding = self._pad(tokens_LE)
        landmark_keys_HPK, inverse_HPP, spread_HPS = self._landmarks(padded_SE)
        nearness_HLP = torch.softmax(self._queries(tokens_LE) @ landmark_keys_HPK.mT, dim=-1)
        values_HSK = self._values(padded_SE)

        # From right to left: the products of two of the large factors are never formed.
        gathered_HLK = nearness_HLP @ (inverse_HPP @ (spread_HPS @ values_HSK))
        gathered_HLK = gathered_HLK + self.residual(values_HSK[None, :, num_padding:])[0]
        attention_HS = (nearness_HLP[:, :1] @ inverse_HPP @ spread_HPS).squeeze(1)
        return self.output(gathered_HLK.transpose(0, 1).flatten(1)), attention_HS[:, num_padding:]

    def class_token(self, tokens_LE: Tensor) -> tuple[Tensor, Tensor]:
        """What the class token alone gathers, 1 x E, and its attention, H x L, as `forward` gives them.

        One row of the attention is enough, and it meets the tokens before the values' projection: no other
        token's query or value is formed.
        """
        padded_SE, num_padding = self._pad(tokens_LE)
        landmark_keys_HPK, inverse_HPP, spread_HPS = self._landmarks(padded_SE)
        nearness_H1P = torch.softmax(self._queries(tokens_LE[:1]) @ landmark_keys_HPK.mT, dim=-1)
        attention_HS = (nearness_H1P @ inverse_HPP @ spread_HPS).squeeze(1)

        value_HKE = self.qkv.weight.chunk(3)[2].unflatten(0, (self.num_heads, -1))
        gathered_HK = torch.einsum("hke,he->hk", value_HKE, attention_HS @ padded_SE)
        # Of the convolution's window only the half from the class token on holds values.
        window_HWK = self._values(tokens_LE[: RESIDUAL_TAPS // 2 + 1])
        taps_HW = self.residual.weight[:, 0, RESIDUAL_TAPS // 2 :, 0][:, : window_HWK.shape[1]]
        gathered_HK = gathered_HK + torch.einsum("hw,hwk->hk", taps_HW, window_HWK)
        return self.output(gathered_HK.reshape(1, -1)), attention_HS[:, num_padding:]

    def _pad(self, tokens_LE: Tensor) -> tuple[Tensor, int]:
        num_padding = -len(tokens_LE) % self.num_landmarks
        return functional.pad(tokens_LE, (0, 0, num_padding, 0)), num_padding

    def _landmarks(self, padded_SE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The landmarks' keys (H x P x K), the inverse of their attention to each other (H x P x P), and
        their attention to the tokens (H x P x S).
        """
        # The projections are linear, without bias: the mean first, so that P rows are projected, not S.
        means_PE = padded_SE.unflatten(0, (self.num_landmarks, -1)).mean(1)
        queries_HPK, keys_HPK = self._queries(means_PE), self._keys(means_PE)
        near_HPP = torch.softmax(queries_HPK @ keys_HPK.mT, dim=-1)
        spread_HPS = torch.softmax(queries_HPK @ self._keys(padded_SE).mT, dim=-1)
        return keys_HPK, pseudo_inverse(near_HPP, self.pinv_iterations), spread_HPS

    def _queries(self, tokens_LE: Tensor) -> Tensor:
        """H x L x K, divided by the root of K for the products with keys."""
        queries_HLK = self._project(tokens_LE, 0)
        return queries_HLK * queries_HLK.shape[-1] ** -0.5

    def _keys(self, tokens_LE: Tensor) -> Tensor:
        return self._project(tokens_LE, 1)

    def _values(self, tokens_LE: Tensor) -> Tensor:
        return self._project(tokens_LE, 2)

    def _project(self, tokens_LE: Tensor, part: int) -> Tensor:
        """Tokens by the query (0), key (1) or value (2) weights, cut into heads, H x L x K."""
        projected_LE = functional.linear(tokens_LE, self.qkv.weight.chunk(3)[part])
        return projected_LE.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
