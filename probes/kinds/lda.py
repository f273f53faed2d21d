"""Linear discriminant analysis: one Gaussian per class with a common, shrunk covariance.

With z the standardised rows, class means m_k, class shares π_k and S the covariance of rows about their class means:

    Σ    = (1 − a) S + a (tr S / d) I                    a in [0, 1]: the shrinkage
    f_k(x) = z · Σ⁻¹ m_k − ½ m_kᵀ Σ⁻¹ m_k + log π_k      K classes
    f(x)   = f_1(x) − f_0(x)                             two classes: the log-odds

This is scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr" or "eigen", shrinkage=a)` on standardised rows. Two
classes with `shrinkage="auto"` are `mass_mean_whitened` (`probes.estimators.WhitenedMassMeanProbe`) under its
statistical name, number for number; what this kind adds are more classes and a shrinkage of one's own.

scikit-learn's own `shrinkage="auto"` differs: it estimates `a` in each class by itself, on rows standardised within it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from probes.estimators import MIN_VARIANCE, Features, Weights
from probes.kinds.inputs import InputError, labelled_rows
from probes.kinds.linear import ManyClasses, to_activations


class LdaProbe(ManyClasses):
    """Linear discriminant analysis for two classes or more.

    Args:
        shrinkage: `a` of the formula: `"auto"` (default) follows from the data (Ledoit and Wolf 2004, on all rows about
            their class means), or a number from 0 (the covariance as it is; needs more rows than dimensions) to 1 (a
            multiple of the identity: mass-mean on standardised rows).

    Fitted attributes: `classes_`; `coef_` and `intercept_` over raw activations ([1, d] with two classes, else
    [class, d]); `shrinkage_`; `priors_` [class] shares of the rows.

    Raises (in `fit`):
        InputError: one class only, NaN rows, labels that do not match the rows, a shrinkage that is not in [0, 1], or
            one of 0 where the covariance has no inverse.

    Example:
        >>> LdaProbe().fit(acts, language).predict(others)
    """

    def __init__(self, shrinkage="auto") -> None:
        self.shrinkage = shrinkage

    def fit(self, X: Any, y: Any) -> LdaProbe:
        """Fit to [row, d] activations and [row] labels."""
        rows, self.classes_, index = labelled_rows(self, X, y)
        features = Features.of(rows)
        label = np.eye(len(self.classes_))[index]
        weights, intercept, self.shrinkage_, self.priors_ = _discriminants(features, label, self.shrinkage)
        if len(self.classes_) == 2:
            weights, intercept = weights[:, 1:] - weights[:, :1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = to_activations(features, weights, intercept)
        self.n_iter_, self.converged_ = 1, True
        return self

    def weights(self, features: Features, positive: Bool[np.ndarray, " row"]) -> Weights:
        """Fit one label vector of two classes to prepared rows, without changing this object."""
        label = np.stack([~positive, positive], axis=1).astype(np.float64)
        weights, intercept, _, _ = _discriminants(features, label, self.shrinkage)
        return features.weights(weights[:, 1] - weights[:, 0], float(intercept[1] - intercept[0]))


def _discriminants(
    features: Features, label: np.ndarray, shrinkage: Any
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """[rank, class] weights over the reduced rows, [class] intercepts, the shrinkage, the class shares."""
    rows, d = features.reduced, features.raw.shape[1]
    counts = label.sum(0)
    means = label.T @ rows / counts[:, None]
    centred = rows - label @ means
    values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    values = np.maximum(values, 0)
    amount = _amount(shrinkage, centred, values, d)
    apart = max(float(((means - mean) ** 2).sum(1).max()) for mean in means)
    # With next to no variance inside the classes the log-odds would be infinite: as in mass_mean_whitened.
    ridge = amount * float(values.sum()) / d
    if not isinstance(shrinkage, str) and amount == 0:
        if len(rows) - len(counts) < d or values[0] <= 1e-12 * values[-1]:
            raise InputError(
                f"Without shrinkage the covariance of {len(rows)} rows in {d} dimensions has no inverse: give a "
                "shrinkage above 0, or 'auto'."
            )
    else:
        ridge = max(ridge, MIN_VARIANCE * apart, 1e-300)
    inverse = (vectors / ((1 - amount) * values + ridge)) @ vectors.T
    weights = inverse @ means.T
    intercept = np.log(counts / len(rows)) - (means * weights.T).sum(1) / 2
    return weights, intercept, amount, counts / len(rows)


def _amount(shrinkage: Any, centred: np.ndarray, values: np.ndarray, d: int) -> float:
    """The number asked for, or Ledoit and Wolf's from rows given in a basis of their span (zeros outside it)."""
    if not isinstance(shrinkage, str):
        if not 0 <= shrinkage <= 1:
            raise InputError(f"The shrinkage is 'auto' or a number from 0 to 1, not {shrinkage}.")
        return float(shrinkage)
    if shrinkage != "auto":
        raise InputError(f"The shrinkage is 'auto' or a number from 0 to 1, not {shrinkage!r}.")
    squared = float((values**2).sum())
    spread = float(((centred**2).sum(1) ** 2).mean()) - squared
    distance = squared - float(values.sum()) ** 2 / d
    return 1.0 if distance <= 0 else min(1.0, max(0.0, spread / len(centred) / distance))
