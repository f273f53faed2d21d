"""What probes on contrast pairs share: the pairs, their normalisation, and the score of a pair.

A contrast pair is one question answered "yes" (x⁺) and "no" (x⁻). What tells the two answers apart whatever the
question (the word itself) is taken out by normalising each half by itself:

    x̃⁺ = (x⁺ − m⁺) / s⁺        x̃⁻ = (x⁻ − m⁻) / s⁻        means and standard deviations over the pairs of the half

The answer for a pair is the mean of p(x⁺) and 1 − p(x⁻): above one half says that the first member is the true one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.special import log_expit
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted, column_or_1d

from probes.kinds.inputs import InputError, no_gaps, plain, same_number


class PairProbe(ClassifierMixin):
    """Input, normalisation and scores of a probe θ, b on normalised halves: p(x) = σ(θ · x̃ + b).

    Since scikit-learn's tables have two dimensions and pairs have three, its estimator checks do not apply (its tag
    `three_d_array` says so); the conventions are kept.
    """

    normalise: str
    theta_: np.ndarray
    bias_: float

    def _prepare(self, X: Any, y: Any) -> tuple[Float64[np.ndarray, "pair half d"], np.ndarray | None]:
        """Normalised halves, and whether the first member is true (None without labels)."""
        pairs = _as_pairs(X)
        if len(pairs) < 2:
            raise InputError(
                f"Each half is normalised over its pairs, which takes at least 2, not {len(pairs)}."
            )
        if self.normalise not in ("mean", "mean_std"):
            raise InputError(f"normalise is 'mean_std' or 'mean', not {self.normalise!r}.")
        truth, classes = None, np.array([0, 1])
        if y is not None:
            y = plain(y)
            same_number(pairs, y, "labels")
            no_gaps(y)
            classes, index = np.unique(column_or_1d(y), return_inverse=True)
            if len(classes) != 2:
                raise InputError(
                    f"The labels say which member of a pair is true, so they are of two classes, not {len(classes)}; "
                    "leave them out to fit without (they decide the sign alone)."
                )
            truth = index == 1
        self.classes_, self.n_features_in_ = classes, pairs.shape[2]
        self.mean_ = pairs.mean(0)
        std = pairs.std(0)
        constant = std <= 1e-10 * np.abs(self.mean_)
        if constant.all():
            raise InputError(f"All {len(pairs)} pairs are the same: there is nothing to tell apart.")
        self.std_ = (
            np.where(constant | (std == 0), 1.0, std) if self.normalise == "mean_std" else np.ones_like(std)
        )
        return (pairs - self.mean_) / self.std_, truth

    def _finish(self, theta: np.ndarray, bias: float, halves: np.ndarray, truth: np.ndarray | None) -> None:
        """Turn the sign by the labels if there are any, and keep what was found."""
        self.sign_determined_ = truth is not None
        if truth is None:
            flip = theta[np.abs(theta).argmax()] < 0
        else:
            says = _log_odds(halves @ theta + bias) > 0
            flip = np.mean(says == truth) < 0.5
        self.theta_, self.bias_ = (-theta, -bias) if flip else (theta, bias)
        # x⁺ and x⁻ were scaled each by its own standard deviations: half of either is their common direction.
        self.coef_ = (self.theta_ * (1 / self.std_).mean(0))[None, :]
        self.intercept_ = np.array([self.bias_ - float(((self.mean_ / self.std_) @ self.theta_).mean())])

    def decision_function(self, X: Any) -> np.ndarray:
        """[pair] log-odds of ½ (p(x⁺) + 1 − p(x⁻)): that the first member is the true one."""
        check_is_fitted(self)
        pairs = _as_pairs(X)
        if pairs.shape[2] != self.n_features_in_:
            raise InputError(
                f"X has {pairs.shape[2]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        return _log_odds(((pairs - self.mean_) / self.std_) @ self.theta_ + self.bias_)

    def predict(self, X: Any) -> np.ndarray:
        """[pair] the second class (by default 1) where the first member is held to be true."""
        decision = self.decision_function(X)
        return self.classes_[(decision > 0).astype(int)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """[pair, 2] that the second and that the first member is true."""
        decision = self.decision_function(X)
        return np.exp(np.stack([log_expit(-decision), log_expit(decision)], axis=1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyright: ignore[reportAttributeAccessIssue]
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.target_tags.required = False
        assert tags.classifier_tags is not None
        tags.classifier_tags.multi_class = False
        return tags


def _as_pairs(X: Any) -> Float64[np.ndarray, "pair half d"]:
    """[pair, 2, d] from one array or from a tuple (x⁺, x⁻) of two."""
    if isinstance(X, tuple):
        if len(X) != 2:
            raise InputError(f"Pairs are given as (x_true, x_false), two arrays, not {len(X)}.")
        halves = [np.asarray(plain(half), dtype=np.float64) for half in X]
        if halves[0].shape != halves[1].shape:
            raise InputError(
                f"The two halves of the pairs have shapes {list(halves[0].shape)} and {list(halves[1].shape)}: row i "
                "of one belongs to row i of the other, so they must be the same."
            )
        pairs = np.stack(halves, axis=1)
    else:
        pairs = np.asarray(plain(X), dtype=np.float64)
    if pairs.ndim != 3 or pairs.shape[1] != 2:
        raise InputError(
            f"Contrast pairs are one array [pair, 2, d] or two arrays [pair, d], not {list(pairs.shape)}."
        )
    bad = np.flatnonzero(~np.isfinite(pairs).all((1, 2)))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(pairs)} pairs hold NaN or infinite values, the first is pair {bad[0]}: leave them "
            "out, or collect them again."
        )
    return pairs


def _log_odds(scores: Float64[np.ndarray, "pair half"]) -> Float64[np.ndarray, " pair"]:
    """log of p̄ / (1 − p̄), p̄ = ½ (σ(first) + σ(−second)), without overflow."""
    first, second = scores.T
    yes = np.logaddexp(log_expit(first), log_expit(-second))
    no = np.logaddexp(log_expit(-first), log_expit(second))
    return yes - no
