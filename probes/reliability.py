"""How far probabilities are from shares.

    ECE   Σ_b (n_b / n) |mean p − share of hits| over bins b: of equal mass, or of equal width (Guo et al.)
    RMS   √(Σ_b (n_b / n) [(mean p − share)² − share (1 − share) / (n_b − 1)]), the term taken off being the squared
          error that chance adds (Kumar, Liang and Ma 2019, 1909.10155); 0 where the sum is negative

The ECE of few rows is above zero even for perfect probabilities: beside it stands its null, the ECE of labels that
were *drawn* from the probabilities (consistency resampling; Bröcker and Smith 2007). For several classes all this is
about the top class: p the highest probability, hit if that class is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64
from scipy.stats import beta

from probes.mil.labels import encode, group_codes, interval, resamples
from workbench.errors import DataError
from workbench.results import array


@dataclass(frozen=True)
class CalibrationError:
    """The ECE of some probabilities.

    Attributes:
        value: ECE, 0 to 1.
        low, high: 95 % percentile bootstrap interval, over groups where given. The ECE is biased upwards, and resampled
            rows more so: judge it by `null`, not by whether the interval holds zero.
        null, null_high: mean and 95 % quantile of the ECE of labels drawn from the probabilities.
        rms: root mean squared calibration error, without the share of chance.
        n, bins, binning: rows, bins with rows in them, and how they were cut.
    """

    value: float
    low: float
    high: float
    null: float
    null_high: float
    rms: float
    n: int
    bins: int
    binning: str


def expected_calibration_error(
    probabilities: Any,
    labels: Any,
    *,
    bins: int = 15,
    binning: str = "mass",
    classes: Sequence[Any] | None = None,
    groups: Any = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> CalibrationError:
    """How far probabilities are from shares, with an interval and a null.

    Args:
        probabilities: [row] of the second class, or [row, class] (then of the top class).
        labels: [row].
        bins: of equal mass (rows with equal probabilities stay together) or of equal width over 0 to 1.
        binning: `"mass"` or `"width"`.
        classes: in the order of the columns; sorted by default.
        groups: one per row, for the bootstrap.
        seed, n_bootstrap: of the bootstrap and of the labels drawn for the null.

    Raises:
        DataError: probabilities outside 0 to 1 or not summing to 1, labels that do not match, bins or n_bootstrap below
            1.
    """
    if n_bootstrap < 1:
        raise DataError(f"n_bootstrap must be at least 1 (interval and null are drawn), not {n_bootstrap}.")
    p, hit = _confidence(probabilities, labels, classes)
    bin_of, _ = _bins(p, bins, binning)
    weights = resamples(group_codes(groups, len(p)), len(p), n=n_bootstrap, seed=seed)
    drawn = np.random.default_rng(seed + 1).random((n_bootstrap, len(p))) < p
    low, high = interval(_ece(p, hit[None], weights, bin_of))
    null = _ece(p, drawn.astype(float), np.ones((1, len(p))), bin_of)
    n = np.bincount(bin_of)
    share, mean = np.bincount(bin_of, hit) / n, np.bincount(bin_of, p) / n
    chance = np.where(n > 1, share * (1 - share) / np.maximum(n - 1, 1), 0.0)
    squared = float((n / len(p) * ((mean - share) ** 2 - chance)).sum())
    value = float(_ece(p, hit[None], np.ones((1, len(p))), bin_of)[0])
    return CalibrationError(
        value=value,
        low=low,
        high=high,
        null=float(null.mean()),
        null_high=float(np.quantile(null, 0.95)),
        rms=max(squared, 0.0) ** 0.5,
        n=len(p),
        bins=len(n),
        binning=binning,
    )


def reliability(
    probabilities: Any,
    labels: Any,
    *,
    bins: int = 10,
    binning: str = "mass",
    classes: Sequence[Any] | None = None,
) -> xr.Dataset:
    """The reliability table: per bin (those with rows) `n`, mean `probability`, `share` of hits and its exact 95 %
    binomial interval `low`, `high`, and the `lowest` and `highest` probability. Arguments as above.
    """
    p, hit = _confidence(probabilities, labels, classes)
    bin_of, _ = _bins(p, bins, binning)
    n = np.bincount(bin_of)
    hits = np.bincount(bin_of, hit)
    low, high = binomial_interval(hits, n)
    columns = {
        "n": (n, "rows"),
        "probability": (np.bincount(bin_of, p) / n, "mean probability"),
        "share": (hits / n, "share of hits"),
        "low": (low, "lower end of the exact 95 % binomial interval"),
        "high": (high, "upper end of the exact 95 % binomial interval"),
        "lowest": (np.array([p[bin_of == b].min() for b in range(len(n))]), "lowest probability"),
        "highest": (np.array([p[bin_of == b].max() for b in range(len(n))]), "highest probability"),
    }
    variables = {name: array(("bin",), values, long_name=text) for name, (values, text) in columns.items()}
    return xr.Dataset(
        variables, {"bin": np.arange(len(n))}, {"n": len(p), "binning": binning, "bins_asked": bins}
    )


def binomial_interval(hits: Any, n: Any) -> tuple[np.ndarray, np.ndarray]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934); NaN where n is 0."""
    hits, n = np.asarray(hits, dtype=np.float64), np.asarray(n, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        low = np.where(hits > 0, beta.ppf(0.025, np.maximum(hits, 1), n - hits + 1), 0.0)
        high = np.where(hits < n, beta.ppf(0.975, hits + 1, np.maximum(n - hits, 1)), 1.0)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def as_scores(scores: Any) -> Float64[np.ndarray, "row ..."]:
    """[row] or [row, class] finite float64, from numpy or torch; anything else is a `DataError`."""
    values = scores.detach().cpu().double().numpy() if hasattr(scores, "detach") else scores
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Scores are numbers, [row] or [row, class]; labels come after them: {error}."
        ) from error
    if values.ndim not in (1, 2) or not len(values):
        raise DataError(f"Scores are [row] or [row, class]; these have shape {values.shape}.")
    bad = int((~np.isfinite(values.reshape(len(values), -1))).any(1).sum())
    if bad:
        raise DataError(f"{bad} of {len(values)} rows have scores that are NaN or infinite.")
    return values


