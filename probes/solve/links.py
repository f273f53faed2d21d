"""The two likelihoods of classification probes, as what a Newton method asks of them.

With scores f [row, problem, class] (one class column for two classes) and targets t of the same shape,

    two classes    p = σ(f)          loss = Σ_row log(1 + exp f) - t f       Hessian in f: p(1-p)
    softmax        p = softmax(f)    loss = Σ_row logsumexp f - Σ_c t f      Hessian in f: diag(p) - p pᵀ

The gradient in f is p - t for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Link:
    """A likelihood; `softmax` False is the logistic one of two classes."""

    softmax: bool

    def probability(self, f: Float[Tensor, "row problem cls"]) -> Float[Tensor, "row problem cls"]:
        """p, of the shape of the scores."""
        return f.softmax(2) if self.softmax else f.sigmoid()

    def loss(
        self,
        f: Float[Tensor, "row problem cls"],
        target: Float[Tensor, "row problem cls"],
        mask: Tensor | None,
    ) -> Float[Tensor, " problem"]:
        """Sum of the negative log-likelihoods over the rows (those of the mask), in nats."""
        if self.softmax:
            each = f.logsumexp(2, keepdim=True) - (target * f).sum(2, keepdim=True)
        else:
            each = torch.nn.functional.softplus(f) - target * f
        return (each if mask is None else each * mask).sum((0, 2))

    def curve(
        self, p: Float[Tensor, "row problem cls"], v: Float[Tensor, "row problem cls"]
    ) -> Float[Tensor, "row problem cls"]:
        """Hessian of the loss in the scores, times v."""
        if self.softmax:
            pv = p * v
            return pv - p * pv.sum(2, keepdim=True)
        return p * (1 - p) * v
