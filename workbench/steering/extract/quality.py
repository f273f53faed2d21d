"""How well a direction separates prompts it was not made from.

Both sets are cut into halves (pairs stay together). A direction is made from one half and scores the other, c = x · v,
and the other way round, so every prompt is scored once by a direction that has not seen it:

    AUC         share of (positive, negative) couples of one half in which the positive scores higher; ties count ½
    accuracy    share on the right side of the midpoint between the two class means of the *other* half

both averaged over the halves. The interval is a 95 % percentile bootstrap over pairs (over prompts of each kind where
there are no pairs) with the directions held fixed. Its ends are those of the halves, averaged: the halves' errors go
together (both hang on the angle between the two directions), so the average of two is not taken to be surer than one.
The control does all of it again with labels shuffled: within pairs swapped at random, else permuted. So it has the same
freedom to fit noise, and at site s, over the n shuffles,

    p_value         (1 + #{control_s ≥ AUC_s}) / (1 + n)            of a site that was chosen beforehand
    p_value_best    (1 + #{max_t control_t ≥ AUC_s}) / (1 + n)      of the best of all sites t that were looked at

Whoever takes the best of many sites needs the second: of 12 sites of pure noise the best has p_value ≤ 0.05 about one
time in three.

The direction that is handed out is made from all prompts, so this is the quality of the method on half of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

Rows = Float64[Tensor, "site prompt d"]
Fit = Callable[[Tensor, Tensor], Tensor]
"""Positive and negative rows [site, prompt, d] -> [site, d] vectors, of any norm."""

AT_LEAST = 4
"""Prompts of each kind below which halves are too small to say anything."""


def held_out(
    fit: Fit,
    positive: Rows,
    negative: Rows,
    *,
    paired: bool,
    seed: int = 0,
    shuffles: int = 50,
    n_bootstrap: int = 1000,
) -> list[dict[str, Any]]:
    """Held-out separation at each site, JSON-ready.

    Args:
        fit: makes vectors from rows.
        positive, negative: [site, prompt, d] float64.
        paired: prompt i of one belongs to prompt i of the other.
        seed: of the halves, the shuffles and the bootstrap.
        shuffles: runs of the control; 0 leaves all of this away (`measured` is False then).
        n_bootstrap: draws for the intervals.

    Returns:
        For each site `auc`, `accuracy` with `_low` and `_high`; `control_auc`, `control_accuracy` (means over
        shuffles), `control_auc_high` (their 95 % quantile), `p_value` (of this site by itself), `p_value_best` (against
        the maximum over sites of each shuffle), `n_positive`, `n_negative`, `paired`, `n_sites`, `shuffles`, `seed`.
        With fewer than 4 prompts of a kind `measured` is False and `why` says so.
    """
    n, m = positive.shape[1], negative.shape[1]
    known = {"n_positive": n, "n_negative": m, "paired": paired, "shuffles": shuffles, "seed": seed}
    if min(n, m) < AT_LEAST or shuffles < 1:
        why = (
            "not asked for"
            if shuffles < 1
            else f"halves need {AT_LEAST} prompts of each kind, here are {n} and {m}"
        )
        return [{"measured": False, "why": why, **known} for _ in range(len(positive))]
    random = np.random.default_rng(seed)
    first = _half(n, random)
    second = first if paired else _half(m, random)
    auc, accuracy, kept = _cross_fit(fit, positive, negative, first, second)
    controls = []
    for _ in range(shuffles):
        a, b = _shuffled(positive, negative, paired, random)
        controls.append(_cross_fit(fit, a, b, first, second)[:2])
    null = np.array([c[0] for c in controls])
    best = null.max(1)  # what the best site of pure noise reaches
    null_accuracy = np.array([c[1] for c in controls])
    intervals = _bootstrap(kept, paired, random, n_bootstrap)
    return [
        {
            "measured": True,
            "auc": float(auc[s]),
            "auc_low": float(intervals["auc"][0][s]),
            "auc_high": float(intervals["auc"][1][s]),
            "accuracy": float(accuracy[s]),
            "accuracy_low": float(intervals["accuracy"][0][s]),
            "accuracy_high": float(intervals["accuracy"][1][s]),
            "control_auc": float(null[:, s].mean()),
            "control_auc_high": float(np.quantile(null[:, s], 0.95)),
            "control_accuracy": float(null_accuracy[:, s].mean()),
            "p_value": float((1 + (null[:, s] >= auc[s] - 1e-12).sum()) / (1 + shuffles)),
            "p_value_best": float((1 + (best >= auc[s] - 1e-12).sum()) / (1 + shuffles)),
            "n_sites": len(positive),
            **known,
        }
        for s in range(len(positive))
    ]


class _Half:
    """Scores of one half: couples that are in the right order, and prompts on the right side."""

    def __init__(self, a: np.ndarray, b: np.ndarray, cut: np.ndarray) -> None:
        gap = a[:, :, None] - b[:, None, :]
        self.couples = (gap > 0) + 0.5 * (gap == 0)  # [site, n, m]
        right = [((x > cut) + 0.5 * (x == cut)) for x in (a, 2 * cut - b)]
        self.right_a, self.right_b = right

    def auc(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """[draw, site] for weights [draw, n] and [draw, m]."""
        found = np.einsum("bn,snm,bm->bs", u, self.couples, v, optimize=True)
        return found / (u.sum(1) * v.sum(1))[:, None]

    def accuracy(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """[draw, site] as `auc`."""
        return (u @ self.right_a.T + v @ self.right_b.T) / (u.sum(1) + v.sum(1))[:, None]


def _cross_fit(
    fit: Fit, positive: Tensor, negative: Tensor, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[_Half]]:
    """AUC and accuracy [site], and what they rest on, half by half."""
    halves = []
    for half in (False, True):
        train = positive[:, first != half], negative[:, second != half]
        test = positive[:, first == half], negative[:, second == half]
        vector = fit(*train)[:, :, None]
        middle = 0.5 * (train[0].mean(1) + train[1].mean(1))
        cut = (middle[:, None] @ vector)[:, 0].numpy()
        a, b = ((rows @ vector)[:, :, 0].numpy() for rows in test)
        halves.append(_Half(a, b, cut))
    ones = [(np.ones((1, h.couples.shape[1])), np.ones((1, h.couples.shape[2]))) for h in halves]
    auc = np.mean([h.auc(*w)[0] for h, w in zip(halves, ones, strict=True)], axis=0)
    accuracy = np.mean([h.accuracy(*w)[0] for h, w in zip(halves, ones, strict=True)], axis=0)
    return auc, accuracy, halves


def _bootstrap(
    halves: list[_Half],
    paired: bool,
    random: np.random.Generator,
    draws: int,
) -> dict[str, np.ndarray]:
    """Ends of the 95 % intervals, [2, site]."""
    found: dict[str, list[np.ndarray]] = {"auc": [], "accuracy": []}
    for half in halves:
        n, m = half.couples.shape[1:]
        u = random.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)
        v = u if paired else random.multinomial(m, np.full(m, 1 / m), size=draws).astype(float)
        found["auc"].append(half.auc(u, v))
        found["accuracy"].append(half.accuracy(u, v))
    return {
        name: np.mean([np.quantile(one, [0.025, 0.975], axis=0) for one in values], axis=0)
        for name, values in found.items()
    }


def _half(n: int, random: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """Which of n are in the second half."""
    second = np.zeros(n, bool)
    second[random.permutation(n)[: n // 2]] = True
    return second


def _shuffled(
    positive: Tensor, negative: Tensor, paired: bool, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    n = positive.shape[1]
    if paired:
        swap = torch.from_numpy(random.random(n) < 0.5)[None, :, None]
        return torch.where(swap, negative, positive), torch.where(swap, positive, negative)
    both = torch.cat([positive, negative], 1)[:, random.permutation(n + negative.shape[1])]
    return both[:, :n], both[:, n:]
