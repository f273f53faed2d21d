"""Cross-validated logistic probes of many labels at many penalties: all folds, labels and penalties in one batch.

    for fold f, label t, C:   minimise  ½‖w_z‖² + C Σ_{rows not in f} log(1 + exp(-(2y-1) (w_z · z + b)))

which is scikit-learn's `LogisticRegression(C=C)` on rows standardised with the means and standard deviations of the
training rows. One factorisation of all rows serves all folds: a fold is a mask over the rows and, for its own
standard deviations, a change of the penalty (`probes.solve.problems`); its own mean is taken up by the intercept.
With fewer rows than dimensions the fits of a fold do not lie in the span of the standardised rows of all, so there
each fold is factorised by itself, in the dual form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.solve.links import Link
from probes.solve.newton import TOLERANCE, Solved, solve
from probes.solve.problems import Metric, Problems
from probes.solve.spectrum import Spectrum, scale_of

COLUMNS = 64
TOGETHER, ALONE = 2, 2
"""Problems in a batch, about, and penalties: enough for a matrix product to be bound by arithmetic, few enough to
begin near their solutions, which the last two penalties foretell. The two weakest penalties come one by one: there
solutions move most, and a problem that begins far from its own holds up all others."""
NEAR = 0.3
"""Scales of folds that differ by less than this share (squared) are left out of Hessian products."""
ELEMENTS = 8_000_000
"""Most numbers (rows times columns) of a batch, which bounds the memory."""


class CrossFits(NamedTuple):
    """Fits without each fold in turn, and to all rows.

    Attributes:
        out: [penalty, target, row, class] score of each row by the fit without its fold.
        u, intercept: [penalty, rank, target, class] and [penalty, target, class] of the fits to all rows.
        spectrum: whose axes `u` is over.
        gradient_norm: [penalty, target] the largest of the fits.
        converged: [penalty, target] whether all are within the tolerance.
        exact: [penalty, target] how many needed exact Newton steps.
    """

    out: Float[Tensor, "penalty target row cls"]
    u: Float[Tensor, "penalty rank target cls"]
    intercept: Float[Tensor, "penalty target cls"]
    spectrum: Spectrum
    gradient_norm: Float[Tensor, "penalty target"]
    converged: Bool[Tensor, "penalty target"]
    exact: Int[Tensor, "penalty target"]


def cross_logistic(
    x: Float[Tensor, "row d"],
    code: Int[Tensor, "target row"],
    n_classes: int,
    fold: Int[Tensor, " row"],
    penalties: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
    dtype: torch.dtype = torch.float32,
    between: Callable[[], None] = lambda: None,
) -> CrossFits:
    """Fit every label vector at every `C` without each fold and to all rows.

    Args:
        x: [row, d] float64 rows.
        code: classes 0 … n_classes - 1 of each label vector; with two classes 1 is the positive one.
        n_classes: 2 for the logistic link, more for softmax.
        fold: in which each row is held out, 0 to n - 1.
        penalties: scikit-learn's C, any order.
        tolerance: gradient norm of the mean objective.
        dtype: of the products; the factorisation is float64.
        between: called after every Newton step.
    """
    link = Link(softmax=n_classes > 2)
    if link.softmax:
        target = torch.nn.functional.one_hot(code.T, n_classes).to(dtype)
    else:
        target = (code.T == 1).to(dtype)[:, :, None]
    spectrum = Spectrum.of(x, every_axis=dtype)
    n_folds = int(fold.max()) + 1
    shared = len(x) >= x.shape[1]
    whole = Problems.of(
        spectrum.rows.to(dtype),
        spectrum.eigenvalues.to(dtype),
        target[:, :0],
        x.new_zeros(0).to(dtype),
        link,
    )
    n_rows, n_targets, n_columns = target.shape
    out = x.new_zeros(len(penalties), n_targets, n_rows, n_columns)
    fits = _Fits(penalties, target, tolerance, between)
    if shared:
        metric, near = _metric(x, spectrum, fold, n_folds, dtype)
        whole = replace(whole, metric=metric, near=near)
        held = torch.cat([torch.arange(n_folds, device=x.device), fold.new_tensor([-1])])
        found = fits.run(whole, held, fold)
        for index in range(n_folds):
            rows = fold == index
            out[:, :, rows] = found.scores[:, index][:, rows].permute(0, 2, 1, 3).to(x.dtype)
        last = found.u[:, n_folds]
        norm, exact = found.norm.amax(1), found.exact.sum(1)
    else:
        found = fits.run(whole, fold.new_tensor([-1]), fold)
        last, norm, exact = found.u[:, 0], found.norm[:, 0], found.exact[:, 0].long()
        for index in range(n_folds):
            train, rows = fold != index, fold == index
            part = Spectrum.of(x[train])
            some = Problems.of(
                part.rows.to(dtype),
                part.eigenvalues.to(dtype),
                target[train][:, :0],
                x.new_zeros(0).to(dtype),
                link,
            )
            one = _Fits(penalties, target[train], tolerance, between).run(
                some, fold.new_tensor([-1]), fold[train]
            )
            u = one.u[:, 0].to(x.dtype)
            placed = part.place(x[rows])
            scores = torch.einsum("nr,prtc->ptnc", placed, u[:, :-1]) + u[:, -1][:, :, None]
            out[:, :, rows] = scores
            norm, exact = torch.maximum(norm, one.norm[:, 0]), exact + one.exact[:, 0].long()
    u, intercept = last[:, :-1].to(x.dtype), last[:, -1].to(x.dtype)
    if link.softmax:
        intercept = intercept - intercept.mean(-1, keepdim=True)
    return CrossFits(out, u, intercept, spectrum, norm.double(), norm <= tolerance, exact)


def _metric(
    x: Tensor, spectrum: Spectrum, fold: Tensor, n_folds: int, dtype: torch.dtype
) -> tuple[Metric, bool]:
    """The metric of the folds' own standard deviations, and whether all are near the identity."""
    ratio = (_stds(x, spectrum, fold, n_folds) / spectrum.std).square()
    near = float((ratio - 1).abs().max()) < NEAR
    return Metric.of(spectrum.axes.to(dtype), ratio.to(dtype)), near


