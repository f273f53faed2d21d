"""Ridge regression on standardised activations, with the penalty chosen by exact leave-one-out.

With Z the standardised rows (mean 0), Y the centred targets [row, output] and a penalty α:

    W_z = (ZᵀZ + α I)⁻¹ ZᵀY             the intercept is not penalised
    H   = 11ᵀ/n + Z (ZᵀZ + α I)⁻¹ Zᵀ      ŷ = H y
    residual without row i = (y_i − ŷ_i) / (1 − H_ii)                     (Allen 1974, PRESS; exact)

One eigendecomposition gives all penalties and outputs: ZᵀZ = V E Vᵀ, H_ii = 1/n + Σ_j (ZV)²_ij / (e_j + α). With fewer
rows than dimensions that of the Gram matrix instead: ZZᵀ = U E Uᵀ, H_ii = 1/n + Σ_j U²_ij e_j / (e_j + α), W_z = Zᵀ
U (E + α)⁻¹ Uᵀ Y.

"Exact" is said of the regression on Z: mean and standard deviation, by which the rows were standardised, are those of
all rows, so a row that is left out still has its share in the *scale* of the features (not in the intercept).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from probes.estimators import Features
from probes.kinds.inputs import InputError, checked_pair, checked_rows, plain, same_number

ALPHAS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
"""Penalties tried by default. On standardised features the eigenvalues of ZᵀZ add up to rows × dimensions, so this
runs from next to no shrinkage to a strong one for some hundreds to tens of thousands of rows."""
SATURATED = 1e-10
"""1 − H_ii below this: the row alone decides its own fit, so nothing is known of what the others would say."""


class RidgeProbe(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Linear regression with an L2 penalty, for one number per row or several (coordinates, one-hot labels).

    Args:
        alphas: penalties to choose from, each above 0; one number fixes it. The larger, the stronger.
        per_output: choose a penalty for every output by itself. By default there is one for all: the smallest mean
            over outputs of the leave-one-out error as a share of the output's variance, so that units do not matter.

    Fitted attributes:
        alpha_: the penalty chosen (a number, or [output] with `per_output`).
        loo_residuals_: [row] or [row, output], y minus what the other rows predict, at that penalty.
        loo_errors_: [alpha] or [alpha, output] mean squared leave-one-out error as a share of the variance (of what
            predicting the mean of all rows would leave): 1 − R² out of sample.
        coef_, intercept_: [d] and a number, or [output, d] and [output], over raw activations.

    Raises (in `fit`):
        InputError: NaN rows, an output that is constant, targets that do not match the rows, a penalty of 0 or less.

    Example:
        >>> probe = RidgeProbe().fit(acts, year)
        >>> probe.alpha_, 1 - probe.loo_errors_.min()          # penalty and leave-one-out R²
    """

    def __init__(self, alphas=ALPHAS, per_output=False) -> None:
        self.alphas, self.per_output = alphas, per_output

    def fit(self, X: Any, y: Any) -> RidgeProbe:
        """Fit to [row, d] activations and [row] or [row, output] numbers."""
        X, y = plain(X), plain(y)
        same_number(X, y, "targets")
        rules: Any = {"dtype": np.float64, "ensure_all_finite": False, "ensure_min_samples": 2}
        rows, target = checked_pair(self, X, y, **rules, multi_output=True, y_numeric=True)
        target = np.asarray(target, dtype=np.float64)
        one = target.ndim == 1
        wanted = target[:, None] if one else target
        _varies(wanted)
        alphas = _penalties(self.alphas)
        features = Features.of(rows)
        standard = (rows - features.mean) / features.std
        centred = wanted - wanted.mean(0)
        residuals, solve = _path(standard, centred, alphas)
        errors = (residuals**2).mean(1) / wanted.var(0)
        best = errors.argmin(0) if self.per_output else np.full(wanted.shape[1], errors.mean(1).argmin())
        output = np.arange(wanted.shape[1])
        coef = solve(alphas[best]).T / features.std
        intercept = wanted.mean(0) - coef @ features.mean
        chosen = residuals[best, :, output].T
        self.alpha_ = alphas[best] if self.per_output and not one else float(alphas[best[0]])
        self.loo_residuals_ = chosen[:, 0] if one else np.ascontiguousarray(chosen)
        self.loo_errors_ = errors[:, 0] if one else errors
        self.coef_ = coef[0] if one else np.ascontiguousarray(coef)
        self.intercept_ = float(intercept[0]) if one else intercept
        return self

    def predict(self, X: Any) -> np.ndarray:
        """[row] or [row, output] numbers."""
        check_is_fitted(self)
        return checked_rows(self, X) @ self.coef_.T + self.intercept_


def _path(
    z: Float64[np.ndarray, "row d"],
    y: Float64[np.ndarray, "row output"],
    alphas: Float64[np.ndarray, " alpha"],
) -> tuple[Float64[np.ndarray, "alpha row output"], Any]:
    """Leave-one-out residuals at every penalty, and a function [output] penalties -> [d, output] weights."""
    n, d = z.shape
    dual = n < d
    values, vectors = np.linalg.eigh(z @ z.T if dual else z.T @ z)
    values = np.maximum(values, 0)
    # ŷ = left (E + α)⁻¹ right: the same two lines for the primal and the dual form
    left = vectors * values if dual else z @ vectors
    diagonal = vectors * left if dual else left**2
    right = vectors.T @ y if dual else left.T @ y
    residuals = np.empty((len(alphas), *y.shape))
    for index, alpha in enumerate(alphas):
        shrunk = 1 / (values + alpha)
        remaining = 1 - 1 / n - diagonal @ shrunk
        if remaining.min() < SATURATED:
            row = int(remaining.argmin())
            raise InputError(
                f"At the penalty {alpha:g} row {row} decides its own fit alone (leverage 1), so that leaving it out "
                "says nothing: leave the smallest of `alphas` out."
            )
        residuals[index] = (y - left @ (shrunk[:, None] * right)) / remaining[:, None]

    def solve(penalty: Float64[np.ndarray, " output"]) -> Float64[np.ndarray, "d output"]:
        inner = vectors @ (right / (values[:, None] + penalty))
        return z.T @ inner if dual else inner

    return residuals, solve


def _penalties(given: Any) -> Float64[np.ndarray, " alpha"]:
    alphas = np.atleast_1d(np.asarray(given, dtype=np.float64))
    if alphas.ndim != 1 or not len(alphas) or not (np.isfinite(alphas).all() and (alphas > 0).all()):
        raise InputError(f"The penalties (alphas) are one or more numbers above 0, not {given}.")
    return alphas


def _varies(targets: Float64[np.ndarray, "row output"]) -> None:
    spread = np.ptp(targets, axis=0)
    constant = np.flatnonzero(spread <= 1e-12 * np.abs(targets).max(0))
    if len(constant):
        column = constant[0]
        which = "The target is" if targets.shape[1] == 1 else f"Output {column} of the targets is"
        raise InputError(
            f"{which} the same number ({targets[0, column]:g}) in all {len(targets)} rows: there is nothing to "
            "predict. Leave it out, or give rows that differ."
        )
