"""Probes of a site that does not fit in memory: two passes over a store, one for moments and one for scores.

    first pass    per fold f:  n, Σ x, Σ x xᵀ, Σ x yᵀ        (y = ±1 of every label column; x about a provisional mean)
    training rows of fold f:   the sum over the other folds, so every fold costs one subtraction
    second pass   out-of-fold scores of every row, for all penalties and label columns

`ridge` is exact ridge regression of ±1 on features standardised with the training rows' moments; its penalty is the
one with the least squared error on the *other* folds (leave-one-out needs the rows), and its log-odds are Platt's, from
the held-out scores of the other folds. `mass_mean` is exact. The other kinds need the rows themselves, several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from probes import scores as measure
from probes.cells import Found, Task
from probes.estimators import MIN_VARIANCE, ROUNDING, Weights
from probes.solve.ridge import platt
from probes.solve.spectrum import Spectrum
from probes.source import Source, not_finite

KINDS = ("ridge", "mass_mean")
"""What can be fitted from moments."""
CHUNK_BYTES = 256_000_000
"""Rows held at once, in float64."""


class Moments(NamedTuple):
    """Sums over some rows, about a provisional mean.

    Attributes:
        n: rows.
        first: [d] Σ x.
        second: [d, d] Σ x xᵀ.
        cross: [d, target] Σ x y.
        labels: [target] Σ y.
    """

    n: float
    first: Tensor
    second: Tensor
    cross: Tensor
    labels: Tensor

    def plus(self, other: Moments) -> Moments:
        """The sums over the rows of both."""
        first, second = self.first + other.first, self.second + other.second
        return Moments(self.n + other.n, first, second, self.cross + other.cross, self.labels + other.labels)

    def without(self, other: Moments) -> Moments:
        """The sums over the rows that are not in `other`."""
        first, second = self.first - other.first, self.second - other.second
        return Moments(self.n - other.n, first, second, self.cross - other.cross, self.labels - other.labels)


def stream_fit(
    source: Source,
    site: str,
    index: Int64[np.ndarray, " row"],
    task: Task,
    kinds: list[str],
    penalties: tuple[float, ...],
    between: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Found], dict[str, float], bool]:
    """Cross-validated `kinds` of one cell, the spread of the rows along each weight, and whether the site is constant.

    Args:
        source: a store.
        site: of the source.
        index: the rows of the cell.
        task: labels, folds and bootstrap, two classes.
        kinds: of `KINDS`.
        penalties: C of the ridge probes.
        between: called after every chunk.

    Raises:
        DataError: NaN or infinite values.
    """
    sign = torch.from_numpy(task.code.T.astype(np.float64) * 2 - 1)
    fold = torch.from_numpy(task.fold)
    parts, shift = _moments(source, site, index, sign, fold, between)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.plus(part)
    spread = whole.second.diagonal() / whole.n - (whole.first / whole.n).square()
    square = (whole.second.diagonal() + 2 * shift * whole.first) / whole.n + shift.square()
    constant = bool((spread.clamp_min(0).sqrt() <= ROUNDING * square.clamp_min(0).sqrt()).all())
    strengths = [1 / c for c in penalties]
    fits = {
        "ridge": lambda m: _ridge(m, strengths),
        "mass_mean": _mass_mean,
    }
    coefs = {kind: [fits[kind](whole.without(part)) for part in parts] for kind in kinds}
    scores = {kind: np.zeros((coefs[kind][0][0].shape[0], len(task.code), len(index))) for kind in kinds}
    for at, x in _chunks(source, site, index):
        z = x - shift
        for f in range(len(parts)):
            held = fold[at] == f
            for kind in kinds:
                w, b = coefs[kind][f]
                found = torch.einsum("nd,pdt->ptn", z[held], w) + b[:, :, None]
                scores[kind][:, :, np.asarray(at)[held.numpy()]] = found.numpy()
        between()
    done: dict[str, Found] = {}
    along: dict[str, float] = {}
    for kind in kinds:
        done[kind] = _found(task, scores[kind], fits[kind](whole), penalties, kind, shift)
        for label in range(task.n_labels):
            weights = done[kind].weights[label]
            v = torch.from_numpy(weights[0].coef) if weights else torch.zeros(len(shift), dtype=torch.float64)
            mean = whole.first / whole.n
            variance = v @ whole.second @ v / whole.n - (v @ mean) ** 2
            along[f"{kind}:{label}"] = float(variance.clamp_min(0).sqrt())
    return done, along, constant


def _chunks(source: Source, site: str, index: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Positions within the cell, and their rows in float64."""
    values, width = source.values(site), source.width(site)
    step = max(1, CHUNK_BYTES // (8 * width))
    for start in range(0, len(index), step):
        at = np.arange(start, min(start + step, len(index)))
        rows = index[at]
        picked = values[torch.from_numpy(rows)] if isinstance(values, Tensor) else values.take(rows)
        x = picked.flatten(1).double()
        bad = torch.nonzero(~torch.isfinite(x).all(1)).flatten()
        if len(bad):
            raise not_finite(site, len(bad), len(x), int(rows[int(bad[0])]))
        yield at, x


def _moments(
    source: Source, site: str, index: np.ndarray, sign: Tensor, fold: Tensor, between: Callable[[], None]
) -> tuple[list[Moments], Tensor]:
    parts: list[list[Tensor]] = []
    shift: Tensor | None = None
    for at, x in _chunks(source, site, index):
        shift = x.mean(0) if shift is None else shift
        d, n_folds = x.shape[1], int(fold.max()) + 1
        if not parts:
            shapes = ((), (d,), (d, d), (d, sign.shape[1]), (sign.shape[1],))
            parts = [[x.new_zeros(shape) for shape in shapes] for _ in range(n_folds)]
        for f in range(n_folds):
            held = fold[at] == f
            z, y = x[held] - shift, sign[at][held]
            for total, more in zip(
                parts[f], (z.new_tensor(len(z)), z.sum(0), z.T @ z, z.T @ y, y.sum(0)), strict=True
            ):
                total += more
        between()
    assert shift is not None
    return [Moments(float(p[0]), *p[1:]) for p in parts], shift


def _ridge(m: Moments, strengths: list[float]) -> tuple[Tensor, Tensor]:
    """[penalty, d, target] weights and [penalty, target] intercepts, about the provisional mean."""
    mean, target = m.first / m.n, m.labels / m.n
    spectrum = Spectrum.from_moments(mean, m.second - m.n * torch.outer(mean, mean), int(m.n))
    cross = (m.cross - torch.outer(m.first, target)) / spectrum.std[:, None]
    along = spectrum.axes.T @ cross
    found = [spectrum.weights(along / (spectrum.eigenvalues + s)[:, None], target) for s in strengths]
    return torch.stack([w for w, _ in found]), torch.stack([b for _, b in found])


def _mass_mean(m: Moments) -> tuple[Tensor, Tensor]:
    """[1, d, target] and [1, target], as `probes.estimators.MassMeanProbe`."""
    n_up = (m.n + m.labels) / 2
    upper = (m.first[:, None] + m.cross) / 2 / n_up
    lower = (m.first[:, None] - m.cross) / 2 / (m.n - n_up)
    theta = upper - lower
    inside = (theta * (m.second @ theta)).sum(0)
    inside = inside - n_up * (theta * upper).sum(0) ** 2 - (m.n - n_up) * (theta * lower).sum(0) ** 2
    distance = theta.square().sum(0)
    variance = torch.maximum((inside / m.n).clamp_min(0), MIN_VARIANCE * distance.square()).clamp_min(1e-300)
    coef = theta * torch.where(distance > 0, distance / variance, torch.ones_like(distance))
    return coef[None], ((n_up / (m.n - n_up)).log() - (coef * (upper + lower)).sum(0) / 2)[None]


def _found(
    task: Task,
    every: Float64[np.ndarray, "penalty target row"],
    final: tuple[Tensor, Tensor],
    penalties: tuple[float, ...],
    kind: str,
    shift: Tensor,
) -> Found:
    """Penalty, log-odds, scores and weights from the out-of-fold scores of all penalties."""
    positive = task.code == 1
    error = (every - np.where(positive, 1.0, -1.0)) ** 2
    n_targets = len(task.code)
    out = np.zeros((n_targets, len(task.fold)))
    for f in range(int(task.fold.max()) + 1):
        held = task.fold == f
        best = error[:, :, ~held].sum(2).argmin(0)
        chosen = every[best, np.arange(n_targets)]
        if kind == "ridge":
            slope, level = platt(torch.from_numpy(chosen[:, ~held]), torch.from_numpy(positive[:, ~held]))
            chosen = chosen * slope.numpy()[:, None] + level.numpy()[:, None]
        out[:, held] = chosen[:, held]
    true = slice(0, None, task.per_label)
    at = error[:, true].sum(2).argmin(0)
    weights: list[list[Weights] | None] = []
    for label, p in enumerate(at.tolist()):
        t = label * task.per_label
        slope, level = 1.0, 0.0
        if kind == "ridge":
            a, b = platt(torch.from_numpy(every[p, t][None]), torch.from_numpy(positive[t][None]))
            slope, level = float(a), float(b)
        w = final[0][p, :, t] * slope
        intercept = float(final[1][p, t]) * slope + level - float(w @ shift)
        weights.append([Weights(w.numpy(), intercept)])
    aucs = measure.aucs(
        every[:, true].reshape(-1, every.shape[2]), np.tile(positive[true], (len(every), 1)), task.fold
    ).reshape(len(every), -1)
    scaled = _held_out_platt(every[:, true], positive[true], task.fold) if kind == "ridge" else every[:, true]
    loss = np.stack([measure.losses(e[..., None], task.code[true]).mean(1) for e in scaled])
    used = np.array(penalties)[at] if kind == "ridge" else np.full(len(at), np.nan)
    zero, good = np.zeros(task.n_labels), np.ones(task.n_labels, dtype=bool)
    return Found(out[..., None], loss, aucs, weights, used, zero, good)


def _held_out_platt(
    every: Float64[np.ndarray, "penalty target row"], positive: np.ndarray, fold: np.ndarray
) -> Float64[np.ndarray, "penalty target row"]:
    """Log-odds of every row at every penalty: Platt's slope and intercept from the scores of the other folds."""
    flat = torch.from_numpy(every.reshape(-1, every.shape[2]))
    up = torch.from_numpy(np.tile(positive, (len(every), 1)))
    out = torch.zeros_like(flat)
    for f in range(int(fold.max()) + 1):
        held = torch.from_numpy(fold == f)
        slope, level = platt(flat[:, ~held], up[:, ~held])
        out[:, held] = flat[:, held] * slope[:, None] + level[:, None]
    return out.numpy().reshape(every.shape)
