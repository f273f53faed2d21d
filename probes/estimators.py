"""Linear probes: scikit-learn estimators for two classes, and what their fits share.

With rows x, labels y ∈ {0, 1}, class means μ₁ and μ₀, class sizes n₁ and n₀, and z the features standardised
with mean and standard deviation of the *training* rows, every probe is a decision function

    f(x) = w · x + b        predict: f > 0        p(y = 1 | x) = σ(f(x))

in the units of the activations (w and b are mapped back from z).

| kind | w and b |
| --- | --- |
| `logistic` | minimises ½‖w_z‖² + C Σ log(1 + exp(−(2y−1) f)) over z (`LogisticRegression`, L2, lbfgs) |
| `mass_mean` | w ∝ θ = μ₁ − μ₀ of the raw activations |
| `mass_mean_whitened` | w_z = Σ⁻¹ θ_z, Σ the within-class covariance of z, shrunk (Ledoit and Wolf 2004) |

Mass-mean probes are those of Marks and Tegmark 2023 (arXiv:2310.06824); the whitened one, their probe for
independent and identically distributed data, is linear discriminant analysis. What differs from the paper: a
bias that lets the classes meet half-way between their means, plus the log prior log(n₁/n₀) (the paper centres
the data); a length of w, in the plain form, that makes f the log-odds of two Gaussians of one variance along
θ (the order of the rows is that of θ · x); shrinkage, since with fewer rows than dimensions Σ has no inverse.

Fewer rows than dimensions: z lies in the span of the rows. One QR factorisation zᵀ = QR per training set
turns the problem into one of as many dimensions as rows, with the same minimum (rotation keeps ‖w_z‖), shared
by all kinds and all label vectors. `Features` is that shared part.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Bool, Float64, Int64
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from probes.kinds.inputs import plain
from workbench.errors import DataError, did_you_mean

ONE_THREAD = 4_000_000
"""Up to so many numbers (rows times dimensions) one BLAS thread beats several that wait for each other."""
ROUNDING = 1e-5
"""Rows that differ by less than this share of their size are constant: what differs is rounding."""
MIN_VARIANCE = 1e-9
"""Least within-class variance, as a share of the squared distance of the means; keeps log-odds finite."""


def as_matrix(
    values: Tensor, index: Int64[np.ndarray, " row"], site: str
) -> tuple[Float64[np.ndarray, "row d"], bool]:
    """The rows at `index` of a site's activations, and whether they are constant (then all are set to zero).

    Raises:
        DataError: NaN or infinite values, with their number and the first row.
    """
    x = values.flatten(1)[torch.from_numpy(index)].double().numpy()
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(x)} rows at {site!r} hold NaN or infinite values, the first is row "
            f"{index[bad[0]]}: leave them out, or collect them again."
        )
    constant = bool(np.linalg.norm(x - x.mean(0)) <= ROUNDING * np.linalg.norm(x))
    return (np.zeros_like(x) if constant else x), constant


@dataclass(frozen=True, eq=False)
class Features:
    """Training rows, standardised and rotated once, to be fitted with many label vectors.

    Attributes:
        raw: [row, d] activations.
        mean, std: [d] of the rows; the standard deviation of a constant feature counts as 1.
        basis: [d, rank] orthonormal columns that span the standardised rows, or None for the identity.
        reduced: [row, rank] standardised rows in that basis.
    """

    raw: Float64[np.ndarray, "row d"]
    mean: Float64[np.ndarray, " d"]
    std: Float64[np.ndarray, " d"]
    basis: Float64[np.ndarray, "d rank"] | None
    reduced: Float64[np.ndarray, "row rank"]

    @classmethod
    def of(cls, rows: Float64[np.ndarray, "row d"]) -> Features:
        """Standardise, and rotate where there are fewer rows than dimensions."""
        mean, std = rows.mean(0), rows.std(0)
        std = np.where(std <= 1e-10 * np.abs(mean), 1.0, std)  # below that it is rounding
        std[std == 0] = 1.0
        standard = (rows - mean) / std
        if len(rows) >= rows.shape[1]:
            return cls(rows, mean, std, None, standard)
        basis, upper = np.linalg.qr(standard.T)
        return cls(rows, mean, std, basis, np.ascontiguousarray(upper.T))

    def weights(
        self, reduced: Float64[np.ndarray, " rank"], intercept: float, n_iter: int = 1, converged: bool = True
    ) -> Weights:
        """Weights over `reduced` -> weights over the raw activations."""
        standard = reduced if self.basis is None else self.basis @ reduced
        raw = standard / self.std
        return Weights(raw, float(intercept - raw @ self.mean), n_iter, converged)


class Weights(NamedTuple):
    """A fitted decision function `x @ coef + intercept` over raw activations."""

    coef: np.ndarray
    intercept: float
    n_iter: int = 1
    converged: bool = True

    def decision(self, rows: Float64[np.ndarray, "row d"]) -> Float64[np.ndarray, " row"]:
        """Log-odds of the positive class for each row."""
        return rows @ self.coef + self.intercept


class LinearProbe(ClassifierMixin, BaseEstimator):
    """The scikit-learn conventions, for every probe. A subclass says how to find its weights.

    Fitted attributes: `classes_` (sorted, the second is positive), `coef_` [1, d] and `intercept_` [1] over
    raw activations, `n_iter_` and `converged_` (1 and True for a closed form). Bad input is a `ValueError`,
    as in scikit-learn.

    Example:
        >>> probe = LogisticProbe(C=0.1).fit(train_x, train_y)
        >>> probe.score(test_x, test_y), probe.coef_.shape
    """

    def weights(self, features: Features, positive: Bool[np.ndarray, " row"]) -> Weights:
        """Fit one label vector to prepared rows, without changing this object."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any) -> LinearProbe:
        """Fit to [row, d] activations and [row] labels of two classes."""
        X, y = validate_data(self, plain(X), plain(y), dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(f"Only binary classification is supported, y has {len(self.classes_)} classes.")
        if len(self.classes_) < 2:
            raise ValueError("Two classes are needed, but the data contains only one class.")
        found = self.weights(Features.of(X), index == 1)
        self.coef_, self.intercept_ = found.coef[None, :], np.array([found.intercept])
        self.n_iter_, self.converged_ = found.n_iter, found.converged
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """[row] log-odds of the second class."""
        check_is_fitted(self)
        X = validate_data(self, plain(X), dtype=np.float64, reset=False)
        return X @ self.coef_[0] + self.intercept_[0]

    def predict(self, X: Any) -> np.ndarray:
        """[row] the class whose probability is above one half."""
        decision = self.decision_function(X)
        return self.classes_[(decision > 0).astype(int)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """[row, 2] probabilities of the two classes."""
        decision = self.decision_function(X)
        return np.stack([_sigmoid(-decision), _sigmoid(decision)], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        assert tags.classifier_tags is not None
        tags.classifier_tags.multi_class = False
        return tags


class LogisticProbe(LinearProbe):
    """Logistic regression with an L2 penalty on standardised features; the intercept is not penalised.

    Args:
        C: inverse strength of the penalty; smaller is stronger.
        max_iter, tol: of lbfgs. Where they are not enough `converged_` is False (there is no warning).
    """

    def __init__(self, C=1.0, max_iter=1000, tol=1e-4) -> None:
        self.C, self.max_iter, self.tol = C, max_iter, tol

    def weights(self, features: Features, positive: Bool[np.ndarray, " row"]) -> Weights:
        model = LogisticRegression(C=self.C, max_iter=self.max_iter, tol=self.tol, solver="lbfgs")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(features.reduced, positive)
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        n_iter = int(model.n_iter_[0])
        return features.weights(model.coef_[0], float(np.ravel(model.intercept_)[0]), n_iter, converged)


class MassMeanProbe(LinearProbe):
    """Difference of class means of the raw activations; no standardisation, nothing to tune."""

    def weights(self, features: Features, positive: Bool[np.ndarray, " row"]) -> Weights:
        rows = features.raw
        upper, lower = rows[positive].mean(0), rows[~positive].mean(0)
        theta = upper - lower
        along = rows @ theta
        distance = float(theta @ theta)
        residual = np.where(positive, along - upper @ theta, along - lower @ theta)
        variance = max(float(np.mean(residual**2)), MIN_VARIANCE * distance**2)
        coef = theta * (distance / variance) if distance > 0 else theta
        return Weights(coef, _log_prior(positive) - float(coef @ (upper + lower)) / 2)


class WhitenedMassMeanProbe(LinearProbe):
    """Difference of class means through the inverse of the shrunk within-class covariance.

    Σ = (1 − a) S + a (tr S / d) I, S the covariance of the standardised rows about their class means and `a`
    the shrinkage of Ledoit and Wolf, which follows from the data.
    """

    def weights(self, features: Features, positive: Bool[np.ndarray, " row"]) -> Weights:
        rows, d = features.reduced, features.raw.shape[1]
        upper, lower = rows[positive].mean(0), rows[~positive].mean(0)
        centred = np.where(positive[:, None], rows - upper, rows - lower)
        scatter = centred.T @ centred / len(rows)
        shrinkage = _ledoit_wolf(centred, scatter, d)
        distance = float((upper - lower) @ (upper - lower))
        ridge = max(shrinkage * float(np.trace(scatter)) / d, MIN_VARIANCE * distance, 1e-300)
        covariance = (1 - shrinkage) * scatter + ridge * np.eye(len(scatter))
        coef = scipy.linalg.solve(covariance, upper - lower, assume_a="pos", check_finite=False)
        return features.weights(coef, _log_prior(positive) - float(coef @ (upper + lower)) / 2)


KINDS: dict[str, type[LinearProbe]] = {
    "logistic": LogisticProbe,
    "mass_mean": MassMeanProbe,
    "mass_mean_whitened": WhitenedMassMeanProbe,
}
"""Every kind of probe, by the name that `probes.sweep(kinds=...)` takes."""


def make_probes(kinds: str | Iterable[str], *, penalty: float) -> dict[str, LinearProbe]:
    """Kind -> estimator, in the order asked for. An unknown kind is a `DataError` that names the nearest."""
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        asked = f"There is no probe of kind {unknown[0]!r}" if unknown else "No kind of probe was asked for"
        hint = did_you_mean(unknown[0], KINDS) if unknown else ""
        raise DataError(f"{asked}; the kinds are {', '.join(KINDS)}.{hint}")
    return {name: LogisticProbe(C=penalty) if name == "logistic" else KINDS[name]() for name in names}


def _ledoit_wolf(
    centred: Float64[np.ndarray, "row rank"], scatter: Float64[np.ndarray, "rank rank"], d: int
) -> float:
    """Ledoit and Wolf's shrinkage for `d` dimensions, from rows given in a basis of their span."""
    n = len(centred)
    squared = float((scatter**2).sum())
    spread = float(((centred**2).sum(1) ** 2).sum()) / n - squared
    distance = squared - float(np.trace(scatter)) ** 2 / d
    return 1.0 if distance <= 0 else min(1.0, max(0.0, spread / n / distance))


def _log_prior(positive: Bool[np.ndarray, " row"]) -> float:
    return float(np.log(positive.sum() / (~positive).sum()))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
