"""`HelixProbe`: from a number to the activation at its token, and back.

With B(a) a basis with a constant (`basis`), rows of activations h and μ their mean

    y = PCA(h − μ)            the leading `n_components` principal components P
    C = argmin ‖B(a) C − y‖²  ordinary least squares, no other intercept
    ĥ(a) = B(a) C P + μ                                               predict
    B̂(h) = (h − ĥ_const) (C P without its constant row)⁺              read
    â(h) = argmin over candidates of ‖ĥ(a) − h‖                        decode

The principal components only shorten the rows: with as many as the data has, the fit is that of least squares on the
activations themselves.

Source: Kantamneni & Tegmark 2025 (2502.00873). What differs: the paper's readout leaves ĥ_const in the
activation, which shifts its coordinates; here `read(predict(a))` is B(a).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from probes.periodic.basis import PERIODS, Basis, circle, helix, whole_numbers
from workbench.errors import DataError


class BasisProbe(RegressorMixin, BaseEstimator):
    """Least squares from a basis over numbers to activations, with scikit-learn's conventions.

    Bad input is a `DataError` (scikit-learn has `ValueError`).

    Args:
        basis: functions of a number.
        n_components: principal components of the activations that are fitted; None: all of them, the plain fit.

    Attributes after `fit`:
        coef_: [column, d] activation per unit of each basis function.
        intercept_: [d] activation where all of them are 0.
        basis_: the basis that was used.
        n_numbers_: different numbers that were seen.

    Example:
        >>> probe = BasisProbe(polynomial(3)).fit(numbers, activations)
        >>> probe.score(held_out_numbers, held_out_activations)
    """

    def __init__(self, basis: Any = None, n_components: int | None = 100) -> None:
        self.basis, self.n_components = basis, n_components

    def _basis_for(self, numbers: Int64[np.ndarray, " row"]) -> Basis:
        if self.basis is None:
            return helix(PERIODS, int(numbers.min()), int(numbers.max()))
        return self.basis

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to [row] (or [row, 1]) numbers and [row, d] activations.

        Raises:
            DataError: lengths that differ, NaN, constant numbers, fewer different numbers than parameters, or
                numbers at which the basis functions cannot be told apart (all even, for instance).
        """
        numbers = whole_numbers(X)
        rows = activation_rows(y, numbers)
        if self.n_components is not None and self.n_components < 1:
            raise DataError(f"n_components is {self.n_components}: give 1 or more, or None for all.")
        basis = self._basis_for(numbers)
        design = checked_design(basis, numbers)
        mean = rows.mean(0)
        centred = rows - mean
        if self.n_components is not None and self.n_components < min(rows.shape):
            axes = np.linalg.svd(centred, full_matrices=False)[2][: self.n_components]
            solution = np.linalg.lstsq(design, centred @ axes.T, rcond=None)[0] @ axes
        else:
            solution = np.linalg.lstsq(design, centred, rcond=None)[0]
        self.basis_, self.n_numbers_ = basis, len(np.unique(numbers))
        self.n_features_in_ = 1
        self.coef_, self.intercept_ = solution[:-1], solution[-1] + mean
        return self

    def predict(self, X: Any) -> Float64[np.ndarray, "row d"]:
        """[row, d] the activation of each number."""
        check_is_fitted(self)
        return self.basis_.columns(X) @ self.coef_ + self.intercept_

    def read(self, activations: Any) -> Float64[np.ndarray, "row column"]:
        """[row, column] the basis functions as the activations have them, by pseudo-inverse."""
        check_is_fitted(self)
        rows = self._checked(activations)
        return (rows - self.intercept_) @ np.linalg.pinv(self.coef_)

    def decode(self, activations: Any, candidates: Any) -> Int64[np.ndarray, " row"]:
        """[row] the candidate whose predicted activation is nearest."""
        check_is_fitted(self)
        rows, values = self._checked(activations), whole_numbers(candidates)
        curve = self.predict(values)
        # ‖c − h‖² without ‖h‖², which is the same for all candidates
        return values[((curve**2).sum(1) - 2 * rows @ curve.T).argmin(1)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the total variance explained, over all dimensions together (not the mean of each one's R²).

        The variance is that about the mean of the rows given here, as scikit-learn has it.
        """
        check_is_fitted(self)
        numbers = whole_numbers(X)
        rows = self._checked(activation_rows(y, numbers))
        weight = np.ones(len(rows)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        total = float(weight @ ((rows - np.average(rows, axis=0, weights=weight)) ** 2).sum(1))
        if total == 0:
            raise DataError("The activations are constant, so that there is no variance to explain.")
        return 1 - float(weight @ ((rows - self.predict(numbers)) ** 2).sum(1)) / total

    def _checked(self, activations: Any) -> Float64[np.ndarray, "row d"]:
        shape = np.shape(activations)
        if len(shape) != 2 or shape[1] != self.coef_.shape[1]:
            raise DataError(
                f"Activations of shape {tuple(shape)} do not fit: this probe reads [row, {self.coef_.shape[1]}]."
            )
        return activation_rows(activations, np.zeros(shape[0], dtype=np.int64))


class HelixProbe(BasisProbe):
    """The helix, with its periods.

    Args:
        periods: in numbers, each 2 or more.
        linear: with the linear term; without it: a circle.
        n_components: as in `BasisProbe`; 100 is the paper's.

    Example:
        >>> probe = HelixProbe((2, 5, 10, 100)).fit(numbers[train], rows[train])
        >>> probe.decode(rows[test], range(100))
    """

    def __init__(self, periods: Any = PERIODS, linear: bool = True, n_components: int | None = 100) -> None:
        self.periods, self.linear, self.n_components = periods, linear, n_components

    def _basis_for(self, numbers: Int64[np.ndarray, " row"]) -> Basis:
        make = helix if self.linear else circle
        return make(self.periods, int(numbers.min()), int(numbers.max()))


def activation_rows(activations: Any, numbers: Int64[np.ndarray, " row"]) -> Float64[np.ndarray, "row d"]:
    """Activations as float64 [row, d], one row a number.

    Raises:
        DataError: not two-dimensional, another number of rows, NaN or infinite values.
    """
    if hasattr(activations, "detach"):
        activations = activations.detach().double().cpu().numpy()
    rows = np.asarray(activations, dtype=np.float64)
    if rows.ndim != 2:
        raise DataError(f"Activations have shape {rows.shape}: give [row, d], one row for each number.")
    if len(rows) != len(numbers):
        raise DataError(
            f"{len(numbers)} numbers for {len(rows)} rows of activations: give one number for each row."
        )
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(rows)} rows of activations hold NaN or infinite values, the first is row {bad[0]}: "
            "leave them out, or collect them again."
        )
    return rows


def checked_design(basis: Basis, numbers: Int64[np.ndarray, " row"]) -> Float64[np.ndarray, "row column"]:
    """The basis with its constant at these numbers, of full rank.

    Raises:
        DataError: fewer different numbers than parameters, or functions that are the same at all of them.
    """
    different = np.unique(numbers)
    needed = basis.n_columns + 1
    if len(different) < 2:
        raise DataError(f"All {len(numbers)} numbers are {different[0]}: a basis needs different numbers.")
    if len(different) < needed:
        raise DataError(
            f"{len(different)} different numbers for {needed} parameters ({basis.n_columns} columns of the "
            f"{basis.kind} basis and a constant): give more numbers or a smaller basis."
        )
    rank = int(np.linalg.matrix_rank(basis.design(different)))
    if rank < needed:
        raise DataError(
            f"At these {len(different)} numbers the {needed} functions of the {basis.kind} basis have rank "
            f"{rank}, so they cannot be told apart: leave a period out, or give numbers without a common step."
        )
    return basis.design(numbers)
