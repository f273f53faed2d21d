"""Two minimisers that treat every row as a problem of its own: Adam, and L-BFGS.

`evaluate(x, row)` gives the loss of each line and whether its row is done. A row that is done is not touched
again, so many rows together end where each would end alone, and no row waits for another. Adam: Kingma and Ba 2014
(arXiv:1412.6980), with bias correction. L-BFGS: two-loop recursion over the last `MEMORY` steps (Nocedal and
Wright 2006, algorithm 7.4), step length halved until the loss falls by 1e-4 of what the slope promises (Armijo).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`fn(x [line, d], row [line]) -> (loss [line], done [line])`."""
MEMORY = 10
HALVINGS = 20
ROUNDING = 1e-3
"""A gradient that changed by less than this share says nothing about curvature in float32: the step is not kept."""


class Minimum(NamedTuple):
    """Where the rows ended."""

    x: Float[Tensor, "row d"]
    loss: Float[Tensor, " row"]
    done: Bool[Tensor, " row"]
    steps: Int[Tensor, " row"]


def adam(evaluate: Evaluate, first: Float[Tensor, "row d"], *, learning_rate: Tensor, steps: int) -> Minimum:
    """Adam from `first`; `learning_rate` [row, 1] is in the units of x."""
    x, m, v = first.clone(), torch.zeros_like(first), torch.zeros_like(first)
    state = _State(len(x), x.device)
    for step in range(1, steps + 1):
        row = state.active()
        if not len(row):
            break
        loss, done, slope = _slope(evaluate, x[row], row)
        state.note(row, loss, done)
        go = ~done
        row, slope = row[go], slope[go]
        m[row] = 0.9 * m[row] + 0.1 * slope
        v[row] = 0.999 * v[row] + 0.001 * slope.square()
        mean, variance = m[row] / (1 - 0.9**step), v[row] / (1 - 0.999**step)
        x[row] -= learning_rate[row] * mean / (variance.sqrt() + 1e-12)
        state.steps[row] += 1
    return state.end(evaluate, x)


def lbfgs(evaluate: Evaluate, first: Float[Tensor, "row d"], *, learning_rate: Tensor, steps: int) -> Minimum:
    """L-BFGS from `first`; `learning_rate` [row, 1] is the length of the first step tried, in the units of x."""
    x, state = first.clone(), _State(len(first), first.device)
    n, d = x.shape
    moves, changes = x.new_zeros(MEMORY, n, d), x.new_zeros(MEMORY, n, d)
    rho = x.new_zeros(MEMORY, n)  # 0 where a step was not kept: it then takes no part
    everyone = torch.arange(n, device=x.device)
    loss, done, slope = _slope(evaluate, x, everyone)
    state.note(everyone, loss, done)
    for step in range(steps):
        row = state.active()
        if not len(row):
            break
        g = slope[row]
        direction = -_inverse_hessian(g, moves[:, row], changes[:, row], rho[:, row], step)
        fresh = (rho[:, row] == 0).all(0)
        scale = torch.where(
            fresh,
            learning_rate[row, 0] / g.norm(dim=1).clamp(min=1e-30),
            torch.ones_like(fresh, dtype=g.dtype),
        )
        direction = direction * scale[:, None]
        promised = (direction * g).sum(1)
        bad = promised >= 0
        direction[bad], promised[bad] = -g[bad], -g[bad].square().sum(1)
        length, better = _search(evaluate, x[row], row, direction, state.loss[row], promised)
        new = x[row] + length[:, None] * direction
        loss, done, after = _slope(evaluate, new, row)
        at = step % MEMORY
        moves[at, row], changes[at, row] = new - x[row], after - g
        curvature = (moves[at, row] * changes[at, row]).sum(1)
        change = changes[at, row].norm(dim=1)
        enough = (curvature > 1e-6 * moves[at, row].norm(dim=1) * change) & (
            change > ROUNDING * g.norm(dim=1)
        )
        rho[at, row] = torch.where(enough, 1 / curvature.clamp(min=1e-30), torch.zeros_like(curvature))
        x[row], slope[row] = new, after
        state.note(row, loss, done)
        state.steps[row] += 1
        state.stuck[row] |= ~better
    return state.end(evaluate, x)


def _inverse_hessian(g: Tensor, s: Tensor, y: Tensor, rho: Tensor, step: int) -> Tensor:
    """H g by the two-loop recursion; arrays are [memory, line, d], the newest at (step − 1) mod memory."""
    order = [(step - 1 - i) % MEMORY for i in range(min(step, MEMORY))]
    q, alphas = g.clone(), {}
    for i in order:
        alphas[i] = rho[i] * (s[i] * q).sum(1)
        q -= alphas[i][:, None] * y[i]
    scale = torch.ones_like(g[:, 0])
    for i in reversed(order):  # each line's own newest step that was kept, which comes last, is what remains
        yy = y[i].square().sum(1)
        usable = (rho[i] > 0) & (yy > 0)
        scale = torch.where(usable, 1 / (rho[i] * yy).clamp(min=1e-30), scale)
    q *= scale[:, None]
    for i in reversed(order):
        q += (alphas[i] - rho[i] * (y[i] * q).sum(1))[:, None] * s[i]
    return q


@torch.no_grad()
def _search(
    evaluate: Evaluate, x: Tensor, row: Tensor, direction: Tensor, loss: Tensor, promised: Tensor
) -> tuple[Tensor, Tensor]:
    """Step length of each line, and whether one was found (else 0)."""
    length = torch.ones_like(loss)
    found = torch.zeros_like(loss, dtype=torch.bool)
    for _ in range(HALVINGS):
        left = (~found).nonzero()[:, 0]
        if not len(left):
            break
        new, _ = evaluate(x[left] + length[left, None] * direction[left], row[left])
        good = new <= loss[left] + 1e-4 * length[left] * promised[left]
        found[left[good]] = True
        length[left[~good]] *= 0.5
    return torch.where(found, length, torch.zeros_like(length)), found


def _slope(evaluate: Evaluate, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        loss, done = evaluate(leaf, row)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), done.detach(), slope


class _State:
    """Loss, done and steps of every row; which rows go on."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.loss = torch.full((n,), torch.inf, device=device)
        self.done = torch.zeros(n, dtype=torch.bool, device=device)
        self.stuck = torch.zeros(n, dtype=torch.bool, device=device)
        self.steps = torch.zeros(n, dtype=torch.long, device=device)

    def active(self) -> Tensor:
        return (~(self.done | self.stuck)).nonzero()[:, 0]

    def note(self, row: Tensor, loss: Tensor, done: Tensor) -> None:
        self.loss[row], self.done[row] = loss.to(self.loss), done

    def end(self, evaluate: Evaluate, x: Tensor) -> Minimum:
        with torch.no_grad():
            loss, done = evaluate(x, torch.arange(len(x), device=x.device))
        return Minimum(x, loss, done, self.steps)
