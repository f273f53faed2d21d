"""What the linear kinds share: a decision function of one column, or one column per class.

    f(x) = W x + b          two classes: W is [1, d], f the score of the second class, predict f > 0
                            K classes:   W is [K, d], predict the class of the largest f

    p(class | x)            two classes: σ(f);  K classes: softmax(f)

W and b are over raw activations, whatever was standardised on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from scipy.special import log_expit, softmax
from sklearn.utils.validation import check_is_fitted

from probes.estimators import Features, LinearProbe
from probes.kinds.inputs import checked_rows


class LinearKind(LinearProbe):
    """`decision_function`, `predict` and `predict_proba` for a fitted `coef_`, `intercept_` and `classes_`."""

    def decision_function(self, X: Any) -> np.ndarray:
        """[row] score of the second class, or [row, class] with more than two classes."""
        check_is_fitted(self)
        values = checked_rows(self, X) @ self.coef_.T + self.intercept_
        return values[:, 0] if len(self.coef_) == 1 else values

    def predict(self, X: Any) -> np.ndarray:
        """[row] class with the largest score; with two classes the second where the score is above 0."""
        decision = self.decision_function(X)
        chosen = (decision > 0).astype(int) if decision.ndim == 1 else decision.argmax(1)
        return self.classes_[chosen]

    def predict_proba(self, X: Any) -> np.ndarray:
        """[row, class] probabilities: the sigmoid of the score, or the softmax over classes."""
        return probabilities(self.decision_function(X))


class ManyClasses(LinearKind):
    """A linear kind that takes more than two classes."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        assert tags.classifier_tags is not None
        tags.classifier_tags.multi_class = True
        return tags


def probabilities(decision: Float[np.ndarray, "row *class"]) -> Float[np.ndarray, "row column"]:
    """[row, class] probabilities from scores: σ of one column, softmax of several."""
    if decision.ndim == 1:
        return np.exp(np.stack([log_expit(-decision), log_expit(decision)], axis=1))
    return softmax(decision, axis=1)


def to_activations(
    features: Features,
    weights: Float64[np.ndarray, "rank column"],
    intercept: Float64[np.ndarray, " column"],
) -> tuple[Float64[np.ndarray, "column d"], Float64[np.ndarray, " column"]]:
    """Weights over `features.reduced` -> `coef_` and `intercept_` over raw activations."""
    found = [features.weights(w, float(b)) for w, b in zip(weights.T, intercept, strict=True)]
    return np.stack([w.coef for w in found]), np.array([w.intercept for w in found])
