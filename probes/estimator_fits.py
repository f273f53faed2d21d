"""Estimators of scikit-learn's conventions as kinds of a sweep: fitted, asked for scores and, where there are, weights.

    scores      of two classes one a row (that of the second), else one a class: `decision_function`, or log p
    weights     W, b of `coef_` and `intercept_`, only if x Wᵀ + b are those scores

What an estimator cannot do for a sweep is said as one `DataError`.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
from sklearn.base import is_regressor

from workbench.errors import DataError

CHECKED_ROWS = 64
"""Training rows on which weights must give the estimator's own scores."""


def fit_one(one: Any, x: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> Any:
    """Fitted to one label vector, with groups where `fit` takes them; an estimator that refuses is a `DataError`."""
    more = {"groups": groups} if groups is not None and "groups" in signature(one.fit).parameters else {}
    name = type(one).__name__
    try:
        fit = one.fit(x, labels, **more)
    except DataError:
        raise
    except ValueError as error:
        n = int(labels.max()) + 1
        raise DataError(
            f"{name} could not be fitted: {error}. It is given the classes as the numbers 0 to {n - 1}, in the order "
            "of the sweep's classes: name those in its arguments (class_weight={0: 1.0, 1: 2.0}, or 'balanced')."
        ) from error
    if not any(hasattr(fit, method) for method in ("decision_function", "predict_proba")):
        raise DataError(
            f"{name} gives no scores of classes: a kind of probe needs decision_function or predict_proba. For "
            "numbers use probes.regress."
        )
    if labels.max() > 1 and _scores_pairs(fit):
        raise DataError(
            f"{name} with decision_function_shape='ovo' scores pairs of classes, not classes: make it with "
            "decision_function_shape='ovr'."
        )
    return fit


def _scores_pairs(fit: Any) -> bool:
    """Whether it, or a step of it, was asked for a score of every pair of classes."""
    settings = fit.get_params() if hasattr(fit, "get_params") else {}
    return any(
        key.rsplit("__", 1)[-1] == "decision_function_shape" and value == "ovo"
        for key, value in settings.items()
    )


def has_weights(fit: Any) -> bool:
    """Whether `coef_` holds one weight vector per class (of two classes: one), which give the scores of any row."""
    coef = getattr(fit, "coef_", None)
    if coef is None:
        return False
    n_classes = len(getattr(fit, "classes_", ()))
    if n_classes <= 2:
        return True
    rows = np.random.default_rng(0).normal(size=(8, np.shape(coef)[-1]))
    try:
        return not _scores_pairs(fit) and weights_of(fit, rows, n_classes) is not None
    except (DataError, AttributeError):
        return False


def log_odds(fit: Any, x: np.ndarray, n_classes: int) -> np.ndarray:
    """[row, class] scores; from `decision_function`, else from the logarithm of the probabilities.

    A probability of exactly 0 counts as 1e-12, or as the least of the others where that is smaller.
    """
    if hasattr(fit, "decision_function"):
        found = np.asarray(fit.decision_function(x), dtype=np.float64)
        found = found[:, None] if found.ndim == 1 else found
        expected = 1 if n_classes == 2 else n_classes
    else:
        with np.errstate(divide="ignore"):
            if hasattr(fit, "predict_log_proba"):
                found = np.array(fit.predict_log_proba(x), dtype=np.float64)
            else:
                found = np.log(np.asarray(fit.predict_proba(x), dtype=np.float64))
        known = np.isfinite(found)
        found[np.isneginf(found)] = min(np.log(1e-12), found[known].min() if known.any() else 0.0)
        expected = n_classes
    if found.shape != (len(x), expected):
        raise DataError(
            f"{type(fit).__name__} gives scores of shape {list(found.shape)} for {len(x)} rows of {n_classes} classes: "
            f"expected {expected} a row. Use an estimator that gives a score for each class (of two, for the second)."
        )
    if expected == 2:
        return found[:, 1:] - found[:, :1]
    return found


def weights_of(fit: Any, x: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray] | None:
    """[column, d] weights and [column] intercepts, where they give the estimator's scores of `x`; else None."""
    coef = getattr(fit, "coef_", None)
    if coef is None:
        return None
    coef = np.atleast_2d(np.asarray(coef.toarray() if hasattr(coef, "toarray") else coef, dtype=np.float64))
    scores = log_odds(fit, x, n_classes)
    if coef.shape != (scores.shape[1], x.shape[1]):
        return None
    intercept = np.ravel(np.asarray(getattr(fit, "intercept_", 0.0), dtype=np.float64))
    if len(intercept) not in (1, len(coef)):
        return None
    intercept = np.broadcast_to(intercept, len(coef))
    size = float(np.abs(scores).max())
    return (
        (coef, intercept)
        if np.allclose(x @ coef.T + intercept, scores, rtol=1e-4, atol=1e-4 * size)
        else None
    )


def classifier(name: str, estimator: Any) -> Any:
    """The estimator, if it could be a classifier."""
    if isinstance(estimator, type) or not hasattr(estimator, "fit"):
        wrong = (
            f"{estimator.__name__} is a class" if isinstance(estimator, type) else f"{estimator!r} has no fit"
        )
        raise DataError(
            f"Kind {name!r}: {wrong}: give an estimator of scikit-learn's conventions, such as LdaProbe(), or None for "
            "the kind of that name."
        )
    if hasattr(estimator, "__sklearn_tags__") and is_regressor(estimator):
        raise DataError(
            f"Kind {name!r}: {type(estimator).__name__} predicts numbers, a probe of classes needs a classifier: use "
            "probes.regress for numbers, or kind 'ridge'."
        )
    return estimator
