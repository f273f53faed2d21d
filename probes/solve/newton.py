"""Many penalised classification problems on the same rows, by one truncated Newton method.

All problems (labels, permuted labels, folds, penalties) are columns of the same matrix products. Each Newton step is
found by conjugate gradients with the preconditioner (h̄ e + λ)⁻¹, h̄ the mean curvature of the loss over the rows: in
the eigenbasis of `probes.solve.spectrum` the Hessian is that diagonal plus what the rows' curvatures differ by, so
few products are needed. The step is taken if it lowers the objective enough (Armijo), else halved. Problems that
have converged leave the batch.

A problem has converged when the 2-norm of the gradient of the *mean* objective (divided by the number of training
rows) is at most `tolerance`. That norm does not depend on the basis, and it bounds every component: the default of
1e-4 is stricter than scikit-learn's own criterion at its default, which bounds the largest component by as much. What
does not get there is finished by `exact` Newton steps with a Cholesky factorisation (nearly separable data under a
weak penalty, where curvatures differ by many orders).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.solve.problems import Problems

TOLERANCE = 1e-4
MAX_STEPS = 25
MAX_PRODUCTS = 40
"""Newton steps, and conjugate-gradient products in each, before a problem is handed to exact steps."""
EXACT_STEPS = 100
COEFFICIENT = 0.03
"""A problem goes on below the tolerance while the preconditioned gradient, which estimates how far the coefficients
are from the minimum, is more than this share of them."""
FLOOR = 0.01
"""But not below this share of the tolerance, where float32 ends."""
FORCING = 0.1
"""Conjugate gradients stop at this share of the gradient (less as it falls), or well below the tolerance."""


class Solved(NamedTuple):
    """Minima of `problem` problems.

    Attributes:
        u: [rank + 1, problem, class] weights over the axes, the intercept last.
        scores: [row, problem, class] of all rows.
        gradient_norm: [problem] 2-norm of the gradient of the mean objective.
        steps: [problem] Newton steps.
        exact: [problem] whether exact Newton steps were needed.
    """

    u: Float[Tensor, "coefficient problem cls"]
    scores: Float[Tensor, "row problem cls"]
    gradient_norm: Float[Tensor, " problem"]
    steps: Int[Tensor, " problem"]
    exact: Bool[Tensor, " problem"]


def solve(
    whole: Problems,
    *,
    start: Float[Tensor, "coefficient problem cls"] | None = None,
    tolerance: float = TOLERANCE,
    between: Callable[[], None] = lambda: None,
) -> Solved:
    """Minimise every problem to `tolerance`.

    Args:
        whole: the problems.
        start: coefficients to begin with, for instance those of the next stronger penalty.
        tolerance: see the module; `gradient_norm` says what was reached.
        between: called after every Newton step (progress, cancel).
    """
    link = whole.link
    u = whole.start() if start is None else start.clone()
    scores = whole.scores(u)
    device = u.device
    norm = u.new_zeros(len(whole))
    steps = torch.zeros(len(whole), dtype=torch.int64, device=device)
    active = torch.arange(len(whole), device=device)
    problem, part, f, shrunk = whole, u, scores, whole.penalised(u)
    stuck: list[int] = []
    for step in range(MAX_STEPS + 1):
        p = link.probability(f)
        gradient = problem.gradient(p, shrunk)
        size = gradient.square().sum((0, 2)).sqrt() / problem.size
        norm[active] = size
        h = problem.curvature(p)
        inverse = problem.preconditioner(h)
        step_size = (inverse * gradient)[:-1].square().sum((0, 2)).sqrt()
        length = part[:-1].square().sum((0, 2)).sqrt()
        going = (size > tolerance) | ((step_size > COEFFICIENT * length) & (size > FLOOR * tolerance))
        if step == MAX_STEPS:
            stuck = active[going].tolist()
        if step == MAX_STEPS or not bool(going.any()):
            u, scores = _put(u, scores, active, part, f)
            break
        if float(going.float().mean()) < 0.8:
            u, scores = _put(u, scores, active, part, f)
            keep = torch.nonzero(going).flatten()
            active = active[keep]
            problem, part, f = problem.part(keep), part[:, keep], f[:, keep]
            p, gradient, shrunk, going = p[:, keep], gradient[:, keep], shrunk[:, keep], going[keep]
            h, inverse = h[:, keep], inverse[:, keep]
        move, move_f, move_shrunk = _conjugate_gradients(problem, (p, h), inverse, gradient, going, tolerance)
        (part, f, shrunk), moved = _line_search(
            problem, (part, f, shrunk), gradient, (move, move_f, move_shrunk)
        )
        steps[active] += (moved & going).long()
        between()
    exact = torch.zeros(len(whole), dtype=torch.bool, device=device)
    for k in stuck:
        one = whole.part(torch.tensor([k], device=device)).double()
        found, norm[k], more = _exact(one, u[:, k : k + 1].double(), tolerance)
        u[:, k : k + 1], scores[:, k : k + 1] = found.to(u.dtype), one.scores(found).to(u.dtype)
        steps[k] += more
        exact[k] = True
        between()
    return Solved(u, scores, norm, steps, exact)


def _put(u: Tensor, scores: Tensor, active: Tensor, part: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    if len(active) == u.shape[1]:
        return part.clone(), f.clone()
    u[:, active], scores[:, active] = part, f
    return u, scores


def _conjugate_gradients(
    problem: Problems,
    at: tuple[Tensor, Tensor],
    inverse: Tensor,
    gradient: Tensor,
    going: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps H⁻¹(-g) to a residual that shrinks with the gradient, their scores and penalty terms."""
    p, h = at
    residual = gradient * -going[None, :, None].to(gradient.dtype)
    first = residual.square().sum((0, 2)).sqrt()
    share = (first / problem.size).sqrt().clamp_max(FORCING)
    enough = torch.maximum(first * share, 0.3 * FLOOR * tolerance * problem.size)
    step = torch.zeros_like(gradient)
    scaled = inverse * residual
    along = scaled.clone()
    product = (residual * scaled).sum((0, 2))
    for _ in range(MAX_PRODUCTS):
        curved = problem.curved(p, h, along).add_(problem.roughly_penalised(along))
        bent = (along * curved).sum((0, 2))
        rate = torch.where(
            (bent > 0) & (product > 0), product / bent.clamp_min(1e-30), torch.zeros_like(bent)
        )
        wide = rate[None, :, None]
        step.addcmul_(along, wide)
        residual.addcmul_(curved, wide, value=-1)
        left = residual.square().sum((0, 2)).sqrt() > enough
        if not bool(left.any()):
            break
        scaled = inverse * residual
        new = (residual * scaled).sum((0, 2))
        keep = torch.where(left & (product > 0), new / product.clamp_min(1e-30), torch.zeros_like(new))
        along = torch.addcmul(scaled * left[None, :, None].to(scaled.dtype), along, keep[None, :, None])
        product = new * left
    return step, problem.scores(step), problem.penalised(step)


