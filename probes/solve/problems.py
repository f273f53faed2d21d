"""A batch of penalised classification problems on the same rows: objective, gradient, Hessian products.

    Σ_row m · loss(B u + b, t) + λ/2 uᵀ M u        (the intercept b, last row of the coefficients, is not penalised)

m says which rows a problem is trained on (all where there is no mask: then the problems are those of one training
set). M is the identity unless the problem's training rows have other standard deviations than the rows B was
standardised with: with D = diag(s_training / s) and w_z = V u, the penalty ‖s_training ∘ w_raw‖² is uᵀ Vᵀ D² V u. So
the fits of all folds, each with the scale of its own training rows, share one B.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.solve.links import Link

WIDE = 16
"""Columns of a matrix product are filled up to a multiple of this: others take up to twice as long."""


@lru_cache
def fast_bfloat16(device: torch.device) -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("amx_tile"))


class Metric(NamedTuple):
    """M = Vᵀ D² V for every fold, taken in this order, so that no rounding makes it indefinite.

    Attributes:
        axes: [d, rank] V.
        ratio: [fold + 1, d] D²; the last row, for `fold` -1, is one.
        diagonal: [fold + 1, rank] of M.
    """

    axes: Float[Tensor, "d rank"]
    ratio: Float[Tensor, "fold d"]
    diagonal: Float[Tensor, "fold rank"]

    @classmethod
    def of(cls, axes: Float[Tensor, "d rank"], ratio: Float[Tensor, "fold d"]) -> Metric:
        """From the axes and D² of every fold."""
        ratio = torch.cat([ratio, ratio.new_ones(1, ratio.shape[1])])
        return cls(axes, ratio, ratio @ axes.square())

    def times(self, u: Float[Tensor, "rank problem cls"], fold: Tensor) -> Float[Tensor, "rank problem cls"]:
        """M u, with the M of each problem's fold."""
        back = product(self.axes, u) * self.ratio[fold].T[:, :, None]
        return product(self.axes.T, back)


def product(
    matrix: Float[Tensor, "m k"], v: Float[Tensor, "k problem cls"]
) -> Float[Tensor, "m problem cls"]:
    """Matrix product over the first dimension."""
    flat = v.flatten(1)
    n = flat.shape[1]
    if n % WIDE:
        flat = torch.nn.functional.pad(flat, (0, WIDE - n % WIDE))
    return (matrix @ flat)[:, :n].reshape(-1, *v.shape[1:])


