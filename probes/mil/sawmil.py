"""sAwMIL: a sparse multiple-instance probe that is told which tokens of a bag may carry the label.

Bags B with instances x (tokens), labels of bags. A positive bag holds at least one positive instance, a negative bag
none. Two linear machines f(x) = w · x + b on features standardised with the training instances:

1. sMIL. Negative bags' instances are to have f ≤ −1; a positive bag's *mean* f(mean B) ≥ (2 − n) / n, n its instances:
   one at +1, the others at −1. Weight C / (instances) for the former and C / (bags) for the latter.
2. All instances of positive bags are scored with stage 1. Positive are those that are among the k best, k = max(η ·
   instances, bags), *and* assumed positive (`Bags.known`); if these are fewer than 5 % of all, the mask is ignored. All
   others, and those of negative bags, are negative. A second machine is fitted to these labels, margin 1.

    score of a bag = max over its instances of f(x)

Stage 2 also learns what sets assumed positives apart from other tokens, whatever the labels: fitted to shuffled labels,
a probe may tell the *true* ones apart. A control is scored against its own shuffled labels (as `three_way` does).

The token with the highest score *carries* the label. Sources: Savcisens and Eliassi-Rad 2025 (arXiv:2506.23921) with
Bunescu and Mooney 2007 (sMIL, sbMIL). What differs:

- the primal with a squared hinge (`probes.mil.svm`), not their dual QP with a hinge, whose memory grows with the square
  of the instances: not the same minimum, the same kind of separator;
- in stage 2, too, positive and negative instances weigh the same together (`balanced`), since 1 in 15 is positive;
- η: by default the share of instances that are assumed positive. (Their code's default is 0: one instance per bag.)
- features are standardised, so that C means the same at every layer;
- C is the one with the best AUC of *held-out* bags, in folds that keep groups together; the smallest of equals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from probes.folds import assign_folds
from probes.kinds.inputs import plain
from probes.mil.bags import Bags
from probes.mil.labels import encode, group_codes
from probes.mil.svm import Separator, separate
from workbench.errors import DataError

PENALTIES = (0.05, 0.1, 0.5, 1.0, 10.0)
LEAST_SHARE = 0.05
"""Fewer positive instances than this share of those in positive bags, and the mask is ignored."""
ONE_THREAD = 4_000_000
"""Up to so many numbers one BLAS thread beats several that wait for each other."""


@dataclass(frozen=True, eq=False)
class Stages:
    """Both machines of one fit, over standardised features.

    Attributes:
        first, second: the machines.
        positive: [row] the instances that stage 2 called positive.
        mask_used: whether the intra-bag mask was kept.
    """

    first: Separator
    second: Separator
    positive: Bool[np.ndarray, " row"]
    mask_used: bool


def two_stages(
    x: Float64[np.ndarray, "row d"],
    bags: Bags,
    positive: Bool[np.ndarray, " bag"],
    *,
    C: float,
    eta: float | None = None,
    balanced: bool = True,
    start: Stages | None = None,
) -> Stages:
    """Fit both stages to features `x` of the bags' rows (`bags.values` itself is not used)."""
    in_positive = positive[bags.bag]
    n_positive, n_bags = int(in_positive.sum()), int(positive.sum())
    n_negative = len(x) - n_positive
    means = (np.add.reduceat(x, bags.offsets[:-1], axis=0) / bags.sizes[:, None])[positive]
    rows = np.concatenate([x[~in_positive], means])
    y = np.repeat([-1.0, 1.0], [n_negative, n_bags])
    weight = np.repeat([C / n_negative, C / n_bags], [n_negative, n_bags])
    n = bags.sizes[positive]
    margin = np.concatenate([np.ones(n_negative), (2 - n) / n])
    first = separate(rows, y, weight, margin, start=start.first if start else None)
    chosen, mask_used = label_instances(first.decision(x), bags, positive, eta=eta)
    up, down = int(chosen.sum()), len(x) - int(chosen.sum())
    shares = (C / 2 / up, C / 2 / down) if balanced else (C / len(x), C / len(x))
    second = separate(
        x, np.where(chosen, 1.0, -1.0), np.where(chosen, *shares), start=start.second if start else None
    )
    return Stages(first, second, chosen, mask_used)


