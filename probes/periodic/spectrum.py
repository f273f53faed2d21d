"""Fourier spectrum over consecutive numbers: which frequencies hold the power of an embedding or of activations.

For a table X [number, d] of n consecutive numbers, with the mean (or a straight line) taken away from every column

    P(j) = w_j ‖Σ_a X(a) exp(−2πi j a / n)‖² / n       j = 1 … ⌊n/2⌋,  w_j = 2, but 1 for j = n/2

so that Σ_j P(j) = ‖X‖² (Parseval): shares of power add up to 1. Frequency j has the period n / j. A line that is
left in leaks into all low frequencies, most into j = 1, so spectra with it (`mean`) and without it (`trend`) are
both given.

Null: the rows of the table in random order, treated alike. The k largest of ⌊n/2⌋ shares are large by chance, and the
permuted tables' k largest say how large. p = (1 + permutations that reach the share) / (1 + permutations).

Source: Nanda et al. 2023 (2301.05217); Zhou et al. 2024 (2406.03445), who have no null and count
ω_k = 2πk/(p − 1) for the p = 521 numbers 0 … 520. Evenly spaced frequencies of p numbers are 2πk/p; with 520 in
its place the periods 2, 5 and 10 fall on whole k but the functions are not orthogonal. Here n is what the table
has: take 100 or 500 numbers, and not 521, where periods 2, 5 and 10 are to be seen without leakage.

`digit_fit`: the six functions of Bai et al. (2510.00184) over ten digits. Five non-constant functions explain 5/9
of any ten random rows, which is the level to compare R² with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64
from threadpoolctl import threadpool_limits

from probes.periodic.basis import digit_fourier, whole_numbers
from probes.periodic.helix import activation_rows
from workbench.errors import DataError
from workbench.provenance import provenance
from workbench.results import Result, array

TRENDS = ("mean", "trend")
ROUNDING = 1e-12
"""Relative slack of a comparison: an order that gives the same value gives it but for the last digits."""


@threadpool_limits.wrap(1, user_api="blas")  # many small transforms: threads would wait for each other
def number_spectrum(
    tables: Mapping[str, Any],
    *,
    numbers: Any = None,
    top: Sequence[int] | None = None,
    n_permutations: int = 200,
    seed: int = 0,
) -> Result:
    """Power of each frequency over the numbers, and how much the strongest hold, beside permuted tables.

    Args:
        tables: name -> [number, d], all over the same numbers.
        numbers: [number] whole number of each row, consecutive; None: 0, 1, 2, …
        top: for how many of the strongest frequencies the share of power is given; None: 1, 2, 4, 6 and 10, as far
            as there are so many.
        n_permutations: of the rows.
        seed: of the permutations.

    Returns:
        A `Result` of kind `probe_spectrum`. (table, removed, frequency): `power`, shares that add up to 1, with the
        coordinate `period`. (table, removed, top): `share`, `null_share` with `null_share_high` (97.5 % of
        permutations) and `p_value`. (table): `line`, the share of the variance about the mean that a straight line
        explains.

    Raises:
        DataError: numbers that do not match or are not consecutive, NaN, a table without variance, more top frequencies
            than there are.

    Example:
        >>> result = number_spectrum({"embedding": table})
        >>> result.data["share"].sel(removed="mean", top=6), result.data["null_share_high"]
    """
    started = time.perf_counter()
    if not tables:
        raise DataError("No tables were given: give name -> [number, d].")
    first = next(iter(tables.values()))
    a = whole_numbers(range(len(first)) if numbers is None else numbers)
    step = np.flatnonzero(np.diff(a) != 1)
    if len(step):
        raise DataError(
            f"The numbers are not consecutive: {a[step[0]]} is followed by {a[step[0] + 1]}. A spectrum needs rows in "
            "order, one for each number."
        )
    if len(a) < 4:
        raise DataError(f"{len(a)} numbers have no spectrum: give 4 or more.")
    n_frequencies = len(a) // 2
    top = [k for k in (1, 2, 4, 6, 10) if k <= n_frequencies] if top is None else list(top)
    if not top or min(top) < 1 or max(top) > n_frequencies:
        raise DataError(
            f"top={top}: {len(a)} numbers have {n_frequencies} frequencies, give 1 to {n_frequencies}."
        )
    if n_permutations < 1:
        raise DataError(f"n_permutations is {n_permutations}: give 1 or more.")
    names = list(tables)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(a)) for _ in range(n_permutations)]
    power = np.zeros((len(names), len(TRENDS), n_frequencies))
    null = np.zeros((n_permutations, len(names), len(TRENDS), len(top)))
    line = np.zeros(len(names))
    for i, name in enumerate(names):
        rows = _short(_table(tables[name], a, name))
        sizes = [float((_without(rows, removed) ** 2).sum()) for removed in TRENDS]
        line[i] = 1 - sizes[1] / sizes[0]
        for j, removed in enumerate(TRENDS):
            power[i, j] = power_share(rows, removed)
            for r, order in enumerate(orders):
                null[r, i, j] = _top_share(power_share(rows[order], removed), top)
    share = np.stack([[_top_share(p, top) for p in each] for each in power])
    variables = {
        "power": array(("table", "removed", "frequency"), power, long_name="share of power"),
        "share": array(
            ("table", "removed", "top"), share, long_name="share of power in the strongest frequencies"
        ),
        "null_share": array(
            ("table", "removed", "top"), null.mean(0), long_name="the same of permuted rows, mean"
        ),
        "null_share_high": array(
            ("table", "removed", "top"),
            np.quantile(null, 0.975, axis=0),
            long_name="97.5 % quantile of permuted rows",
        ),
        "p_value": array(
            ("table", "removed", "top"),
            (1 + (null >= share * (1 - ROUNDING)).sum(0)) / (1 + n_permutations),
            long_name="permutation p-value of the share",
        ),
        "line": array(("table",), line, long_name="share of variance of a straight line"),
    }
    frequency = np.arange(1, n_frequencies + 1)
    coords = {
        "table": names,
        "removed": list(TRENDS),
        "frequency": frequency,
        "period": ("frequency", len(a) / frequency),
        "top": top,
    }
    attrs = {
        "n": len(a),
        "n_frequencies": n_frequencies,
        "n_permutations": n_permutations,
        "control": f"rows in random order, {n_permutations} permutations",
    }
    data = xr.Dataset(variables, coords, attrs)
    where = provenance(None, seed=seed, seconds={"number_spectrum": time.perf_counter() - started})
    return Result("probe_spectrum", data, where, _summary(data))


def power_share(
    rows: Float64[np.ndarray, "number d"], removed: str = "mean"
) -> Float64[np.ndarray, " frequency"]:
    """Share of power at the frequencies 1 … ⌊n/2⌋ after the mean, or mean and line, were taken away.

    What the line leaves has no mean, so frequency 0 is empty in both.
    """
    left = _without(rows, removed)
    power = (np.abs(np.fft.rfft(left, axis=0)) ** 2).sum(1)[1:] / len(rows)
    power *= 2
    if len(rows) % 2 == 0:
        power[-1] /= 2
    return power / power.sum()


def digit_fit(table: Any, *, n_permutations: int = 200, seed: int = 0) -> dict[str, float]:
    """R² of the six digit functions over a table of the digits 0 to 9, beside permuted digits.

    Args:
        table: [10, d] rows of the digits 0 to 9 in order.
        n_permutations: of the digits.
        seed: of the permutations.

    Returns:
        `r2` (of all dimensions together), `r2_median` (of the dimensions' own R², as the paper reports it), `null_r2`,
        `null_r2_high` (97.5 %), `p_value`, and `chance`, which is 5/9.

    Raises:
        DataError: another number of rows, NaN, or no variance.

    Example:
        >>> digit_fit(model.hf.get_input_embeddings().weight[zero : zero + 10])
    """
    if n_permutations < 1:
        raise DataError(f"n_permutations is {n_permutations}: give 1 or more.")
    digits = np.arange(10)
    rows = activation_rows(table, digits)
    design = digit_fourier().design(digits)
    hat = design @ np.linalg.pinv(design)

    def r2(values: Float64[np.ndarray, "digit d"]) -> tuple[float, float]:
        residual, total = ((values - hat @ values) ** 2).sum(0), ((values - values.mean(0)) ** 2).sum(0)
        if total.sum() <= 1e-20 * (values**2).sum():
            raise DataError("The table is constant over the digits: there is no variance to explain.")
        varied = total > 1e-20 * (values**2).sum(0)  # what is the same for all digits has rounding left
        return float(1 - residual.sum() / total.sum()), float(np.median(1 - residual[varied] / total[varied]))

    rng = np.random.default_rng(seed)
    null = np.array([r2(rows[rng.permutation(10)])[0] for _ in range(n_permutations)])
    whole, median = r2(rows)
    return {
        "r2": whole,
        "r2_median": median,
        "null_r2": float(null.mean()),
        "null_r2_high": float(np.quantile(null, 0.975)),
        "p_value": float((1 + (null >= whole - ROUNDING * abs(whole)).sum()) / (1 + n_permutations)),
        "chance": 5 / 9,
    }


def _table(table: Any, numbers: Any, name: str) -> Float64[np.ndarray, "number d"]:
    try:
        rows = activation_rows(table, numbers)
    except DataError as error:
        raise DataError(f"Table {name!r}: {error}") from None
    for removed in TRENDS:
        if (_without(rows, removed) ** 2).sum() <= 1e-20 * (rows**2).sum():
            what = "constant" if removed == "mean" else "a straight line"
            raise DataError(
                f"Table {name!r} is {what} over the numbers: nothing is left whose spectrum could be taken."
            )
    return rows


def _short(rows: Float64[np.ndarray, "number d"]) -> Float64[np.ndarray, "number rank"]:
    """Rotated into as few columns as there are rows: power over all columns stays."""
    if rows.shape[1] <= len(rows):
        return rows
    left, size, _ = np.linalg.svd(rows, full_matrices=False)
    return left * size


def _without(rows: Float64[np.ndarray, "number d"], removed: str) -> Float64[np.ndarray, "number d"]:
    centred = rows - rows.mean(0)
    if removed == "mean":
        return centred
    x = np.arange(len(rows)) - (len(rows) - 1) / 2
    return centred - x[:, None] * (x @ centred / (x @ x))


def _top_share(power: Float64[np.ndarray, " frequency"], top: Sequence[int]) -> Float64[np.ndarray, " top"]:
    return np.cumsum(np.sort(power)[::-1])[np.asarray(top) - 1]


def _summary(data: xr.Dataset) -> dict[str, Any]:
    found = {}
    for name in data["table"].values:
        here = data.sel(table=name, removed="mean")
        best = np.argsort(-here["power"].values)[:6]
        found[str(name)] = {
            "periods": [round(float(p), 2) for p in data["period"].values[best]],
            "share": {
                int(k): round(float(v), 4)
                for k, v in zip(data["top"].values, here["share"].values, strict=True)
            },
            "null_share_high": {
                int(k): round(float(v), 4)
                for k, v in zip(data["top"].values, here["null_share_high"].values, strict=True)
            },
        }
    return {"tables": found, "n": data.attrs["n"]}