@dataclass(frozen=True, eq=False)
class Problems:
    """The batch; `part` takes some of it.

    Attributes:
        design: [row, rank + 1] B and a column of ones.
        squares: [rank + 1] squared lengths of its columns.
        target: [row, problem, class].
        penalty: [problem] λ.
        link: the likelihood.
        size: [problem] training rows.
        mask: [row, problem, 1] which rows train, or None for all.
        metric: what makes M of each fold, or None where every M is the identity.
        fold: [problem] the fold whose M each problem has, -1 for the identity.
        rough: the design and its transpose in bfloat16, each in its own order of memory, where products of them are
            much faster, or None. The steps found with them are as good as conjugate gradients need (a tenth of the
            gradient); gradients and objectives never use them.
        near: whether the metrics are so near the identity that Hessian products may do without them: the gradient
            stays exact, so the minimum does too, and the steps are a little less than Newton's.
    """

    design: Float[Tensor, "row coefficient"]
    squares: Float[Tensor, " coefficient"]
    target: Float[Tensor, "row problem cls"]
    penalty: Float[Tensor, " problem"]
    link: Link
    size: Float[Tensor, " problem"]
    mask: Float[Tensor, "row problem 1"] | None = None
    metric: Metric | None = None
    fold: Int[Tensor, " problem"] | None = None
    near: bool = False
    rough: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        rows: Float[Tensor, "row rank"],
        eigenvalues: Float[Tensor, " rank"],
        target: Float[Tensor, "row problem cls"],
        penalty: Float[Tensor, " problem"],
        link: Link,
    ) -> Problems:
        """Problems that are all trained on all rows."""
        n = len(rows)
        design = torch.cat([rows, rows.new_ones(n, 1)], 1)
        rough = None
        if design.dtype == torch.float32 and fast_bfloat16(design.device):
            half = design.bfloat16()
            rough = half, half.T.contiguous()
        squares = torch.cat([eigenvalues, eigenvalues.new_full((1,), float(n))])
        return cls(design, squares, target, penalty, link, torch.full_like(penalty, float(n)), rough=rough)

    def __len__(self) -> int:
        return len(self.penalty)

    def part(self, index: Tensor) -> Problems:
        """Some of the problems."""
        return replace(
            self,
            target=self.target[:, index],
            penalty=self.penalty[index],
            size=self.size[index],
            mask=None if self.mask is None else self.mask[:, index],
            fold=None if self.fold is None else self.fold[index],
        )

    def double(self) -> Problems:
        """The same in float64."""
        return replace(
            self,
            design=self.design.double(),
            rough=None,
            squares=self.squares.double(),
            target=self.target.double(),
            penalty=self.penalty.double(),
            size=self.size.double(),
            mask=None if self.mask is None else self.mask.double(),
            metric=None if self.metric is None else Metric(*(t.double() for t in self.metric)),
        )

    def start(self) -> Float[Tensor, "coefficient problem cls"]:
        """Zero weights, and the intercepts that give the classes their shares."""
        u = self.design.new_zeros(self.design.shape[1], len(self), self.target.shape[2])
        share = self._trained(self.target).sum(0) / self.size[:, None]
        u[-1] = share.clamp_min(1e-6).log() if self.link.softmax else torch.logit(share, eps=1e-6)
        return u

    def scores(self, u: Tensor) -> Float[Tensor, "row problem cls"]:
        """B u + b, of all rows."""
        return product(self.design, u)

    def back(self, v: Tensor) -> Float[Tensor, "coefficient problem cls"]:
        """The design transposed, times [row, problem, class]."""
        return product(self.design.T, v)

    def curved(self, p: Tensor, h: Tensor, along: Tensor) -> Float[Tensor, "coefficient problem cls"]:
        """Bᵀ H B `along`, the loss's part of a Hessian product; in bfloat16 where that is fast."""
        if self.rough is None:
            return self.back(self.curve(p, h, self.scores(along)))
        forth, back = self.rough
        bent = self.curve(p, h, product(forth, along.bfloat16()).float())
        return product(back, bent.bfloat16()).float()

    def penalised(self, u: Tensor) -> Float[Tensor, "coefficient problem cls"]:
        """λ M u, with nothing for the intercept."""
        if self.metric is None or self.fold is None:
            found = u * self.penalty[None, :, None]
            found[-1] = 0
            return found
        found = torch.zeros_like(u)
        found[:-1] = self.metric.times(u[:-1], self.fold) * self.penalty[None, :, None]
        return found

    def roughly_penalised(self, u: Tensor) -> Float[Tensor, "coefficient problem cls"]:
        """λ M u for Hessian products: λ u where M is near the identity."""
        if not self.near:
            return self.penalised(u)
        found = u * self.penalty[None, :, None]
        found[-1] = 0
        return found

    def value(self, f: Tensor, u: Tensor, penalised: Tensor) -> Float[Tensor, " problem"]:
        """The objective, from scores and λ M u."""
        return self.link.loss(f, self.target, self.mask) + (penalised * u).sum((0, 2)) / 2

    def gradient(self, p: Tensor, penalised: Tensor) -> Float[Tensor, "coefficient problem cls"]:
        """Of the objective, from probabilities and λ M u."""
        return self.back(self._trained(p - self.target)) + penalised

    def curvature(self, p: Tensor) -> Float[Tensor, "row problem cls"]:
        """p (1 - p) of the training rows: the diagonal of the loss's Hessian in the scores."""
        return self._trained(p * (1 - p))

    def curve(self, p: Tensor, h: Tensor, v: Tensor) -> Tensor:
        """Hessian of the loss in the scores, times v; `h` is the curvature."""
        return self._trained(self.link.curve(p, v)) if self.link.softmax else h * v

    def preconditioner(self, h: Tensor) -> Float[Tensor, "coefficient problem cls"]:
        """(h̄ e + λ diag M)⁻¹, h̄ the mean curvature over all rows."""
        mean = h.mean(0).clamp_min(1e-12)
        shrink = self.penalty[None].expand(len(self.squares), -1).clone()
        if self.metric is not None and self.fold is not None:
            shrink[:-1] *= self.metric.diagonal[self.fold].T
        shrink[-1] = 0
        return 1 / (mean[None] * self.squares[:, None, None] + shrink[:, :, None])

    def _trained(self, v: Tensor) -> Tensor:
        return v if self.mask is None else v * self.mask
