"""Contrast-consistent search: a probe for truth from pairs of opposite answers, without labels.

Burns, Ye, Klein and Steinhardt 2022 (arXiv:2212.03827, §2.2). With pairs normalised half by half (`probes.kinds.pairs`)
and p(x) = σ(θ · x̃ + b):

    L = mean [ (p⁺ − (1 − p⁻))² + min(p⁺, p⁻)² ]            consistency + confidence

    CRC: θ = first principal component of x̃⁺ − x̃⁻, b = 0      (their "contrastive representation clustering", TPC)

1. `n_restarts` random unit vectors θ, all trained side by side (full batch, AdamW).
2. The restart with the least loss is kept; `losses_` holds all.
3. Labels, if given, turn the sign: a probe and its opposite (p and 1 − p) are equally consistent, so which end is
   "true" is not in the data. Losses are those before turning.

Known failures, reported in `degenerate_`:
- The same p for every member answers ½ to every pair. p = ½ costs L = 0.25, the best constant is p = 0.4 with
  L = (2p − 1)² + p² = 0.2. A best loss near that, or all answers near ½, is `"p = 1/2"`: nothing was found.
- Which half a row is in separates all pairs perfectly, and means nothing. Normalising each half by itself takes that
  away where it is linear; `"reads the half"` says that most pairs still get the same answer (95 % or more).
- What comes out is *a* property on which the answers of a pair disagree, which may not be truth but, say, an opinion in
  the prompt (Farquhar et al. 2023, arXiv:2312.10029). With fewer pairs than dimensions any labelling can
  be had. Compare with `CrcProbe`, a supervised probe and shuffled pairs.

What differs from the paper: restarts run side by side; θ is drawn on the unit sphere; `normalise="mean"` is the variant
without division by the standard deviation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from probes.kinds.inputs import InputError, seed_of
from probes.kinds.pairs import PairProbe, _log_odds

CONSTANT_LOSS = 0.2
"""L of the best constant, p = 0.4: the minimum of (2p − 1)² + p²."""


class CcsProbe(PairProbe, BaseEstimator):
    """Contrast-consistent search.

    Args:
        n_restarts: random starts; the loss is not convex.
        n_steps: full-batch steps of each.
        learning_rate, weight_decay: of AdamW.
        normalise: `"mean_std"` (the paper's formula) or `"mean"`.
        random_state: seed of the starts.

    Fitted attributes:
        theta_, bias_: [d] and a number, over normalised halves.
        coef_, intercept_: [1, d] and [1], the same over raw activations (mean of the two halves' scales).
        mean_, std_: [2, d] of the halves, of the training pairs.
        losses_: [restart]; loss_, consistency_, confidence_: of the best.
        degenerate_: `""`, `"p = 1/2"` or `"reads the half"`; see the module.
        sign_determined_: whether labels decided the sign. `classes_` are 0 and 1 without labels.

    Raises (in `fit`):
        InputError: input that is no pairs, NaN pairs, fewer than 2, labels not of two classes or of another number.

    Example:
        >>> probe = CcsProbe().fit((acts_yes, acts_no))
        >>> probe.loss_, probe.degenerate_
        >>> CcsProbe().fit(pairs, y).score(test_pairs, test_y)   # labels for the sign only
    """

    def __init__(
        self,
        n_restarts=10,
        n_steps=1000,
        learning_rate=0.01,
        weight_decay=0.01,
        normalise="mean_std",
        random_state=0,
    ) -> None:
        self.n_restarts, self.n_steps = n_restarts, n_steps
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.normalise, self.random_state = normalise, random_state

    def fit(self, X: Any, y: Any = None) -> CcsProbe:
        """Fit to pairs: [pair, 2, d], or a tuple of two [pair, d]; `y` [pair] decides the sign and nothing else."""
        if not (self.n_restarts >= 1 and self.n_steps >= 1 and self.learning_rate > 0):
            given = f"{self.n_restarts}, {self.n_steps} and {self.learning_rate}"
            raise InputError(f"n_restarts, n_steps and learning_rate must be above 0, but are {given}.")
        halves, truth = self._prepare(X, y)
        theta, bias, terms = self._search(halves)
        self.losses_ = terms.sum(0)
        best = int(self.losses_.argmin())
        self.loss_, self.consistency_, self.confidence_ = (
            float(v) for v in (self.losses_[best], *terms[:, best])
        )
        self._finish(theta[best], float(bias[best]), halves, truth)
        self.degenerate_ = _degenerate(halves @ self.theta_ + self.bias_, self.loss_)
        return self

    @torch.inference_mode(False)  # within it nothing has gradients, whatever is enabled
    def _search(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[restart, d] weights, [restart] biases, [2, restart] consistency and confidence."""
        halves = torch.from_numpy(pairs)
        generator = torch.Generator().manual_seed(seed_of(self.random_state))
        start = torch.randn(self.n_restarts, halves.shape[2], generator=generator, dtype=torch.float64)
        theta = (start / start.norm(dim=1, keepdim=True)).requires_grad_()
        bias = torch.zeros(self.n_restarts, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.AdamW([theta, bias], lr=self.learning_rate, weight_decay=self.weight_decay)
        with torch.enable_grad():
            for _ in range(self.n_steps):
                optimiser.zero_grad()
                loss_terms(halves @ theta.T + bias).sum().backward()
                optimiser.step()
        with torch.no_grad():
            terms = loss_terms(halves @ theta.T + bias)
        return theta.detach().numpy(), bias.detach().numpy(), terms.numpy()


class CrcProbe(PairProbe, BaseEstimator):
    """The closed form beside `CcsProbe`: the first principal component of the normalised differences x̃⁺ − x̃⁻.

    Args:
        normalise: `"mean_std"` or `"mean"`, as for `CcsProbe`.

    Fitted attributes: as `CcsProbe`, with `explained_variance_ratio_` (the component's share) instead of losses. θ is
    scaled so that the differences have variance 4 along it, which makes ±1 a usual score of one member.

    Example:
        >>> CrcProbe().fit((acts_yes, acts_no), y).score((test_yes, test_no), test_y)
    """

    def __init__(self, normalise="mean_std") -> None:
        self.normalise = normalise

    def fit(self, X: Any, y: Any = None) -> CrcProbe:
        """Fit to pairs; see `CcsProbe.fit`."""
        halves, truth = self._prepare(X, y)
        difference = halves[:, 0] - halves[:, 1]
        total = float((difference**2).sum())
        if total <= 1e-20 * float((halves**2).sum()):
            raise InputError(
                "After normalising, both members of every pair are the same: they do not contrast."
            )
        _, sizes, right = np.linalg.svd(difference, full_matrices=False)
        self.explained_variance_ratio_ = float(sizes[0] ** 2) / total
        self._finish(right[0] * (2 * np.sqrt(len(halves)) / sizes[0]), 0.0, halves, truth)
        return self


def loss_terms(scores: Tensor) -> Tensor:
    """[2, restart] consistency and confidence, each the mean over pairs, from scores [pair, half, restart]."""
    p = torch.sigmoid(scores)
    first, second = p[:, 0], p[:, 1]
    return torch.stack([(first - (1 - second)) ** 2, torch.minimum(first, second) ** 2]).mean(1)


def _degenerate(scores: np.ndarray, loss: float) -> str:
    odds = _log_odds(scores)
    if loss > 0.9 * CONSTANT_LOSS or np.abs(odds).mean() < 0.2:  # log-odds of 0.2: p within 0.05 of one half
        return "p = 1/2"
    share = float((odds > 0).mean())
    return "reads the half" if max(share, 1 - share) >= 0.95 else ""
