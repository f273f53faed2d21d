"""From scores to probabilities.

Maps from a score s (for several classes: one score per class) to p(y | s):

| method | p | fitted by |
| --- | --- | --- |
| `platt` | σ(a s + b) | maximum likelihood; targets (n₊+1)/(n₊+2) and 1/(n₋+2) instead of 1 and 0 (Platt 1999) |
| `isotonic` | any non-decreasing step function of s | least squares (scikit-learn) |
| `temperature` | softmax(s / T), for one score σ(s / T), T > 0 | maximum likelihood (Guo et al. 2017, 1706.04599) |

With several classes Platt and isotonic are fitted for each class against the rest, and the results divided by their
sum. Platt's targets keep a and b finite where the classes are separable.

How far probabilities are off is measured in `probes.reliability`, on rows that the map was not fitted to:
`cross_calibrate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Float64, Int64
from scipy.special import expit, softmax
from sklearn.isotonic import IsotonicRegression

from probes.mil.labels import encode
from probes.reliability import (
    CalibrationError,
    as_scores,
    check_columns,
    expected_calibration_error,
    reliability,
)
from workbench.errors import DataError

__all__ = [
    "METHODS",
    "Calibration",
    "CalibrationError",
    "calibrate",
    "cross_calibrate",
    "expected_calibration_error",
    "reliability",
]

METHODS: tuple[str, ...] = ("platt", "isotonic", "temperature")


@dataclass(frozen=True)
class Calibration:
    """A fitted map from scores to probabilities; all of it is in the attributes, which are ready for JSON.

    Attributes:
        method: of `METHODS`.
        classes: of the labels, the second being the positive one of two.
        columns: scores per row: 1 for [row] scores, else the number of classes.
        parameters: temperature: `temperature`. Platt: `slope`, `intercept`, and isotonic: knots `x` and `p`, as lists
            with one entry for each column.
        n: rows it was fitted to.

    Example:
        >>> Calibration("platt", (False, True), 1, {"slope": [2.0], "intercept": [0.0]}, 100).probabilities([0.0])
        array([0.5])
    """

    method: str
    classes: Sequence[Any]
    columns: int
    parameters: dict[str, Any]
    n: int

    def probabilities(self, scores: Any) -> Float64[np.ndarray, "row ..."]:
        """[row] probability of the second class from [row] scores, or [row, class] from [row, class]."""
        values = as_scores(scores)
        if values.ndim != min(self.columns, 2) or (values.ndim == 2 and values.shape[1] != self.columns):
            wanted = "[row]" if self.columns == 1 else f"[row, {self.columns}]"
            raise DataError(f"Scores of shape {values.shape} do not fit this calibration: expected {wanted}.")
        if self.method == "temperature":
            t = self.parameters["temperature"]
            return expit(values / t) if self.columns == 1 else softmax(values / t, axis=1)
        rows = values.reshape(len(values), self.columns)
        p = np.stack([self._column(i, rows[:, i]) for i in range(self.columns)], axis=1)
        if self.columns == 1:
            return p[:, 0]
        total = p.sum(1, keepdims=True)
        return np.where(total > 0, p / np.where(total > 0, total, 1), 1 / self.columns)

    def _column(self, i: int, s: np.ndarray) -> np.ndarray:
        one = {name: value[i] for name, value in self.parameters.items()}
        if self.method == "platt":
            return expit(one["slope"] * s + one["intercept"])
        return np.interp(s, one["x"], one["p"])


def calibrate(
    scores: Any,
    labels: Any,
    *,
    method: str = "platt",
    classes: Sequence[Any] | None = None,
    smoothed_targets: bool = True,
) -> Calibration:
    """Fit a map from scores to probabilities.

    Args:
        scores: [row] for two classes (higher: more like the second), or [row, class]. For temperature they are logits
            (log-odds); for Platt and isotonic any scale will do. Of rows the probe was *not* fitted to.
        labels: [row] labels.
        method: of `METHODS`.
        classes: in the order of the columns; sorted by default.
        smoothed_targets: Platt's targets; without them plain logistic regression, which separable classes do not have.

    Raises:
        DataError: labels that do not match, one class, NaN, an unknown method, or no finite best map: classes separable
            by the score, with temperature or plain logistic regression.

    Temperature: where the scores do not rise with the labels at all the best T is infinite, and so it is returned;
    every probability is then that of a coin.

    Example:
        >>> calibrate(held_out_scores, held_out_labels, method="platt").probabilities(new_scores)
    """
    values = as_scores(scores)
    known, codes = encode(labels, classes, n=len(values), of="scores")
    check_columns(values, known)
    if (missing := [c for i, c in enumerate(known) if not (codes == i).any()]) != []:
        raise DataError(f"No row to calibrate on has the label {missing[0]!r}: every class is needed.")
    if method not in METHODS:
        raise DataError(f"There is no calibration {method!r}; the methods are {', '.join(METHODS)}.")
    if method == "temperature":
        columns = 1 if values.ndim == 1 else len(known)
        return Calibration(method, known, columns, {"temperature": _temperature(values, codes)}, len(values))
    rows = values.reshape(len(values), -1)
    fits: list[dict[str, Any]] = []
    for i in range(rows.shape[1]):
        hit = codes == (1 if values.ndim == 1 else i)
        fits.append(
            _platt(rows[:, i], hit, smoothed_targets) if method == "platt" else _isotonic(rows[:, i], hit)
        )
    parameters = {name: [one[name] for one in fits] for name in fits[0]}
    return Calibration(method, known, rows.shape[1], parameters, len(values))


def cross_calibrate(
    scores: Any, labels: Any, fold: Any, *, method: str = "platt", classes: Sequence[Any] | None = None
) -> Float64[np.ndarray, "row ..."]:
    """Probabilities of all rows, each from a calibration that was fitted without the row's fold.

    Args:
        scores, labels, method, classes: as of `calibrate`; the scores themselves should be out of fold.
        fold: [row] numbers, for instance of `probes.folds.assign_folds`.

    Raises:
        DataError: as `calibrate`, of the rows outside a fold; fewer than two folds.
    """
    values = as_scores(scores)
    known, codes = encode(labels, classes, n=len(values), of="scores")
    folds = np.asarray(fold)
    if folds.shape != (len(values),) or len(np.unique(folds)) < 2:
        raise DataError(
            f"{len(np.unique(folds))} folds of {folds.size} rows for {len(values)} scores: give 2 or more."
        )
    out = np.zeros(values.shape)
    for index in np.unique(folds):
        rest, here = folds != index, folds == index
        names = [known[i] for i in codes[rest]]
        out[here] = calibrate(values[rest], names, method=method, classes=known).probabilities(values[here])
    return out


# -- fits ----------------------------------------------------------------------------------------------


def _platt(s: np.ndarray, hit: np.ndarray, smoothed: bool) -> dict[str, Any]:
    up, down = int(hit.sum()), int((~hit).sum())
    ends = ((up + 1) / (up + 2), 1 / (down + 2)) if smoothed else (1.0, 0.0)
    if not smoothed and (s[hit].min() > s[~hit].max() or s[hit].max() < s[~hit].min()):
        raise DataError("The score separates the classes: plain logistic regression has no finite slope here. Use "
                        "smoothed_targets=True.")  # fmt: skip
    target = np.where(hit, *ends)
    centre, spread = s.mean(), s.std() or 1.0
    x = np.stack([(s - centre) / spread, np.ones(len(s))])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        f = w @ x
        return float((np.logaddexp(0, f) - target * f).mean()), x @ (expit(f) - target) / len(s)

    def curvature(w: np.ndarray) -> np.ndarray:
        p = expit(w @ x)
        return (x * (p * (1 - p))) @ x.T / len(s)

    start = np.array([0.0, np.log(target.mean() / (1 - target.mean()))])
    found = scipy.optimize.minimize(loss, start, jac=True, hess=curvature, method="trust-exact", tol=1e-10)
    slope = float(found.x[0] / spread)
    intercept = float(found.x[1] - slope * centre)
    return {"slope": slope, "intercept": intercept}


def _isotonic(s: np.ndarray, hit: np.ndarray) -> dict[str, Any]:
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(s, hit.astype(float))
    return {"x": model.X_thresholds_.tolist(), "p": model.y_thresholds_.tolist()}


def _temperature(s: np.ndarray, codes: Int64[np.ndarray, " row"]) -> float:
    """The root of d/dβ of the mean log-loss, β = 1/T: it rises with β, for the loss is convex."""
    logits = np.stack([np.zeros(len(s)), s], axis=1) if s.ndim == 1 else s
    own = logits[np.arange(len(codes)), codes]
    size = float(np.ptp(logits, axis=1).max()) or 1.0

    def slope(b: float) -> float:
        return float(((softmax(b * logits, axis=1) * logits).sum(1) - own).mean())

    if slope(0.0) >= 0:
        return float("inf")
    if (own >= logits.max(1)).all():
        raise DataError("Every row's own class has the highest score: no finite temperature is best. Use "
                        "method='platt', or rows the probe was not fitted to.")  # fmt: skip
    upper = 1 / size
    while slope(upper) < 0:  # it ends above zero, since some row's highest score is another class's
        upper *= 4
    root: Any = scipy.optimize.brentq(slope, 0.0, upper, xtol=1e-14 * upper)
    return float(1 / root)