def _line_search(
    problem: Problems,
    at: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    move: tuple[Tensor, Tensor, Tensor],
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """The largest of 1, 1/2, 1/4 … of each step that lowers the objective by a share of what it promises.

    Coefficients, scores and penalty terms move together, as all are linear; [problem] whether there was such a step.
    """
    u, f, shrunk = at
    slope = (gradient * move[0]).sum((0, 2))
    before = problem.value(f, u, shrunk)
    rate = torch.ones_like(slope)
    slack = before.abs() * 8 * torch.finfo(u.dtype).eps
    new = u + move[0], f + move[1], shrunk + move[2]
    good = problem.value(new[1], new[0], new[2]) <= before + 1e-4 * slope + slack
    if bool(good.all()):
        return new, good
    for _ in range(30):
        rate = torch.where(good, rate, rate / 2)
        wide = rate[None, :, None]
        new = u + move[0] * wide, f + move[1] * wide, shrunk + move[2] * wide
        good = problem.value(new[1], new[0], new[2]) <= before + 1e-4 * rate * slope + slack
        if bool(good.all()):
            return new, good
    wide = torch.where(good, rate, torch.zeros_like(rate))[None, :, None]
    return (u + move[0] * wide, f + move[1] * wide, shrunk + move[2] * wide), good


def _exact(problem: Problems, u: Tensor, tolerance: float) -> tuple[Tensor, Tensor, int]:
    """One problem by Newton steps with the whole Hessian, in float64."""
    size, step = u.new_tensor(torch.inf), 0
    for step in range(EXACT_STEPS + 1):
        f = problem.scores(u)
        p, shrunk = problem.link.probability(f), problem.penalised(u)
        gradient = problem.gradient(p, shrunk)
        size = gradient.norm() / problem.size[0]
        if float(size) <= tolerance or step == EXACT_STEPS:
            break
        move = -_solve_hessian(problem, p, gradient)
        (u, _, _), moved = _line_search(
            problem, (u, f, shrunk), gradient, (move, problem.scores(move), problem.penalised(move))
        )
        if not bool(moved.any()):
            break
    return u, size, step


def _solve_hessian(problem: Problems, p: Tensor, gradient: Tensor) -> Tensor:
    """H⁻¹ g of one problem, H over all its coefficients [rank + 1, class] at once."""
    size, _, classes = gradient.shape
    hessian = p.new_zeros(classes, size, classes, size)
    trained = torch.ones_like(p[:, 0, 0]) if problem.mask is None else problem.mask[:, 0, 0]
    penalty = problem.penalised(torch.eye(size, dtype=p.dtype, device=p.device)[:, None, :])[:, 0]
    for a in range(classes):
        for b in range(classes):
            same = p[:, 0, a] if a == b else torch.zeros_like(p[:, 0, a])
            curve = trained * (same - p[:, 0, a] * p[:, 0, b])
            hessian[a, :, b] = problem.design.T @ (curve[:, None] * problem.design)
        hessian[a, :, a] += penalty
    matrix = hessian.reshape(classes * size, classes * size)
    matrix.diagonal().add_(1e-12 * matrix.diagonal().max())  # softmax scores have a free constant
    flat = gradient[:, 0].T.reshape(-1, 1)
    found = torch.cholesky_solve(flat, torch.linalg.cholesky(matrix))
    return found.reshape(classes, size).T[:, None]
