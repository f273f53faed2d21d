"""Rows of one training set, standardised and rotated to the axes on which every penalised probe is diagonal.

With training rows X [n, d], their mean m and standard deviations s, the standardised rows are Z = (X - m) / s and

    ZᵀZ = V diag(e) Vᵀ        B = Z V        w_z = V u        ‖w_z‖ = ‖u‖        Z w_z = B u

A ridge, logistic or softmax problem in w_z with an L2 penalty is the same problem in u, with the same minimum;
but in u the Gram matrix BᵀB = diag(e) is diagonal, so ridge is a division, and the logistic Hessian, which is
Bᵀ diag(p(1-p)) B + λ, is near a diagonal. One eigendecomposition serves all label vectors, all penalties and all
permuted controls. With fewer rows than dimensions the n-by-n matrix ZZᵀ = U diag(e) Uᵀ is taken instead (dual
form): B = U diag(√e), V = Zᵀ U diag(1/√e), and the parts of w_z outside the span of the rows, which the penalty
sets to zero, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NOTHING = 1e-10
"""Standard deviations below this share of the mean, and eigenvalues below it of the largest, are rounding."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Standardised rows in the eigenbasis of their Gram matrix.

    Attributes:
        mean, std: [d] of the training rows; the standard deviation of a constant feature counts as 1.
        eigenvalues: [rank] of ZᵀZ, falling, those that are rounding left out.
        axes: [d, rank] V, orthonormal columns.
        rows: [row, rank] B = Z V of the training rows; its columns have mean 0 and are orthogonal.
    """

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    eigenvalues: Float[Tensor, " rank"]
    axes: Float[Tensor, "d rank"]
    rows: Float[Tensor, "row rank"]

    @classmethod
    def of(
        cls, x: Float[Tensor, "row d"], *, standardise: bool = True, every_axis: torch.dtype | None = None
    ) -> Spectrum:
        """Factorise training rows, in their own dtype and on their own device.

        Args:
            x: [row, d] float32 or float64. Float64 gives leave-one-out errors to ten digits, float32 is twice as
                fast and gives weights to four.
            standardise: divide by the standard deviation; the mean is taken off in either case.
            every_axis: with at least as many rows as dimensions keep also the axes on which nothing varies. Then any
                orthonormal axes will do that nearly diagonalise the Gram matrix, so they are found in float32, and
                the rows are rotated in this dtype.

        Example:
            >>> spectrum = Spectrum.of(torch.randn(100, 8, dtype=torch.float64))
            >>> spectrum.axes.shape
            torch.Size([8, 8])
        """
        mean, std = scale_of(x)
        if not standardise:
            std = torch.ones_like(mean)
        z = (x - mean) / std
        n, d = z.shape
        if n >= d and every_axis is not None:
            z = z.to(every_axis)
            axes = torch.linalg.eigh((z.T @ z).float())[1].flip(1)
            rows = (z @ axes.to(every_axis)).to(x.dtype)
            return cls(mean, std, rows.square().sum(0), axes.to(x.dtype), rows)
        if n >= d:
            values, axes = torch.linalg.eigh(z.T @ z)
            values, axes = _without_rounding(values, axes, max(n, d))
            return cls(mean, std, values, axes, z @ axes)
        values, left = torch.linalg.eigh(z @ z.T)
        values, left = _without_rounding(values, left, max(n, d))
        root = values.sqrt()
        return cls(mean, std, values, (z.T @ left) / root, left * root)

    @classmethod
    def from_moments(
        cls, mean: Float[Tensor, " d"], scatter: Float[Tensor, "d d"], n: int, *, standardise: bool = True
    ) -> Spectrum:
        """From the mean and the centred scatter Σ (x - m)(x - m)ᵀ of `n` rows that are not at hand (streamed).

        `rows` is then empty [0, rank]; ridge, whitening and discriminants need no more than this.
        """
        variance = scatter.diagonal().clamp_min(0) / max(n, 1)
        std = variance.sqrt() if standardise else torch.ones_like(mean)
        std = torch.where(std <= NOTHING**0.5 * mean.abs(), torch.ones_like(std), std)
        std = torch.where(std == 0, torch.ones_like(std), std)
        values, axes = torch.linalg.eigh(scatter / std / std[:, None])
        values, axes = _without_rounding(values, axes, max(n, len(mean)))
        return cls(mean, std, values, axes, axes.new_zeros(0, len(values)))

    @property
    def rank(self) -> int:
        """Number of directions in which the rows vary."""
        return len(self.eigenvalues)

    def place(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row rank"]:
        """Other rows on the same axes, with the mean and scale of the training rows."""
        return ((x - self.mean) / self.std) @ self.axes

    def weights(
        self, u: Float[Tensor, "rank ..."], intercept: Tensor
    ) -> tuple[Float[Tensor, "d ..."], Tensor]:
        """Weights and intercept over raw activations from those over the axes."""
        flat = (self.axes @ u.flatten(1)) / self.std[:, None]
        shift = self.mean @ flat
        return flat.reshape(-1, *u.shape[1:]), intercept - shift.reshape(intercept.shape)


def scale_of(x: Float[Tensor, "row d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and standard deviation of each feature; that of a constant feature counts as 1."""
    mean = x.mean(0)
    std = (x - mean).square().mean(0).sqrt()
    constant = (std <= NOTHING * mean.abs()) | (std == 0)
    return mean, torch.where(constant, torch.ones_like(std), std)


def _without_rounding(values: Tensor, axes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors, the largest first, without those that are rounding errors of zero."""
    values, axes = values.flip(0), axes.flip(1)
    largest = float(values[0]) if len(values) else 0.0
    least = max(size * torch.finfo(values.dtype).eps * largest, 0.0)
    keep = values > least
    if not bool(keep.any()):  # constant rows: one axis with nothing on it keeps shapes alive
        keep[:1] = True
        values = values.clamp_min(1e-30)
    return values[keep], axes[:, keep]
