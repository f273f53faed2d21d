"""Directions found without labels: a principal component, or the line between two clusters.

Labels are used **for the sign only**, if they are given: which end is called positive. They change neither the line nor
the threshold. So these probes show what stands out in the activations by itself; where a supervised probe does much
better, the property is there but is not what varies most.

    PCA       v = k-th eigenvector of the covariance of the rows      f(x) = ± v · (x − m) / s
              m their mean, s their standard deviation along v
    k-means   c₁, c₂ = the centroids of two clusters                  f(x) = ± (c₂ − c₁) · (x − (c₁ + c₂)/2) / s²
              s² the variance inside the clusters along c₂ − c₁, which makes f the log-odds of two Gaussians

Without labels the sign cannot be known: `sign_determined_` is False, the classes are called 0 and 1, and the largest
component of the direction is positive so that the same rows give the same sign. Neither score is calibrated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from sklearn.cluster import KMeans

from probes.estimators import MIN_VARIANCE, Features, Weights
from probes.kinds.inputs import InputError, checked_rows, labelled_rows
from probes.kinds.linear import LinearKind


class _Unsupervised(LinearKind):
    """`fit` with labels or without; a subclass finds a decision function of any sign."""

    standardise: bool

    def _line(self, rows: Float64[np.ndarray, "row d"]) -> tuple[np.ndarray, float, int]:
        """Weights, intercept and iterations, from rows that may be standardised."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None) -> _Unsupervised:
        """Fit to [row, d] activations; [row] labels of two classes, if given, decide the sign and nothing else."""
        if y is None:
            rows, positive = checked_rows(self, X, reset=True, at_least=2), None
            self.classes_ = np.array([0, 1])
        else:
            rows, self.classes_, index = labelled_rows(self, X, y, classes=2)
            positive = index == 1
        found = self._directed(rows, positive)
        self.coef_, self.intercept_ = found.coef[None, :], np.array([found.intercept])
        self.n_iter_, self.converged_ = found.n_iter, found.converged
        self.sign_determined_ = positive is not None
        return self

    def weights(self, features: Features, positive: Bool[np.ndarray, " row"]) -> Weights:
        """The same line whatever the labels; they turn its sign."""
        return self._directed(features.raw, positive)

    def _directed(self, rows: np.ndarray, positive: np.ndarray | None) -> Weights:
        constant = np.ptp(rows, axis=0) == 0
        if constant.all():
            raise InputError(f"All {len(rows)} rows are the same: there is no direction in which they vary.")
        mean = rows.mean(0)
        std = np.where(constant, 1.0, rows.std(0)) if self.standardise else np.ones(rows.shape[1])
        line, intercept, n_iter = self._line((rows - mean) / std)
        if positive is None:
            flip = line[np.abs(line).argmax()] < 0
        else:
            along = (rows - mean) @ (line / std)
            flip = along[positive].mean() < along[~positive].mean()
        coef = (-line if flip else line) / std
        return Weights(coef, float((-intercept if flip else intercept) - coef @ mean), n_iter)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags


class PcaProbe(_Unsupervised):
    """The k-th principal component of the rows as a probe.

    Args:
        k: which component, counted from 1 (the direction of most variance).
        standardise: divide every dimension by its standard deviation first. Off by default, as in the literature; where
            a few dimensions of the residual stream are many times larger than the others, they are the first ones.

    Fitted attributes: `coef_`, `intercept_`; `sign_determined_`; `explained_variance_ratio_`, the component's share of
    the variance; `classes_`.

    Raises (in `fit`):
        InputError: rows all the same, NaN rows, fewer than k components, labels (if given) not of two classes.

    Example:
        >>> PcaProbe().fit(acts).sign_determined_                       # no labels: which end is "true" is open
        False
        >>> PcaProbe().fit(acts, labels).score(test_acts, test_labels)  # labels for the sign only
    """

    def __init__(self, k=1, standardise=False) -> None:
        self.k, self.standardise = k, standardise

    def _line(self, rows: Float64[np.ndarray, "row d"]) -> tuple[np.ndarray, float, int]:
        most = min(len(rows) - 1, rows.shape[1])
        if not 1 <= self.k <= most:
            raise InputError(
                f"There is no principal component {self.k}: {len(rows)} rows in {rows.shape[1]} dimensions have "
                f"components 1 to {most}."
            )
        small = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
        values, vectors = np.linalg.eigh(small)
        value, vector = float(values[-self.k]), vectors[:, -self.k]
        if value <= 1e-12 * values[-1]:
            raise InputError(f"Nothing varies along principal component {self.k}: use a smaller k.")
        if len(rows) < rows.shape[1]:
            vector = rows.T @ vector / np.sqrt(value)
        self.explained_variance_ratio_ = value / float((rows**2).sum())
        return vector / np.sqrt(value / len(rows)), 0.0, 1


class KMeansProbe(_Unsupervised):
    """The line between the centroids of two clusters (k-means, scikit-learn) as a probe.

    Args:
        n_init: starts; the one with the least distance to its centroids is kept.
        standardise: divide every dimension by its standard deviation first; see `PcaProbe`.
        random_state: seed of the starts.

    Fitted attributes: `coef_`, `intercept_`; `sign_determined_`; `classes_`; `n_iter_`; `cluster_sizes_` [2], of the
    negative and the positive side. `predict` gives the cluster with the nearer centroid.

    Raises (in `fit`):
        InputError: rows all the same, NaN rows, labels (if given) not of two classes.

    Example:
        >>> KMeansProbe().fit(acts, labels).score(test_acts, test_labels)  # labels for the sign only
    """

    def __init__(self, n_init=10, standardise=False, random_state=0) -> None:
        self.n_init, self.standardise, self.random_state = n_init, standardise, random_state

    def fit(self, X: Any, y: Any = None) -> KMeansProbe:
        """Fit to [row, d] activations; [row] labels of two classes, if given, decide the sign and nothing else."""
        super().fit(X, y)
        up = self.decision_function(X) > 0
        self.cluster_sizes_ = np.array([int((~up).sum()), int(up.sum())])
        return self

    def _line(self, rows: Float64[np.ndarray, "row d"]) -> tuple[np.ndarray, float, int]:
        settings: Any = {"n_init": self.n_init, "random_state": self.random_state}
        model = KMeans(2, **settings).fit(rows)
        low, high = model.cluster_centers_
        theta = high - low
        distance = float(theta @ theta)
        inside = (rows - model.cluster_centers_[model.labels_]) @ theta
        line = theta * (distance / max(float(np.mean(inside**2)), MIN_VARIANCE * distance**2))
        return line, -float(line @ (low + high)) / 2, int(model.n_iter_)
