"""A probe on a few features: which single latents of a dictionary (or other features) carry a property.

1. Features are ranked on the training rows:
   `mean_difference`   |mean over positive rows − mean over negative rows|, the largest first (SAEBench, Karvonen et al.
                       2025, arXiv:2503.09532; Gao et al. 2024, arXiv:2406.04093 choose one by one)
   `l1`                the order in which features enter the L1-penalised logistic regression as its penalty falls
2. The first k are kept, and a logistic probe (`LogisticProbe`: L2, standardised) is fitted to them.

Ranking is part of the fit: in a cross-validation it must see the training rows alone (`sparse_beside_dense` does that).
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.svm import l1_min_c

from probes.estimators import Features, LogisticProbe, Weights
from probes.kinds.inputs import InputError, labelled_rows
from probes.kinds.linear import LinearKind

SELECTIONS = ("mean_difference", "l1")
PATH_STEP = 10**0.1
"""Factor by which the L1 penalty falls from one step of the path to the next."""
PATH_STEPS = 80
"""Steps of the path: eight powers of ten from where the first feature enters."""


class NothingDiffers(InputError):
    """No feature differs between the classes, so that none can be selected."""


class SparseProbe(LinearKind):
    """Logistic regression on the k best features.

    Args:
        k: number of features. Where fewer differ between the classes, `support_` is shorter.
        selection: `"mean_difference"` (default) or `"l1"`; see the module.
        C: inverse strength of the L2 penalty of the logistic regression.

    Fitted attributes: `classes_`; `support_` [k] the features, best first; `coef_` [1, d], zero outside the support,
    and `intercept_`, over raw features; `n_iter_`, `converged_`.

    Raises (in `fit`):
        InputError: not two classes, NaN rows, labels that do not match the rows, k below 1, an unknown selection, or
            rows in which no feature differs between the classes.

    Example:
        >>> probe = SparseProbe(k=4).fit(sae.encode(acts), labels)
        >>> probe.support_                                     # four latents to look at
    """

    def __init__(self, k=16, selection="mean_difference", C=1.0) -> None:
        self.k, self.selection, self.C = k, selection, C

    def fit(self, X: Any, y: Any) -> SparseProbe:
        """Fit to [row, feature] and [row] labels of two classes."""
        rows, self.classes_, index = labelled_rows(self, X, y, classes=2, keep_float32=True)
        order = rank_features(rows, index == 1, int(self.k), self.selection)
        found = fit_on(rows, index == 1, order, float(self.C))
        self.support_ = order
        self.coef_, self.intercept_ = found.coef[None, :], np.array([found.intercept])
        self.n_iter_, self.converged_ = found.n_iter, found.converged
        return self

    def weights(self, features: Features, positive: Bool[np.ndarray, " row"]) -> Weights:
        """Fit one label vector to prepared rows, without changing this object."""
        order = rank_features(features.raw, positive, int(self.k), self.selection)
        return fit_on(features.raw, positive, order, float(self.C))


def rank_features(
    rows: Float[np.ndarray, "row feature"], positive: Bool[np.ndarray, " row"], k: int, selection: str
) -> Int64[np.ndarray, " rank"]:
    """The up to `k` best features, best first; equal ones in the order of their numbers.

    Raises:
        InputError: k below 1 or an unknown selection; `NothingDiffers`, which is one, where no feature differs.
    """
    if k < 1:
        raise InputError(f"k, the number of features, must be at least 1, not {k}.")
    if selection not in SELECTIONS:
        raise InputError(f"There is no selection {selection!r}: it is one of {', '.join(SELECTIONS)}.")
    gap = np.abs(rows[positive].mean(0, dtype=np.float64) - rows[~positive].mean(0, dtype=np.float64))
    gap[gap <= 1e-12 * np.abs(rows).max(0)] = 0.0  # rounding of features that are the same in every row
    if not gap.any():
        raise NothingDiffers(
            f"None of {rows.shape[1]} features differs between the classes in the mean: there is nothing to select."
        )
    if selection == "mean_difference":
        order = np.argsort(-gap, kind="stable")[:k]
        return order[gap[order] > 0]
    return _entering(rows, positive, k)


def fit_on(
    rows: Float[np.ndarray, "row feature"],
    positive: Bool[np.ndarray, " row"],
    support: Int64[np.ndarray, " rank"],
    C: float,
) -> Weights:
    """A logistic probe on the features of `support` (without any: the constant), as weights over all features."""
    if not C > 0:
        raise InputError(f"C must be above 0, not {C}.")
    if not len(support):
        return Weights(np.zeros(rows.shape[1]), float(np.log(positive.sum() / (~positive).sum())))
    chosen = rows[:, support].astype(np.float64)
    found = LogisticProbe(C=C).weights(Features.of(chosen), positive)
    coef = np.zeros(rows.shape[1])
    coef[support] = found.coef
    return found._replace(coef=coef)


def l1_penalty(maker: Any = LogisticRegression) -> dict[str, Any]:
    """Arguments for an L1 penalty: `penalty` up to scikit-learn 1.7 (where `l1_ratio` alone leaves it L2)."""
    given = signature(maker).parameters.get("penalty")
    return {"penalty": "l1"} if given is not None and given.default == "l2" else {"l1_ratio": 1.0}


def _entering(rows: np.ndarray, positive: np.ndarray, k: int) -> Int64[np.ndarray, " rank"]:
    """Features in the order in which they enter the L1 path (those of one step by the size of their weight)."""
    mean, std = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    varies = np.flatnonzero(std > 1e-10 * np.abs(mean))
    z = (rows[:, varies] - mean[varies]) / std[varies]
    label = positive.astype(int)
    C = float(l1_min_c(z, label, loss="log"))
    order: list[int] = []
    for _ in range(PATH_STEPS):
        C *= PATH_STEP
        model = LogisticRegression(
            **l1_penalty(), C=C, solver="liblinear", intercept_scaling=10, random_state=0
        )
        size = np.abs(model.fit(z, label).coef_[0])
        new = [int(i) for i in np.argsort(-size, kind="stable") if size[i] > 0 and i not in set(order)]
        order += new
        if len(order) >= k or len(order) == len(varies):
            break
    return varies[np.array(order[:k], dtype=np.int64)]
