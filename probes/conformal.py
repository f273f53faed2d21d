"""Split-conformal sets: all classes that cannot be ruled out, with a stated chance of holding the right one.

A nonconformity score says how badly a class fits a row. With scores a₁ … a_n of calibration rows and their own
classes, a class y of a new row gets a p-value, and the set holds the classes that are not rejected:

    p(y) = (#{i: a_i ≥ a(y)} + 1) / (n + 1)        set = {y: p(y) > α}

If calibration rows and the new row are exchangeable, and the probe was fitted to neither, P(right class in the set)
≥ 1 − α. Over draws of the calibration rows, the number covered of m new rows is beta-binomial(m, n + 1 − l, l) where
scores have no ties, l = #{k ≤ n + 1: k / (n + 1) ≤ α} (`coverage_law`; Vovk 2012, arXiv:1209.2673). So one calibration
set of 100 rows and α = 0.1 gives a coverage between 0.84 and 0.95. With ties it is higher.

| scores | nonconformity of class y |
| --- | --- |
| f, [row], log-odds or a margin | 1 / (1 + abs(f)) if y is the class that the sign of f says, else 1 + abs(f) |
| p, [row, class] probabilities | (1 − (p_y − max over z ≠ y of p_z)) / 2 |

The first rises with −y·f and with nothing else. (As in Savcisens and Eliassi-Rad 2025, arXiv:2506.23921; f = 0 says
the first class.) `per_class` (Mondrian) takes the a_i of rows of class y alone: then 1 − α holds in each class.

A probe answers with the one class in its set. It abstains where the set is empty (unlike any calibration row) or holds
more than one (cannot tell); `abstain="empty"` answers the latter with the class of the highest p-value, of equal ones
(no calibration row is between them) that of the lowest nonconformity.

Rows of one group (prompts of one country) are not exchangeable one by one; with groups the guarantee is approximate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float64, Int64
from scipy.stats import betabinom

from probes.mil.labels import encode, group_codes, interval, resamples
from probes.reliability import as_scores, binomial_interval, check_columns
from workbench.errors import DataError
from workbench.results import array

ABSTAINED = -1
"""Stands for "no answer" among the numbers of classes."""


def binary_nonconformity(f: Float64[np.ndarray, " row"]) -> Float64[np.ndarray, "row 2"]:
    """Nonconformity of both classes for scores whose sign is the answer."""
    right, wrong = 1 / (1 + np.abs(f)), 1 + np.abs(f)
    up = f > 0
    return np.stack([np.where(up, wrong, right), np.where(up, right, wrong)], axis=1)


def margin_nonconformity(p: Float64[np.ndarray, "row class"]) -> Float64[np.ndarray, "row class"]:
    """Nonconformity of every class for probabilities, 0 to 1."""
    ordered = np.sort(p, axis=1)
    top, second = ordered[:, -1:], ordered[:, -2:-1]
    # At the top class (one of them, if they tie) the best of the others is the second.
    is_top = np.arange(p.shape[1]) == p.argmax(1)[:, None]
    return (1 - (p - np.where(is_top, second, top))) / 2


def smallest_calibration(alpha: float) -> int:
    """Fewest calibration rows with which a class can be rejected at α: 1 / (n + 1) ≤ α.

    Raises:
        DataError: α is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise DataError(
            f"alpha is the share of sets that may miss the right class, between 0 and 1, not {alpha}."
        )
    n = max(math.ceil(1 / alpha) - 2, 1)
    while 1 / (n + 1) > alpha:
        n += 1
    return n


def coverage_law(n_calibration: int, n_new: int, alpha: float) -> Any:
    """The distribution (scipy's `betabinom`, frozen) of how many of `n_new` rows are covered, on exchangeable rows.

    Raises:
        DataError: so few calibration rows that no class can be rejected: all rows are covered, there is no law.

    Example:
        >>> coverage_law(99, 1000, 0.1).mean() / 1000        # never below 1 − alpha
        0.9
    """
    if n_calibration < smallest_calibration(alpha):
        raise DataError(
            f"With {n_calibration} calibration rows no class is ever ruled out at alpha = {alpha}: everything is "
            f"covered. At least {smallest_calibration(alpha)} are needed."
        )
    rejected = int((np.arange(1, n_calibration + 2) / (n_calibration + 1) <= alpha).sum())
    return betabinom(n_new, n_calibration + 1 - rejected, rejected)