def check_columns(values: np.ndarray, classes: tuple[Any, ...]) -> None:
    """`DataError` where scores have not one column per class (or none, for two classes)."""
    if values.ndim == 1 and len(classes) != 2:
        raise DataError(
            f"One score per row tells two classes apart, there are {len(classes)}: give [row, class]."
        )
    if values.ndim == 2 and values.shape[1] != len(classes):
        raise DataError(
            f"Scores with {values.shape[1]} columns for {len(classes)} classes: one column for each."
        )


def _confidence(
    probabilities: Any, labels: Any, classes: Sequence[Any] | None
) -> tuple[Float64[np.ndarray, " row"], Float64[np.ndarray, " row"]]:
    values = as_scores(probabilities)
    known, codes = encode(labels, classes, n=len(values), of="probabilities")
    check_columns(values, known)
    if values.min() < 0 or values.max() > 1 or (values.ndim == 2 and np.abs(values.sum(1) - 1).max() > 1e-6):
        raise DataError(
            "Probabilities lie between 0 and 1, and those of several classes add up to 1; these do not."
        )
    if values.ndim == 1:
        return values, (codes == 1).astype(np.float64)
    return values.max(1), (values.argmax(1) == codes).astype(np.float64)


def _bins(p: np.ndarray, bins: int, binning: str) -> tuple[Int64[np.ndarray, " row"], int]:
    """The bin of each row, numbered from 0 without gaps."""
    if bins < 1 or binning not in ("mass", "width"):
        raise DataError(f"{bins} bins cut by {binning!r}: expected at least 1 bin and 'mass' or 'width'.")
    if binning == "width":
        found = np.minimum((p * bins).astype(np.int64), bins - 1)
    else:
        rank = np.searchsorted(np.sort(p), p, side="left")
        found = rank * bins // len(p)
    kept, numbered = np.unique(found, return_inverse=True)
    return numbered.astype(np.int64), len(kept)


def _ece(
    p: np.ndarray, hit: np.ndarray, weights: np.ndarray, bin_of: np.ndarray
) -> Float64[np.ndarray, " draw"]:
    """Σ_b |Σ weight (p − hit)| / Σ weight, for each draw of labels or of weights."""
    members = np.eye(int(bin_of.max()) + 1)[bin_of]
    return np.abs((weights * (p - hit)) @ members).sum(1) / weights.sum(1)