def label_instances(
    scores: Float64[np.ndarray, " row"],
    bags: Bags,
    positive: Bool[np.ndarray, " bag"],
    *,
    eta: float | None = None,
) -> tuple[Bool[np.ndarray, " row"], bool]:
    """The instances that count as positive in stage 2, and whether the mask was kept."""
    inside = positive[bags.bag]
    n = int(inside.sum())
    share = float(bags.known[inside].mean()) if eta is None else eta
    k = min(n, max(round(share * n), int(positive.sum())))
    cutoff = np.sort(scores[inside])[n - k]
    best = inside & (scores >= cutoff)
    masked = best & bags.known
    return (masked, True) if masked.sum() >= LEAST_SHARE * n and masked.any() else (best, False)


class SawmilProbe(ClassifierMixin, BaseEstimator):
    """A sparse-aware multiple-instance probe of two classes, by the conventions of scikit-learn where they apply: `X`
    is `Bags`.

    Args:
        penalties: values of C to choose from; a single one is taken without cross-validation.
        eta: share of the instances in positive bags that may be positive, 0 to 1; None: those assumed positive.
        inner_folds: of the cross-validation that chooses C.
        balanced: in stage 2, positive and negative instances weigh the same together.
        seed: for the inner folds.

    Fitted attributes: `classes_`; `coef_` [1, d] and `intercept_` [1] over raw activations; `C_`; `auc_` [C] held-out
    AUC of each penalty; `out_of_fold_` [bag] scores at `C_` of probes that did not see the bag (both None for a single
    penalty without `fold`); `positive_instances_` [row]; `mask_used_`; `converged_`; `gradient_norm_`.

    Example:
        >>> probe = SawmilProbe().fit(train, labels, groups=countries)
        >>> probe.decision_function(test), [test.token[row] for row in probe.carrier(test)]
    """

    def __init__(self, penalties=PENALTIES, eta=None, inner_folds=3, balanced=True, seed=0) -> None:
        self.penalties, self.eta, self.inner_folds = penalties, eta, inner_folds
        self.balanced, self.seed = balanced, seed

    def fit(self, bags: Bags, y: Any, *, groups: Any = None, fold: Any = None) -> SawmilProbe:
        """Fit to bags and one label each.

        Args:
            bags: the bags.
            y: [bag] labels of two classes; the one that sorts last is positive.
            groups: one per bag; kept together in the inner folds.
            fold: [bag] the inner folds themselves, instead; with them there are out-of-fold scores of a single C, too.

        Raises:
            DataError: labels that do not match the bags, not two classes, fewer bags (groups) of a class than inner
                folds, or parameters out of range.
        """
        penalties = np.unique(np.atleast_1d(np.asarray(self.penalties, dtype=np.float64)))
        if not len(penalties) or penalties[0] <= 0:
            raise DataError(f"Penalties (C) are above 0, not {self.penalties}.")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise DataError(f"eta is a share of instances, 0 to 1, not {self.eta}.")
        if fold is not None and np.shape(fold) != (len(bags),):
            raise DataError(
                f"Inner folds of shape {list(np.shape(fold))} for {len(bags)} bags: give one for each."
            )
        self.classes_, codes = encode(y, n=len(bags), of="bags")
        if len(self.classes_) != 2:
            raise DataError(
                f"This probe tells two classes apart, there are {len(self.classes_)}: see three_way."
            )
        positive = codes == 1
        self.auc_, self.out_of_fold_, self.C_ = None, None, float(penalties[0])
        with threadpool_limits(1 if bags.values.size <= ONE_THREAD else None, user_api="blas"):
            if len(penalties) > 1 or fold is not None:
                if fold is None:
                    units = group_codes(groups, len(bags))
                    fold = assign_folds(
                        codes,
                        units,
                        n=self.inner_folds,
                        seed=self.seed,
                        names=[str(c) for c in self.classes_],
                    )
                self._choose(bags, positive, np.asarray(fold), penalties)
            scaled = _Scaled(bags)
            found = self._stages(scaled.rows, bags, positive, self.C_)
        coef, intercept = scaled.coef(found.second)
        self.coef_, self.intercept_ = coef[None], np.array([intercept])
        self.stage_one_coef_ = scaled.coef(found.first)[0][None]
        self.positive_instances_, self.mask_used_ = found.positive, found.mask_used
        self.converged_ = found.first.converged and found.second.converged
        self.gradient_norm_ = max(found.first.gradient_norm, found.second.gradient_norm)
        return self

    def _stages(
        self, x: np.ndarray, bags: Bags, positive: np.ndarray, C: float, start: Stages | None = None
    ) -> Stages:
        return two_stages(x, bags, positive, C=C, eta=self.eta, balanced=self.balanced, start=start)

    def _choose(self, bags: Bags, positive: np.ndarray, fold: np.ndarray, penalties: np.ndarray) -> None:
        """Held-out scores of every bag for every penalty, each path warm-started at the one before."""
        folds = np.unique(fold)
        out, auc = np.zeros((len(penalties), len(bags))), np.zeros((len(penalties), len(folds)))
        for f, index in enumerate(folds):
            test = fold == index
            if len(np.unique(positive[~test])) < 2 or len(np.unique(positive[test])) < 2:
                raise DataError(
                    f"Inner fold {index} or the rest holds one class: groups are too uneven, use fewer folds."
                )
            train, held = bags.select(~test), bags.select(test)
            scaled, stages = _Scaled(train), None
            for i, C in enumerate(penalties):
                stages = self._stages(scaled.rows, train, positive[~test], float(C), stages)
                coef, intercept = scaled.coef(stages.second)
                out[i, test] = held.maximum(held.values @ coef + intercept)[0]
                auc[i, f] = roc_auc_score(positive[test], out[i, test])
        self.auc_ = auc.mean(1)
        best = int(np.argmax(self.auc_.round(9)))
        self.C_, self.out_of_fold_ = float(penalties[best]), out[best]

    def instances(self, bags: Bags) -> Float64[np.ndarray, " row"]:
        """[row] score of every instance."""
        check_is_fitted(self, "coef_")
        if bags.values.shape[1] != self.coef_.shape[1]:
            raise DataError(
                f"Bags of width {bags.values.shape[1]} do not fit a probe of width {self.coef_.shape[1]}: it was "
                "fitted at another site or model."
            )
        return bags.values.astype(np.float64) @ self.coef_[0] + self.intercept_[0]

    def decision_function(self, bags: Bags) -> Float64[np.ndarray, " bag"]:
        """[bag] the highest score of its instances."""
        return bags.maximum(self.instances(bags))[0]

    def carrier(self, bags: Bags) -> Int64[np.ndarray, " bag"]:
        """[bag] the row that has the highest score."""
        return bags.maximum(self.instances(bags))[1]

    def predict(self, bags: Bags) -> np.ndarray:
        """[bag] the class: the second where the score is above 0. A maximum over many instances is above 0 easily, so
        calibrate (`probes.calibration`) before reading much into it."""
        return np.array(self.classes_)[(self.decision_function(bags) > 0).astype(int)]

    def score(self, X: Bags, y: Any, sample_weight: Any = None) -> float:
        """Share of bags whose predicted class is right; `DataError` where there is not one label for each."""
        labels = np.asarray(plain(y))
        if labels.shape != (len(X),):
            raise DataError(f"Labels of shape {list(labels.shape)} for {len(X)} bags: give one for each.")
        hit = self.predict(X) == labels
        return float(np.average(hit, weights=sample_weight))


class _Scaled:
    """Features standardised with some bags' rows; where these are fewer than dimensions, in a basis of their span."""

    def __init__(self, bags: Bags) -> None:
        x = bags.values.astype(np.float64)
        self.mean, self.sd = x.mean(0), x.std(0)
        self.sd = np.where(
            self.sd <= 1e-7 * np.abs(self.mean), 1.0, self.sd
        )  # of float32: below that it is rounding
        self.sd[self.sd == 0] = 1.0
        self.basis = None
        self.rows = (x - self.mean) / self.sd
        if len(x) < x.shape[1]:
            self.basis, upper = np.linalg.qr(self.rows.T)
            self.rows = np.ascontiguousarray(upper.T)

    def coef(self, machine: Separator) -> tuple[Float64[np.ndarray, " d"], float]:
        """Weights over raw activations, and the intercept."""
        coef = (machine.coef if self.basis is None else self.basis @ machine.coef) / self.sd
        return coef, float(machine.intercept - coef @ self.mean)
