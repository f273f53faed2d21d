"""Ridge regression of many targets at many penalties from one spectrum, with exact leave-one-out errors.

    u = (diag(e) + λ)⁻¹ Bᵀ (y - ȳ)        r = y - ȳ - B u        h_i = 1/n + Σ_j B_ij² / (e_j + λ)

The prediction of row i by the fit to all *other* rows is y_i - r_i / (1 - h_i), exactly (Allen 1974; the mean and
the scale of the features are those of all rows). So a penalty is chosen by what the fit says of rows it has not
seen, without fitting again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from probes.solve.spectrum import Spectrum


class Ridge(NamedTuple):
    """Fits of all targets, each at the penalty that its leave-one-out error chose.

    Attributes:
        u: [rank, target] weights over the axes of the spectrum.
        intercept: [target] on those axes (the mean of the target).
        penalty: [target] λ that was chosen.
        left_out: [target, row] prediction of each row by the fit without it, at that λ.
        errors: [penalty, target] mean squared leave-one-out error.
    """

    u: Float[Tensor, "rank target"]
    intercept: Float[Tensor, " target"]
    penalty: Float[Tensor, " target"]
    left_out: Float[Tensor, "target row"]
    errors: Float[Tensor, "penalty target"]


def ridge(spectrum: Spectrum, target: Float[Tensor, "target row"], penalties: Sequence[float]) -> Ridge:
    """Fit every target at every λ of `penalties` (scikit-learn's `alpha`), and keep the best λ of each.

    Example:
        >>> found = ridge(Spectrum.of(x), y[None], [0.1, 1.0, 10.0])
        >>> w, b = spectrum.weights(found.u, found.intercept)
    """
    rows, n = spectrum.rows, len(spectrum.rows)
    mean = target.mean(1)
    centred = (target - mean[:, None]).T
    along = rows.T @ centred
    squares = rows.square()
    errors, best = [], None
    chosen = torch.zeros_like(mean)
    for value in penalties:
        shrunk = 1 / (spectrum.eigenvalues + value)
        u = along * shrunk[:, None]
        leverage = 1 / n + squares @ shrunk
        residual = (centred - rows @ u) / (1 - leverage).clamp_min(1e-12)[:, None]
        error = residual.square().mean(0)
        errors.append(error)
        left_out = target.T - residual
        if best is None:
            best = (u, left_out, error)
            chosen.fill_(value)
            continue
        better = error < best[2]
        best = tuple(
            torch.where(better, new, old) for new, old in zip((u, left_out, error), best, strict=True)
        )
        chosen = torch.where(better, chosen.new_tensor(float(value)), chosen)
    assert best is not None
    return Ridge(best[0], mean, chosen, best[1].T, torch.stack(errors))


def platt(
    scores: Float[Tensor, "target row"], positive: Tensor, steps: int = 50
) -> tuple[Float[Tensor, " target"], Float[Tensor, " target"]]:
    """Slope and intercept that turn scores into log-odds (Platt 1999), for many score vectors at once.

    The targets are Platt's (n₁+1)/(n₁+2) and 1/(n₀+2), so that separable scores have a finite answer. Damped Newton
    steps in two unknowns. Scores that point the wrong way (left-out scores of pure noise do, on average) get a slope
    next to zero: their order stays, and the answer is the prior.
    """
    up = positive.to(scores.dtype)
    n_up = up.sum(1, keepdim=True)
    n_down = up.shape[1] - n_up
    goal = torch.where(positive, (n_up + 1) / (n_up + 2), 1 / (n_down + 2))
    size = scores.std(1, correction=0, keepdim=True)
    size = torch.where(size > 0, size, torch.ones_like(size))
    z = (scores - scores.mean(1, keepdim=True)) / size
    a, b = torch.zeros_like(size), torch.logit(goal.mean(1, keepdim=True))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        f = a * z + b
        return (torch.nn.functional.softplus(f) - goal * f).sum(1, keepdim=True)

    value = loss(a, b)
    for _ in range(steps):
        p = (a * z + b).sigmoid()
        gap, curve = p - goal, (p * (1 - p)).clamp_min(1e-12)
        ga, gb = (gap * z).sum(1, keepdim=True), gap.sum(1, keepdim=True)
        haa, hab, hbb = ((curve * t).sum(1, keepdim=True) for t in (z * z, z, torch.ones_like(z)))
        det = (haa * hbb - hab * hab).clamp_min(1e-12)
        da, db = (hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det
        rate = torch.ones_like(a)
        for _ in range(20):
            new = loss(a - rate * da, b - rate * db)
            if bool((new <= value + 1e-12).all()):
                break
            rate = torch.where(new <= value + 1e-12, rate, rate / 2)
        a, b, value = a - rate * da, b - rate * db, loss(a - rate * da, b - rate * db)
        if float(torch.maximum((rate * da).abs(), (rate * db).abs()).max()) < 1e-9:
            break
    backward = a <= 0
    a = torch.where(backward, torch.full_like(a, 1e-6), a)
    b = torch.where(backward, torch.logit(goal.mean(1, keepdim=True)), b)
    slope = a / size
    return slope[:, 0], (b - slope * scores.mean(1, keepdim=True))[:, 0]