def _stds(x: Tensor, spectrum: Spectrum, fold: Tensor, n_folds: int) -> Float[Tensor, "fold d"]:
    """Standard deviations of the rows outside each fold, from sums over the folds; a constant feature counts as 1."""
    member = torch.nn.functional.one_hot(fold, n_folds).to(x.dtype)
    away = x - spectrum.mean
    size = len(x) - member.sum(0)[:, None]
    first = away.sum(0) - member.T @ away
    second = away.square().sum(0) - member.T @ away.square()
    std = (second / size - (first / size).square()).clamp_min(0).sqrt()
    rounded = std <= 1e-7 * spectrum.std  # too close to zero to be told from it by sums: look again
    for index in torch.nonzero(rounded.any(1)).flatten().tolist():
        std[index] = scale_of(x[fold != index])[1]
    return std


class _All(NamedTuple):
    """What `_Fits.run` gives, by penalty and held-out fold."""

    u: Tensor  # [penalty, held, coefficient, target, class]
    scores: Tensor  # [penalty, held, row, target, class]
    norm: Tensor  # [penalty, held, target]
    exact: Tensor  # [penalty, held, target]


class _Fits:
    """Batches of (penalty, held-out fold, target) problems, the strongest penalties first."""

    def __init__(
        self, penalties: Sequence[float], target: Tensor, tolerance: float, between: Callable[[], None]
    ) -> None:
        self.penalties, self.target = list(penalties), target
        self.tolerance, self.between = tolerance, between

    def run(self, whole: Problems, held: Tensor, fold: Tensor) -> _All:
        """Solve for every fold of `held` (-1: none is held out)."""
        n_rows, n_targets, n_classes = self.target.shape
        per_penalty = len(held) * n_targets
        wide = max(1, min(COLUMNS, ELEMENTS // (n_rows * n_classes)))
        together = max(1, min(wide // per_penalty, TOGETHER))
        order = sorted(range(len(self.penalties)), key=lambda i: self.penalties[i])
        found: list[Solved | None] = [None] * len(self.penalties)
        start: Tensor | None = None
        before: Tensor | None = None
        done: list[int] = []
        while len(done) < len(order):
            left = len(order) - len(done)
            some = order[len(done) :][: min(together, max(left - ALONE, 1))]
            begun = self._begin(done, some, start, before)
            solved = self._batch(whole, held, fold, some, begun, wide)
            for i, part in zip(some, solved, strict=True):
                found[i] = part
            done = done + some
            before, start = (solved[-2].u if len(solved) > 1 else start), solved[-1].u
        shape = (len(held), n_targets)
        every = [one for one in found if one is not None]
        return _All(
            torch.stack([s.u.unflatten(1, shape).transpose(0, 1) for s in every]),
            torch.stack([s.scores.unflatten(1, shape).transpose(0, 1) for s in every]),
            torch.stack([s.gradient_norm.reshape(shape) for s in every]),
            torch.stack([s.exact.reshape(shape) for s in every]),
        )

    def _begin(
        self, done: list[int], some: list[int], last: Tensor | None, before: Tensor | None
    ) -> Tensor | None:
        """Where to begin: on the line through the last two solutions, over the logarithm of C."""
        if last is None:
            return None
        if before is None or len(done) < 2:
            return last.repeat(1, len(some), 1)
        at = [math.log(self.penalties[i]) for i in (*done[-2:], *some)]
        if at[1] - at[0] < 1e-6:
            return last.repeat(1, len(some), 1)
        return torch.cat([last + (last - before) * ((c - at[1]) / (at[1] - at[0])) for c in at[2:]], 1)

    def _batch(
        self, whole: Problems, held: Tensor, fold: Tensor, some: list[int], start: Tensor | None, wide: int
    ) -> list[Solved]:
        """Some penalties at once, in as many column blocks as memory asks for."""
        n_targets = self.target.shape[1]
        per = len(held) * n_targets
        mask = (fold[:, None] != held[None]).to(self.target.dtype)
        columns = torch.arange(per * len(some), device=self.target.device)
        strength = mask.new_tensor([1 / self.penalties[i] for i in some]).repeat_interleave(per)
        which = held.repeat_interleave(n_targets).repeat(len(some))
        parts = []
        for block in columns.split(max(wide, 1)):
            at_fold = (block % per) // n_targets
            trained = None if bool((which[block] < 0).all()) else mask[:, at_fold, None]
            problems = replace(
                whole,
                target=self.target[:, block % n_targets],
                penalty=strength[block],
                size=mask.sum(0)[at_fold],
                mask=trained,
                fold=which[block],
            )
            parts.append(
                solve(
                    problems,
                    start=None if start is None else start[:, block],
                    tolerance=self.tolerance,
                    between=self.between,
                )
            )
        joined = Solved(*(torch.cat(p, dim=1 if p[0].ndim > 1 else 0) for p in zip(*parts, strict=True)))
        cut = [slice(i * per, (i + 1) * per) for i in range(len(some))]
        return [Solved(*(t[:, c] if t.ndim > 1 else t[c] for t in joined)) for c in cut]