class ConformalSets:
    """Split-conformal sets for two or more classes.

    Args:
        alpha: share of sets that may miss the right class.
        per_class: compare with calibration rows of the same class (Mondrian), so that 1 − alpha holds in each.
        abstain: `"not_one"` (set empty or of several classes) or `"empty"`.

    Attributes (after `fit`): `classes` (sorted or as given), `n` (calibration rows), `n_class` (of each class).

    Example:
        >>> sets = ConformalSets(alpha=0.1).fit(calibration_scores, calibration_labels)
        >>> sets.predict(scores), sets.contains(scores), sets.p_values(scores)
        >>> sets.table(scores, labels)["coverage"].sel({"class": "all"})
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        per_class: bool = False,
        abstain: str = "not_one",
    ) -> None:
        self.n_needed = smallest_calibration(alpha)
        if abstain not in ("not_one", "empty"):
            raise DataError(f"abstain is 'not_one' or 'empty', not {abstain!r}.")
        self.alpha, self.per_class, self.abstain = alpha, per_class, abstain
        self.classes: tuple[Any, ...] = ()
        self.n = 0
        self._sorted: list[np.ndarray] = []

    def fit(self, scores: Any, labels: Any, classes: Sequence[Any] | None = None) -> ConformalSets:
        """Take calibration rows: [row] scores of two classes, or [row, class] probabilities, and [row] labels.

        Raises:
            DataError: labels that do not match, NaN, probabilities outside 0 to 1, or too few rows for alpha (of a
                class, with `per_class`): the message says how many are needed.
        """
        values = as_scores(scores)
        self.classes, codes = encode(labels, classes, n=len(values), of="scores")
        check_columns(values, self.classes)
        self.columns = values.ndim
        a = self._nonconformity(values)[np.arange(len(codes)), codes]
        self.n, self.n_class = len(codes), np.bincount(codes, minlength=len(self.classes))
        few = int(self.n_class.argmin())
        n, of = (
            (self.n_class[few], f" of the class {self.classes[few]!r}") if self.per_class else (self.n, "")
        )
        if n < self.n_needed:
            raise DataError(
                f"{n} calibration rows{of} are too few for alpha = {self.alpha}: no class could ever be ruled out. "
                f"At least {self.n_needed} are needed{' of each class' if self.per_class else ''}."
            )
        parts = [a[codes == i] for i in range(len(self.classes))] if self.per_class else [a]
        self._sorted = [np.sort(part) for part in parts]
        return self

    def p_values(self, scores: Any) -> Float64[np.ndarray, "row class"]:
        """[row, class] the p-value of each class, from 1 / (n + 1) to 1."""
        if not self._sorted:
            raise DataError(
                "These conformal sets have no calibration rows yet: call fit(scores, labels) first."
            )
        values = as_scores(scores)
        check_columns(values, self.classes)
        if values.ndim != self.columns:
            raise DataError(
                f"Scores of shape {values.shape} are not of the kind that the calibration rows had."
            )
        a = self._nonconformity(values)
        p = np.empty_like(a)
        for i in range(a.shape[1]):
            known = self._sorted[i if self.per_class else 0]
            p[:, i] = (len(known) - np.searchsorted(known, a[:, i], side="left") + 1) / (len(known) + 1)
        return p

    def contains(self, scores: Any) -> Bool[np.ndarray, "row class"]:
        """[row, class] whether the class is in the set."""
        return self.p_values(scores) > self.alpha

    def answers(self, scores: Any) -> Int64[np.ndarray, " row"]:
        """[row] number of the answered class, −1 (`ABSTAINED`) where it abstains."""
        p = self.p_values(scores)
        size = (p > self.alpha).sum(1)
        speaks = size == 1 if self.abstain == "not_one" else size > 0
        # p-values are steps: of classes on one step the first is not the better one
        tied = np.where(p == p.max(1, keepdims=True), self._nonconformity(as_scores(scores)), np.inf)
        return np.where(speaks, tied.argmin(1), ABSTAINED).astype(np.int64)

    def predict(self, scores: Any) -> list[Any]:
        """[row] the answered class, None where it abstains."""
        return [None if i == ABSTAINED else self.classes[i] for i in self.answers(scores)]

    def table(
        self, scores: Any, labels: Any, *, groups: Any = None, seed: int = 0, n_bootstrap: int = 1000
    ) -> xr.Dataset:
        """How the sets do on labelled rows that were used neither to fit nor to calibrate.

        Args:
            scores, labels: as of `fit`.
            groups: one per row: intervals are then percentile bootstraps over groups, else exact binomial ones.
            seed, n_bootstrap: of the bootstrap.

        Returns:
            Dims: class ("all", then the rows of each class): `n`, `coverage`, `set_size` (mean), `abstention`, `empty`
            and `several` (their shares), `answered` (number) and `accuracy` of the answers; coverage, abstention and
            accuracy with `_low` and `_high` (95 %). `attrs["coverage_expected"]` is the central 95 % range of the
            overall coverage if the rows are exchangeable (not given for `per_class`).
        """
        values = as_scores(scores)
        _, codes = encode(labels, self.classes, n=len(values), of="scores")
        weights = None
        if groups is not None:
            weights = resamples(group_codes(groups, len(codes)), len(codes), n=n_bootstrap, seed=seed)
        found = set_table(self.contains(values), self.answers(values), codes, self.classes, weights)
        found.attrs.update(
            alpha=self.alpha, n_calibration=self.n, per_class=self.per_class, abstain=self.abstain
        )
        if not self.per_class:
            law = coverage_law(self.n, len(codes), self.alpha)
            found.attrs["coverage_expected"] = [float(law.ppf(q)) / len(codes) for q in (0.025, 0.975)]
        return found

    def _nonconformity(self, values: Float64[np.ndarray, "row ..."]) -> Float64[np.ndarray, "row class"]:
        if values.ndim == 1:
            return binary_nonconformity(values)
        if values.min() < 0 or values.max() > 1 or np.abs(values.sum(1) - 1).max() > 1e-6:
            raise DataError(
                "[row, class] scores must be probabilities that add up to 1 (see probes.calibration)."
            )
        return margin_nonconformity(values)


def set_table(
    contains: Bool[np.ndarray, "row class"],
    answers: Int64[np.ndarray, " row"],
    codes: Int64[np.ndarray, " row"],
    classes: Sequence[Any],
    weights: Float64[np.ndarray, "draw row"] | None = None,
) -> xr.Dataset:
    """The table of `ConformalSets.table` from sets and answers; `weights` are resamples for the intervals."""
    size, held = contains.sum(1), contains[np.arange(len(codes)), codes]
    spoke = answers != ABSTAINED
    shares = {
        "coverage": (held, np.ones_like(held), "share of sets that hold the right class"),
        "abstention": (~spoke, np.ones_like(held), "share of rows without an answer"),
        "accuracy": ((answers == codes) & spoke, spoke, "share of answers that are right"),
    }
    plain = {
        "set_size": (size.astype(float), "classes in a set, mean"),
        "empty": (size == 0, "share of empty sets"),
        "several": (size > 1, "share of sets of several classes"),
    }
    masks = [np.ones(len(codes), dtype=bool), *(codes == i for i in range(len(classes)))]
    out: dict[str, list[float]] = {}
    for mask in masks:
        row: dict[str, float] = {"n": mask.sum(), "answered": (spoke & mask).sum()}
        row |= {name: values[mask].mean() if mask.any() else np.nan for name, (values, _) in plain.items()}
        for name, (hit, of, _) in shares.items():
            hits, n = (hit & mask).sum(), (of & mask).sum()
            if weights is None:
                ends = tuple(float(end) for end in binomial_interval(hits, n))
            else:
                with np.errstate(invalid="ignore"):
                    ends = interval((weights @ (hit & mask)) / (weights @ (of & mask)))
            row |= {name: hits / n if n else np.nan, f"{name}_low": ends[0], f"{name}_high": ends[1]}
        for name, value in row.items():
            out.setdefault(name, []).append(float(value))
    texts = {name: text for name, (*_, text) in (shares | plain).items()}  # type: ignore[arg-type]
    texts |= {"n": "rows", "answered": "rows with an answer"}
    for name in shares:
        for end, word in (("_low", "lower"), ("_high", "upper")):
            texts[name + end] = f"{texts[name]}, {word} end of the 95 % interval"
    variables = {
        name: array(("class",), np.array(values), long_name=texts[name]) for name, values in out.items()
    }
    for name in ("n", "answered"):
        variables[name] = array(("class",), np.array(out[name]).astype(np.int64), long_name=texts[name])
    how = "exact binomial" if weights is None else "bootstrap over groups"
    return xr.Dataset(variables, {"class": ["all", *(str(c) for c in classes)]}, {"interval": how})
