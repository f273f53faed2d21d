"""Optimisation-based intervention: change an activation until a frozen probe says otherwise.

From the activation h, with p the probe's probabilities, B' the wanted classes, F the flipped squares (Li et al. 2022,
arXiv:2210.13382; there with Adam, lr 1e-3, 1,000 steps):

    L(x) = Σ_{s ∈ F} CE(p(x)_s, B'_s)  +  keep · Σ_{s ∉ F} CE(p(x)_s, B'_s)  +  distance · ‖x − h‖² / ‖h‖²
    x ← x − …  from x = h, until p(x)_s[B'_s] ≥ confidence on every flipped square, or `steps` are over

Li et al. write the mean over squares, which is the same up to a factor. What differs: a row stops when it is
done; the learning rate is a share of the activation's root mean square, so that it means the same at every
layer; and at the end the move is shortened along itself to where the flipped squares just reach the confidence
(`shorten`), which takes away what the optimiser overshot. For a linear probe of one square gradient and move lie
along its direction, so the result of L-BFGS then *is* the least move of `closed_form`; Adam, whose steps have
the same size in every coordinate, ends further.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.causal.edited import Edited, checked, finish, squares
from probes.causal.minimise import adam, lbfgs
from probes.causal.squares import SquareLogits
from workbench.errors import DataError

METHODS = {"adam": adam, "lbfgs": lbfgs}
BISECTIONS = 40


def optimise(
    probe: SquareLogits,
    h: Float[Tensor, "row d"],
    labels: Int[Tensor, "row square"],
    flipped: Bool[Tensor, "row square"],
    *,
    keep: float | int = 0.2,
    distance: float | int = 0.0,
    confidence: float = 0.9,
    method: str = "adam",
    learning_rate: float = 0.01,
    steps: int = 500,
    shorten: bool = True,
) -> Edited:
    """Move activations until the probe sees the flipped squares as `labels`, all rows together.

    Args:
        probe: any differentiable function [row, d] -> logits [row, square, class], or [row, class] for one
        square. Its
            own parameters are not changed.
        h: activations to start from.
        labels: int64 wanted classes of all squares (those not flipped: what they are).
        flipped: the squares to change; at least one in every row.
        keep: weight of the squares that are not flipped.
        distance: weight of the relative squared length of the move.
        confidence: probability of the wanted class at which a flipped square is done.
        method: `adam` or `lbfgs`.
        learning_rate: step of Adam, first step of L-BFGS, as a share of the row's root mean square.
        steps: limit; a row that is not done by then says so in `done`.
        shorten: cut the move back to where it just does what was asked.

    Returns:
        `Edited`. Rows do not depend on each other: many together end where each would alone.

    Raises:
        DataError: shapes or classes that do not match, a row without a flipped square, a probe whose output has no
            gradient, settings out of range.

    Example:
        >>> edited = optimise(probe, h, wanted, wanted != seen)
        >>> edited.done.all(), edited.norm / h.norm(dim=1)
    """
    _settings(keep, distance, confidence, method, learning_rate, steps)
    with torch.inference_mode(False), torch.enable_grad():
        h = h.clone().float()  # out of inference mode, where this runs inside a hook
        labels, flipped = labels.clone(), flipped.clone()
        sample = probe(h[:1].clone().requires_grad_())
        checked(h, labels, flipped, sample)
        if not sample.requires_grad:
            raise DataError("The probe's output has no gradient: give a differentiable torch function.")
        weight = torch.where(flipped, 1.0, float(keep))
        size = h.square().sum(1).clamp(min=1e-20)
        least = torch.log(torch.tensor(confidence, device=h.device))

        def evaluate(x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            log_p = squares(probe(x)).log_softmax(-1).gather(-1, labels[row][..., None])[..., 0]
            loss = -(weight[row] * log_p).sum(1) + distance * (x - h[row]).square().sum(1) / size[row]
            return loss, ((log_p >= least) | ~flipped[row]).all(1)

        rate = learning_rate * (size / h.shape[1]).sqrt()[:, None]
        if method == "lbfgs":
            rate = rate * h.shape[1] ** 0.5  # of the whole vector, not of a coordinate
        found = METHODS[method](evaluate, h, learning_rate=rate, steps=steps)
        x = _shortened(evaluate, h, found.x, found.done) if shorten else found.x
        return finish(probe, h, x, labels, flipped, steps=found.steps, loss=found.loss)


@torch.no_grad()
def _shortened(evaluate, h: Tensor, x: Tensor, done: Tensor) -> Tensor:
    """The shortest part of each finished move that still does it, by bisection (the end that does is kept)."""
    row = done.nonzero()[:, 0]
    low, high = torch.zeros(len(row), 1, device=h.device), torch.ones(len(row), 1, device=h.device)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        good = evaluate(h[row] + middle * (x[row] - h[row]), row)[1][:, None]
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    out = x.clone()
    out[row] = h[row] + high * (x[row] - h[row])
    return out


def _settings(
    keep: float | int, distance: float | int, confidence: float, method: str, learning_rate: float, steps: int
) -> None:
    if method not in METHODS:
        raise DataError(f"There is no method {method!r}: give 'adam' or 'lbfgs'.")
    if not 0 < confidence < 1:
        raise DataError(f"confidence is a probability between 0 and 1, not {confidence}.")
    if keep < 0 or distance < 0 or learning_rate <= 0 or steps < 1:
        raise DataError(
            "keep and distance are at least 0, learning_rate is above 0 and steps at least 1; given "
            f"{keep}, {distance}, {learning_rate} and {steps}."
        )
