"""Softmax regression with an L2 penalty on standardised activations, to a stated gradient.

With z the standardised rows, W_z [class, d] and b [class] it minimises

    F(W, b) = −(1/n) Σ_i log softmax(W z_i + b)[y_i] + λ/2 ‖W‖²       λ = 1 / (C n)

the mean of scikit-learn's objective ½‖W‖² + C Σ …, by Newton's method: each step solves ∇²F s = −∇F by conjugate
gradients (Hessian times vector; preconditioned by the diagonal in the basis of principal components, in which the
penalised problem is nearly diagonal), then halves it until F falls enough. F is strongly convex in W, so this
converges on separable data as well, and ‖W − W*‖ ≤ ‖∇F‖ / λ.

With two classes the softmax weights are ±w/2 and ‖W‖² = ‖w‖²/2: C counts half there, so that the probe is that of
`LogisticProbe` with the same C (a test holds them together).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import log_softmax

from probes.estimators import Features
from probes.kinds.inputs import InputError, labelled_rows
from probes.kinds.linear import ManyClasses, to_activations

CG_STEPS = 200
"""Most conjugate-gradient steps in one Newton step; what is left is for the next."""


class MultinomialProbe(ManyClasses):
    """Softmax regression for two classes or more; the intercepts are not penalised.

    Args:
        C: inverse strength of the L2 penalty, as in scikit-learn; smaller is stronger.
        tol: largest ‖∇F‖₂ that counts as converged, F the mean loss in nats over standardised features (see the
            module). Newton's method converges quadratically, so a small one costs little.
        max_iter: Newton steps. Where they are not enough `converged_` is False and `gradient_norm_` says by how much.

    Fitted attributes: `classes_`; `coef_` [class, d] and `intercept_` [class] over raw activations ([1, d] and [1]
    with two classes), each column summing to 0 over classes; `gradient_norm_` (‖∇F‖₂ reached), `n_iter_`, `converged_`.

    Raises (in `fit`):
        InputError: one class only, NaN rows, labels that do not match the rows, C or tol not above 0.

    Example:
        >>> probe = MultinomialProbe(C=0.1).fit(acts, colour)
        >>> probe.gradient_norm_ <= 1e-8, probe.predict_proba(acts).shape
    """

    def __init__(self, C=1.0, tol=1e-8, max_iter=100) -> None:
        self.C, self.tol, self.max_iter = C, tol, max_iter

    def fit(self, X: Any, y: Any) -> MultinomialProbe:
        """Fit to [row, d] activations and [row] labels."""
        rows, self.classes_, index = labelled_rows(self, X, y)
        if not (self.C > 0 and self.tol > 0 and self.max_iter >= 1):
            given = f"{self.C}, {self.tol} and {self.max_iter}"
            raise InputError(f"C and tol must be above 0 and max_iter at least 1, but are {given}.")
        features, two = Features.of(rows), len(self.classes_) == 2
        penalty = (2 if two else 1) / (self.C * len(rows))
        left, sizes, right = np.linalg.svd(features.reduced, full_matrices=False)
        fitted = _newton(left * sizes, sizes, index, len(self.classes_), penalty, self.tol, self.max_iter)
        weights, intercept = right.T @ fitted.weights, fitted.intercept
        if two:
            weights, intercept = weights[:, 1:] - weights[:, :1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = to_activations(features, weights, intercept)
        self.gradient_norm_, self.n_iter_ = fitted.gradient_norm, fitted.n_iter
        self.converged_ = bool(fitted.gradient_norm <= self.tol)
        return self


class _Fitted(NamedTuple):
    weights: np.ndarray
    intercept: np.ndarray
    gradient_norm: float
    n_iter: int


def _newton(
    rows: Float64[np.ndarray, "row rank"],
    sizes: Float64[np.ndarray, " rank"],
    label: Int64[np.ndarray, " row"],
    n_classes: int,
    penalty: float,
    tol: float,
    max_iter: int,
) -> _Fitted:
    """Minimise F over [rank + 1, class] weights (the last row holds the intercepts), from the class frequencies."""
    n = len(rows)
    design = np.concatenate([rows, np.ones((n, 1))], axis=1)
    decay = np.append(np.full(rows.shape[1], penalty), 0.0)[:, None]
    squares = np.append(sizes**2, float(n))[:, None] / n
    target = np.eye(n_classes)[label]
    weights = np.zeros((design.shape[1], n_classes))
    weights[-1] = np.log(target.mean(0))
    weights[-1] -= weights[-1].mean()

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(design @ w, axis=1)
        return float(-log_p[np.arange(n), label].mean() + (decay * w**2).sum() / 2), log_p

    loss, log_p = value(weights)
    for step in range(max_iter + 1):
        p = np.exp(log_p)
        gradient = design.T @ (p - target) / n + decay * weights
        norm = float(np.linalg.norm(gradient))
        if norm <= tol or step == max_iter:
            break

        def curvature(v: np.ndarray, p: np.ndarray = p) -> np.ndarray:
            moved = p * (design @ v)
            return design.T @ (moved - p * moved.sum(1, keepdims=True)) / n + decay * v

        diagonal = decay + squares * np.maximum((p * (1 - p)).mean(0), 1e-12)
        move = _conjugate_gradients(curvature, -gradient, diagonal, min(0.1, norm) * norm)
        slope = float((gradient * move).sum())
        length = 1.0
        while True:
            trial, log_p = value(weights + length * move)
            # the last digits of F are noise: near the minimum a step is taken unless F rises by more than that
            if trial <= loss + 1e-4 * length * slope + 1e-14 * max(1.0, abs(loss)) or length < 1e-8:
                break
            length /= 2
        weights, loss = weights + length * move, trial
    return _Fitted(weights[:-1], weights[-1] - weights[-1].mean(), norm, step)


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray, diagonal: np.ndarray, tolerance: float
) -> np.ndarray:
    """x with ‖product(x) − wanted‖ ≤ tolerance, or as near as `CG_STEPS` steps come."""
    found, residual = np.zeros_like(wanted), wanted.copy()
    scaled = residual / diagonal
    direction, energy = scaled.copy(), float((residual * scaled).sum())
    for _ in range(CG_STEPS):
        image = product(direction)
        bend = float((direction * image).sum())
        if bend <= 0:  # adding one number to all intercepts changes nothing: only rounding leads there
            break
        found += energy / bend * direction
        residual -= energy / bend * image
        if np.linalg.norm(residual) <= tolerance:
            break
        scaled = residual / diagonal
        before, energy = energy, float((residual * scaled).sum())
        direction = scaled + energy / before * direction
    return found if found.any() else wanted / diagonal
