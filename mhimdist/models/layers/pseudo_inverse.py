"""The Moore-Penrose inverse of a landmark attention matrix, approximated by iteration, and its products.

This is the iteration of Razavi et al. (2014), as the authors of Nystromformer use it:

    Z_0 = A^T / c,    Z_(k+1) = Z_k q(A Z_k),    q(P) = (13 - 15 P + 7 P^2 - P^3) / 4

Read as polynomials, it needs no Z at all. With B = A / sqrt(c), every iterate is Z_k = r_k(B^T B) Z_0, and
P_k = r_k(B^T B) B^T B has its own recursion, P_(k+1) = P_k q(P_k). All P_k are symmetric and commute, so an
iteration takes two square products where Z_k and A Z_k take four. A product of Z with a thin matrix applies
the factors q(P_k) one after the other. In exact arithmetic the results are the same; in float32 the products
differ from the authors' by some 1e-5 of their largest value.

Dimensions: H heads, P landmarks, W columns.
"""

from typing import Any

import torch
from torch import Tensor


def inverse_times(matrix_HPP: Tensor, right_HPW: Tensor, num_iterations: int) -> Tensor:
    """Z times columns, H x P x W; differentiable.

    Args:
        matrix_HPP: A of one bag. The scale c of the start is the largest row sum times the largest column
            sum over all heads of the bag; in the authors' code the bags of a batch share it.
        right_HPW: the columns, in A's dtype.
        num_iterations: at least 1.
    """
    scaled_HPP, root = _scaled(matrix_HPP)
    return _Iterations.apply(scaled_HPP, scaled_HPP.mT @ right_HPW / root, num_iterations)


def times_inverse(left_HWP: Tensor, matrix_HPP: Tensor, num_iterations: int) -> Tensor:
    """Rows times Z, H x W x P: the inverse of the transpose is the transpose of the inverse.

    Args:
        left_HWP: the rows, in A's dtype.
        matrix_HPP, num_iterations: see `inverse_times`.
    """
    return inverse_times(matrix_HPP.mT, left_HWP.mT, num_iterations).mT


class PseudoInverse:
    """Z for several products, without gradients."""

    def __init__(self, matrix_HPP: Tensor, num_iterations: int) -> None:
        # Powers of B B^T: rows times Z, the instances' scores, are then as exact as they can be.
        self._scaled_HPP, self._root = _scaled(matrix_HPP)
        self._powers = _powers(self._scaled_HPP.mT, num_iterations)

    def times(self, right_HPW: Tensor) -> Tensor:
        """Z times columns, H x P x W."""
        return self._scaled_HPP.mT @ self._factors_times(right_HPW) / self._root

    def after(self, left_HWP: Tensor) -> Tensor:
        """Rows times Z, H x W x P."""
        return self._factors_times(self._scaled_HPP @ left_HWP.mT / self._root).mT

    def _factors_times(self, v_HPW: Tensor) -> Tensor:
        for power_HPP, square_HPP in self._powers:
            v_HPW = _factor_times(power_HPP, square_HPP, v_HPW)[0]
        return v_HPW


def _scaled(matrix_HPP: Tensor) -> tuple[Tensor, Tensor]:
    """A / sqrt(c), and sqrt(c)."""
    magnitude_HPP = matrix_HPP.abs()
    root = (magnitude_HPP.sum(-1).amax() * magnitude_HPP.sum(-2).amax()).sqrt()
    return matrix_HPP / root, root


def _powers(scaled_HPP: Tensor, num_iterations: int) -> list[tuple[Tensor, Tensor | None]]:
    """P_k and its square per iteration; the last square is not formed."""
    power_HPP = scaled_HPP.mT @ scaled_HPP
    powers: list[tuple[Tensor, Tensor | None]] = []
    for _ in range(num_iterations - 1):
        square_HPP = power_HPP @ power_HPP
        powers.append((power_HPP, square_HPP))
        factor_HPP = torch.sub(7 * power_HPP, square_HPP)
        factor_HPP.diagonal(dim1=-2, dim2=-1).sub_(15)
        power_HPP = torch.baddbmm(power_HPP, square_HPP, factor_HPP, beta=3.25, alpha=0.25)
    return [*powers, (power_HPP, None)]


def _times(power_HPP: Tensor, v_HPW: Tensor) -> Tensor:
    """A symmetric matrix times columns; a single column as a row, which is ten times as fast on a CPU."""
    if v_HPW.shape[-1] == 1:
        return (v_HPW.mT @ power_HPP).mT
    return power_HPP @ v_HPW


