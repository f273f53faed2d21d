"""Bases over whole numbers: helix, circle, polynomial, digit Fourier, and any of them of permuted numbers.

For a whole number a and periods T

    helix        B(a) = [cos(2πa/T), sin(2πa/T) for T] ++ [a / max|a|]
    circle       the same without the linear term
    polynomial   B(a) = [P_1(x), …, P_k(x)],  x = 2(a − low)/(high − low) − 1, P_j Legendre's polynomials
    digit        Φ(n) = cos, sin of 2πn/10 and 2πn/5, and (−1)^n

each followed, in a fit, by a constant 1. `n_columns` counts B without that constant: what is compared at equal size,
since principal components have a mean beside them, too.

On whole numbers sin(2πa/2) = sin(πa) = 0: period 2 has one column, not two. So the helix with the periods 2, 5, 10 and
100 has 8 columns and a constant. The paper counts 9; its polynomials and principal components of "equal" size 9 are one
larger. A period T below 2 has the columns of T/(T−1), or of an integer shift of its frequency, and is refused.

Source: Kantamneni & Tegmark 2025 (2502.00873); the digit basis: Bai et al. 2025 (2510.00184).
What differs: Legendre's polynomials span what powers span and are well conditioned; predictions are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64

from workbench.errors import DataError

PERIODS = (2.0, 5.0, 10.0, 100.0)
"""Those of the paper, for numbers of up to two decimal digits."""

Kind = Literal["helix", "circle", "polynomial", "digit"]


@dataclass(frozen=True)
class Basis:
    """A list of functions of a whole number.

    Attributes:
        kind: helix, circle, polynomial or digit.
        periods: those of a helix, circle or digit basis, in numbers.
        degree: of a polynomial.
        low, high: range of the numbers that are meant. It sets the scale of the linear term and of polynomials, which
            changes coefficients but no prediction.
        relabel: number -> number that is put in its place (a null), or None.

    Example:
        >>> basis = helix((2, 10), 0, 99)
        >>> basis.names
        ('cos 2', 'cos 10', 'sin 10', 'linear')
        >>> basis.columns(np.arange(100)).shape
        (100, 4)
    """

    kind: Kind
    periods: tuple[float, ...] = ()
    degree: int = 0
    low: int = 0
    high: int = 99
    relabel: Mapping[int, int] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise DataError(
                f"The numbers are constant ({self.low} to {self.high}): a basis needs two or more different numbers."
            )
        if self.kind == "polynomial":
            if self.degree < 1:
                raise DataError(
                    f"A polynomial of degree {self.degree} has no columns: give a degree of 1 or more."
                )
            return
        check_periods(self.periods)
        if not self.periods and self.kind != "helix":
            raise DataError(f"A {self.kind} basis without periods has no columns: give at least one period.")

    @property
    def names(self) -> tuple[str, ...]:
        """What each column is."""
        if self.kind == "polynomial":
            return tuple(f"degree {j}" for j in range(1, self.degree + 1))
        found = [f"{wave} {T:g}" for T in self.periods for wave in (("cos",) if T == 2 else ("cos", "sin"))]
        return (*found, "linear") if self.kind == "helix" else tuple(found)

    @property
    def n_columns(self) -> int:
        """Columns without the constant."""
        return len(self.names)

    def columns(self, numbers: Any) -> Float64[np.ndarray, "number column"]:
        """B of each number, without the constant.

        Raises:
            DataError: numbers that are not whole, or that a permuted basis was not made for.
        """
        a = whole_numbers(numbers)
        if self.relabel is not None:
            unknown = sorted({int(n) for n in a} - set(self.relabel))
            if unknown:
                raise DataError(
                    f"This permuted basis was not made for the number {unknown[0]}: make it for all numbers."
                )
            a = np.array([self.relabel[int(n)] for n in a], dtype=np.int64)
        if self.kind == "polynomial":
            x = 2 * (a - self.low) / (self.high - self.low) - 1
            return np.polynomial.legendre.legvander(x, self.degree)[:, 1:]
        found = []
        for period in self.periods:
            angle = 2 * np.pi * a / period
            found.append(np.cos(angle))
            if period != 2:
                found.append(np.sin(angle))
        if self.kind == "helix":
            found.append(a / max(abs(self.low), abs(self.high)))
        return np.stack(found, axis=1)

    def design(self, numbers: Any) -> Float64[np.ndarray, "number column"]:
        """The columns and, last, the constant 1."""
        columns = self.columns(numbers)
        return np.concatenate([columns, np.ones((len(columns), 1))], axis=1)


def helix(periods: Sequence[float | int] = PERIODS, low: int = 0, high: int = 99) -> Basis:
    """Cosine and sine of each period, and a linear term. Without periods: the linear term alone."""
    return Basis("helix", tuple(map(float, periods)), low=low, high=high)


def circle(periods: Sequence[float | int] = PERIODS, low: int = 0, high: int = 99) -> Basis:
    """Cosine and sine of each period: a helix without its linear term, so one column smaller."""
    return Basis("circle", tuple(map(float, periods)), low=low, high=high)


def polynomial(degree: int, low: int = 0, high: int = 99) -> Basis:
    """All powers up to `degree`."""
    return Basis("polynomial", degree=degree, low=low, high=high)


def digit_fourier() -> Basis:
    """Φ(n) of Bai et al.: periods 10, 5 and 2 over the digits 0 to 9; 5 of the 9 columns that any function has."""
    return Basis("digit", (10.0, 5.0, 2.0), low=0, high=9)


def helix_of_size(periods: Sequence[float | int], k: int, low: int = 0, high: int = 99) -> Basis:
    """The helix of the longest periods that has at most k columns (period 2 counts once, the linear term too)."""
    kept: list[float] = []
    for period in sorted(map(float, periods), reverse=True):
        if helix((*kept, period), low, high).n_columns <= k:
            kept.append(period)
    return helix(sorted(kept), low, high)


def circle_of_size(periods: Sequence[float | int], k: int, low: int = 0, high: int = 99) -> Basis:
    """A circle basis of exactly k columns: the longest periods, then harmonics of the longest (100 -> 50, 33.3, …).

    An odd k needs period 2, which has one column. So the circle of a helix's size has a further period in place of its
    linear term.

    Raises:
        DataError: no period to begin with, or not enough harmonics above 2.
    """
    given = sorted((float(T) for T in periods if T != 2), reverse=True)
    longest = given[0] if given else float(high - low + 1)
    found = given[: k // 2]
    harmonic = 2
    while len(found) < k // 2 and longest / harmonic > 2:
        if all(abs(longest / harmonic - T) > 1e-9 * T for T in found):
            found.append(longest / harmonic)
        harmonic += 1
    if len(found) < k // 2 or k < 1:
        raise DataError(
            f"There is no circle basis of {k} columns with the periods {[f'{T:g}' for T in periods]}."
        )
    return circle((*([2.0] if k % 2 else []), *sorted(found)), low, high)


def permuted(basis: Basis, numbers: Any, seed: int) -> Basis:
    """The same functions of permuted numbers: equally many parameters, nothing of the number's value.

    Args:
        basis: what to take away the order from.
        numbers: all numbers it will be asked for, those held out included.
        seed: of the permutation.
    """
    values = np.unique(whole_numbers(numbers))
    shuffled = np.random.default_rng(seed).permutation(values)
    return replace(basis, relabel=dict(zip(values.tolist(), shuffled.tolist(), strict=True)))


def whole_numbers(numbers: Any) -> Int64[np.ndarray, " number"]:
    """A flat array of whole numbers; [n, 1], as scikit-learn wants features, is taken too.

    Raises:
        DataError: none at all, another shape, NaN, or numbers that are not whole.
    """
    given = np.asarray(numbers)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1 or not len(given) or given.dtype.kind not in "iuf":
        raise DataError(
            f"Numbers of shape {tuple(given.shape)} and type {given.dtype} cannot be used: give a flat list of "
            "whole numbers."
        )
    if given.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(given))
        if len(bad):
            raise DataError(
                f"{len(bad)} of {len(given)} numbers are NaN or infinite, the first at row {bad[0]}: leave them out."
            )
        bad = np.flatnonzero(given != np.round(given))
        if len(bad):
            raise DataError(
                f"Number {given[bad[0]]:g} at row {bad[0]} is not whole: these bases are for whole numbers "
                "(scale them)."
            )
    return given.astype(np.int64)


def check_periods(periods: Sequence[float | int]) -> None:
    """Periods must be finite, at least 2, and different from each other.

    Raises:
        DataError: one that is not; for one between 0 and 2 the message names the period it cannot be told from.
    """
    for period in periods:
        if not math.isfinite(period) or period <= 0:
            raise DataError(f"Period {period:g} is no period: give a length in numbers, 2 or more.")
        if period < 2:
            frequency = abs(1 / period - round(1 / period))
            same = f"the period {1 / frequency:g}" if frequency > 1e-12 else "a constant"
            raise DataError(
                f"Over whole numbers period {period:g} cannot be told from {same}: give periods of 2 or more."
            )
    if len(set(periods)) != len(periods):
        raise DataError(f"A period is given twice in {[f'{T:g}' for T in periods]}: give each once.")