def _factor_times(power_HPP: Tensor, square_HPP: Tensor | None, v_HPW: Tensor) -> tuple[Tensor, Tensor]:
    """q(P) v, and the u of `_Iterations`."""
    t_HPW = _times(power_HPP, v_HPW)
    u_HPW = torch.sub(7 * v_HPW, t_HPW)
    pushed_HPW = (
        _times(power_HPP, _times(power_HPP, u_HPW)) if square_HPP is None else _times(square_HPP, u_HPW)
    )
    return pushed_HPW.add_(v_HPW, alpha=13).sub_(t_HPW, alpha=15).mul_(0.25), u_HPW


class _Iterations(torch.autograd.Function):
    """q(P_(n-1)) ... q(P_0) V for P_0 = B^T B.

    One iteration, with S = P P, t = P v and u = 7 v - t:

        v' = (13 v - 15 t + S u) / 4,    P' = (13 P + S (7 P - S - 15)) / 4

    The last iteration needs no P' and forms S u as P (P u).
    """

    @staticmethod
    def forward(ctx: Any, scaled_HPP: Tensor, v_HPW: Tensor, num_iterations: int) -> Tensor:
        saved: list[Tensor | None] = []
        for power_HPP, square_HPP in _powers(scaled_HPP, num_iterations):
            next_HPW, u_HPW = _factor_times(power_HPP, square_HPP, v_HPW)
            saved += [power_HPP, square_HPP, v_HPW, u_HPW]
            v_HPW = next_HPW
        ctx.save_for_backward(scaled_HPP, *saved)
        return v_HPW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Every P is symmetric, so only the symmetric part of its gradient counts.

        The gradient is symmetrised as soon as it is formed: P S and S P then need one product, not two.
        """
        scaled_HPP, *saved = ctx.saved_tensors
        grad_v_HPW = grads[0]
        power_HPP, _, v_HPW, u_HPW = saved[-4:]

        pushed_HPW = _times(power_HPP, u_HPW)
        grad_pushed_HPW = _times(power_HPP, grad_v_HPW * 0.25)
        grad_u_HPW = _times(power_HPP, grad_pushed_HPW)
        grad_t_HPW = torch.add(grad_u_HPW, grad_v_HPW, alpha=3.75).neg_()
        outer_HPP = torch.cat([grad_v_HPW * 0.25, grad_pushed_HPW, grad_t_HPW], dim=-1) @ (
            torch.cat([pushed_HPW, u_HPW, v_HPW], dim=-1).mT
        )
        grad_power_HPP = _symmetric(outer_HPP, 0.5)
        grad_v_HPW = _back_to_v(power_HPP, grad_v_HPW, grad_u_HPW, grad_t_HPW)

        for k in range(len(saved) - 8, -1, -4):
            power_HPP, square_HPP, v_HPW, u_HPW = saved[k : k + 4]
            grad_u_HPW = _times(square_HPP, grad_v_HPW * 0.25)
            grad_t_HPW = torch.add(grad_u_HPW, grad_v_HPW, alpha=3.75).neg_()
            # With G the gradient of P':  dS = -15/4 G + sym(G (7/4 P - 1/2 S)) + sym(dv' u^T) / 4
            by_square_HPP = grad_power_HPP @ square_HPP
            grad_square_HPP = torch.baddbmm(by_square_HPP, grad_power_HPP, power_HPP, beta=-0.5, alpha=1.75)
            grad_square_HPP.baddbmm_(grad_v_HPW, u_HPW.mT, alpha=0.25)
            grad_square_HPP = _symmetric(grad_square_HPP, 0.5).sub_(grad_power_HPP, alpha=3.75)
            # and  dP = 13/4 G + sym(7/4 G S + 2 dS P + dt v^T)
            grad_HPP = by_square_HPP.baddbmm_(grad_square_HPP, power_HPP, beta=1.75, alpha=2)
            grad_HPP.baddbmm_(grad_t_HPW, v_HPW.mT)
            grad_power_HPP = _symmetric(grad_HPP, 0.5).add_(grad_power_HPP, alpha=3.25)
            grad_v_HPW = _back_to_v(power_HPP, grad_v_HPW, grad_u_HPW, grad_t_HPW)
        return 2 * (scaled_HPP @ grad_power_HPP), grad_v_HPW, None


def _symmetric(matrix_HPP: Tensor, factor: float) -> Tensor:
    """The sum of a matrix and its transpose, times a factor."""
    return torch.add(matrix_HPP, matrix_HPP.mT).mul_(factor)


def _back_to_v(power_HPP: Tensor, grad_HPW: Tensor, grad_u_HPW: Tensor, grad_t_HPW: Tensor) -> Tensor:
    """The gradient of v from those of v', u and t."""
    return _times(power_HPP, grad_t_HPW).add_(grad_HPW, alpha=3.25).add_(grad_u_HPW, alpha=7)
