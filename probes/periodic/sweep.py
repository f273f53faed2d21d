"""How much of the activations at a number's token a helix explains, layer by layer, on numbers it has not seen.

For each of `n_splits` random splits of the numbers, each basis and each size k

    R² on held-out numbers (`splits`) of   ĥ(a) = B(a) A + constant, least squares on the other numbers

| basis | what is fitted, with at most k columns beside the constant |
| --- | --- |
| `helix` | the linear term and the longest of the given periods (`basis.helix_of_size`) |
| `chosen` | the linear term and periods chosen on the training numbers of each split (`periods.greedy`) |
| `circle` | no linear term, a further period in its place (`basis.circle_of_size`) |
| `polynomial` | degree k |
| `pca` | the mean and the leading k principal components of the training rows |

The first four predict the activation of a number from the number alone. Principal components do not: they are given the
held-out activation itself and keep k coordinates of it, so they show what k numbers can hold, and a high R² of theirs
says nothing about numbers. Medians, since a split that holds out the first or last numbers makes a polynomial
extrapolate, with an R² of −10 that would drown a mean. Null: the same basis of permuted numbers (`chosen` chooses
anew); for `pca` k random directions.

Source: Kantamneni & Tegmark 2025 (2502.00873). What differs: R² on held-out numbers with its spread over
splits, equal sizes, a null, periods that need not be 2, 5, 10 and 100; all dimensions of the activation instead of 100
principal components. The paper's "9" is 8 columns and a constant (`basis`); the helix of size 9 has 8 here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float64, Int64
from threadpoolctl import threadpool_limits

from probes.periodic.basis import (
    PERIODS,
    Basis,
    check_periods,
    circle_of_size,
    helix,
    helix_of_size,
    polynomial,
    whole_numbers,
)
from probes.periodic.helix import activation_rows, checked_design
from probes.periodic.periods import CANDIDATES, greedy, number_means
from probes.periodic.splits import explained, number_folds, random_splits
from workbench.errors import DataError
from workbench.provenance import Provenance, provenance
from workbench.results import Result, array

BASES = ("helix", "chosen", "circle", "polynomial", "pca")
SIZES = (3, 5, 7, 9)


@threadpool_limits.wrap(1, user_api="blas")  # many small systems: threads would wait for each other
def helix_sweep(
    rows: Mapping[int, Any],
    numbers: Any,
    *,
    periods: Sequence[float | int] = PERIODS,
    sizes: Sequence[int] = SIZES,
    candidates: Sequence[float | int] = CANDIDATES,
    n_splits: int = 20,
    held_out: float = 0.25,
    seed: int = 0,
    where: Provenance | None = None,
) -> Result:
    """R² of helix, circle, polynomial and principal components on held-out numbers, with their nulls.

    Args:
        rows: layer -> [row, d] activations, all layers with the same rows. `numbers.read_numbers` makes them.
        numbers: [row] whole numbers, that at whose token each row was read. A number may stand in several rows.
        periods: of `helix` and `circle`; small sizes leave out the shortest.
        sizes: columns that a basis may have, each 3 or more.
        candidates: periods that `chosen` chooses from, one or more; with few of them it stays below its size.
        n_splits: random splits of the numbers.
        held_out: share of the different numbers that is held out in each.
        seed: of splits, permutations and random directions. The same splits are used for everything.
        where: provenance of the activations, to be named in the result.

    Returns:
        A `Result` of kind `probe_periodic`, dims (layer, basis, k): `r2` (median over splits), `r2_low`, `r2_high`
        (its 2.5 and 97.5 % quantiles over splits; training sets of splits overlap, so this is a spread, not a
        standard error), `null_r2`, `null_r2_low`, `null_r2_high`; (basis, k) `n_columns`, which is k or less;
        (layer) `between`: share of variance between numbers, which no function of the number can exceed; (layer,
        split, rank) `chosen_period`: what `chosen` chose, NaN where it had room for fewer.

    Raises:
        DataError: numbers that do not match the rows, NaN, too few numbers for the largest basis, a bad period.

    Example:
        >>> result = helix_sweep({0: embeddings}, range(100))
        >>> result.data["r2"].sel(layer=0, basis="helix", k=9)
    """
    started = time.perf_counter()
    a = whole_numbers(numbers)
    layers, stacked = _stacked(rows, a)
    fixed = _fixed_bases(periods, sizes, int(a.min()), int(a.max()))
    check_periods(candidates)
    if not len(candidates):
        raise DataError("There are no candidates to choose periods from: give one or more.")
    splits = random_splits(a, n_splits, held_out, seed)
    shape = (n_splits, len(layers), len(BASES), len(sizes))
    r2, null = np.full(shape, np.nan), np.full(shape, np.nan)
    n_chosen = min((max(sizes) - 1) // 2, len(candidates))
    chosen = np.full((len(layers), n_splits, n_chosen), np.nan)
    for i, out in enumerate(splits):
        data = _Split(a, stacked, out)
        shuffled = dict(
            zip(np.unique(a), np.random.default_rng([seed, 2, i]).permutation(np.unique(a)), strict=True)
        )
        other = _Split(np.array([shuffled[n] for n in a]), stacked, out)
        for s, k in enumerate(sizes):
            for name, basis in fixed[k].items():
                r2[i, :, BASES.index(name), s] = data.score(basis)
                null[i, :, BASES.index(name), s] = other.score(basis)
        for j in range(len(layers)):
            chosen[j, i] = data.choose(j, candidates, n_chosen, seed)
            for one, into in ((data, r2), (other, null)):
                found = chosen[j, i] if one is data else one.choose(j, candidates, n_chosen, seed)
                for s, k in enumerate(sizes):
                    basis = helix_of_size_in_order(found.tolist(), k, int(a.min()), int(a.max()))
                    into[i, j, BASES.index("chosen"), s] = one.score(basis, j)[0]
            rng = np.random.default_rng([seed, 1, i, j])
            axes = np.linalg.svd(data.train[:, j] - data.mean[j], full_matrices=False)[2]
            random = np.linalg.qr(rng.normal(size=(stacked.shape[-1], min(max(sizes), stacked.shape[-1]))))[
                0
            ].T
            for s, k in enumerate(sizes):
                r2[i, j, -1, s] = data.projected(j, axes[:k])
                null[i, j, -1, s] = data.projected(j, random[:k])
    found = _dataset(layers, sizes, r2, null, chosen)
    found["between"] = array(("layer",), _between(stacked, a), long_name="share of variance between numbers")
    found["n_columns"] = array(
        ("basis", "k"), _columns(fixed, sizes, len(candidates)), long_name="columns beside the constant"
    )
    found.attrs = {
        "n": len(a),
        "n_numbers": len(np.unique(a)),
        "n_splits": n_splits,
        "held_out": held_out,
        "periods": [float(T) for T in periods],
        "n_candidates": len(candidates),
        "d_model": stacked.shape[-1],
        "control": "the same functions of permuted numbers; for pca, random directions",
    }
    made = provenance(None, seed=seed, seconds={"helix_sweep": time.perf_counter() - started})
    if where is not None:
        made = replace(made, model=where.model, inputs=where.inputs, settings={"activations": where.settings})
    return Result("probe_periodic", found, made, _summary(found))


class _Split:
    """One split: numbers, rows of every layer, and which rows are held out."""

    def __init__(
        self,
        numbers: Int64[np.ndarray, " row"],
        rows: Float64[np.ndarray, "row layer d"],
        out: Bool[np.ndarray, " row"],
    ) -> None:
        self.numbers, self.rows, self.out = numbers, rows, out
        self.train = rows[~out]
        self.mean = self.train.mean(0)

    def score(self, basis: Basis, layer: int | None = None) -> Float64[np.ndarray, " layer"]:
        """R² at every layer, or at one: one least-squares problem whose right sides are all layers' dimensions."""
        some = slice(None) if layer is None else slice(layer, layer + 1)
        train, test, mean = self.train[:, some], self.rows[self.out][:, some], self.mean[some]
        design = checked_design(basis, self.numbers[~self.out])
        solution = np.linalg.lstsq(design, train.reshape(len(train), -1), rcond=None)[0]
        predicted = basis.design(self.numbers[self.out]) @ solution
        return explained(test, predicted.reshape(test.shape), mean)

    def choose(
        self, layer: int, candidates: Sequence[float | int], n: int, seed: int
    ) -> Float64[np.ndarray, " rank"]:
        """Periods chosen on the training numbers."""
        values, means = number_means(self.train[:, layer], self.numbers[~self.out])
        return np.array(greedy(means, values, candidates, n, number_folds(values, 4, seed))[0])

    def projected(self, layer: int, axes: Float64[np.ndarray, "k d"]) -> float:
        """R² of keeping the held-out rows' coordinates along some axes, about the training mean."""
        rows, mean = self.rows[self.out][:, layer], self.mean[layer]
        return float(explained(rows, (rows - mean) @ axes.T @ axes + mean, mean))


def _fixed_bases(
    periods: Sequence[float | int], sizes: Sequence[int], low: int, high: int
) -> dict[int, dict[str, Basis]]:
    check_periods(periods)
    if not len(sizes) or min(sizes) < 3:
        raise DataError(f"Sizes {list(sizes)} cannot be used: a helix has 3 columns or more.")
    return {
        k: {
            "helix": helix_of_size(periods, k, low, high),
            "circle": circle_of_size(periods, k, low, high),
            "polynomial": polynomial(k, low, high),
        }
        for k in sizes
    }


def helix_of_size_in_order(periods: Sequence[float | int], k: int, low: int, high: int) -> Basis:
    """The helix of the first periods that has at most k columns."""
    kept: list[float] = []
    for period in periods:
        if helix((*kept, float(period)), low, high).n_columns > k:
            break
        kept.append(float(period))
    return helix(kept, low, high)


def _columns(fixed: dict[int, dict[str, Basis]], sizes: Sequence[int], n_candidates: int) -> np.ndarray:
    """[basis, k]; a chosen helix has room for (k − 1) / 2 periods of two columns, if there are as many."""
    rows = {name: [fixed[k][name].n_columns for k in sizes] for name in ("helix", "circle", "polynomial")}
    rows["chosen"] = [2 * min((k - 1) // 2, n_candidates) + 1 for k in sizes]
    rows["pca"] = list(sizes)
    return np.array([rows[name] for name in BASES])


def _dataset(layers: Any, sizes: Any, r2: np.ndarray, null: np.ndarray, chosen: np.ndarray) -> xr.Dataset:
    dims = ("layer", "basis", "k")
    variables: dict[str, Any] = {
        "chosen_period": array(("layer", "split", "rank"), chosen, long_name="chosen periods, in order")
    }
    for name, values, what in (
        ("r2", r2, "R² on held-out numbers, median over splits"),
        ("null_r2", null, "R² of permuted numbers (pca: of random directions), median over splits"),
    ):
        low, high = np.quantile(values, [0.025, 0.975], axis=0)
        variables[name] = array(dims, np.median(values, axis=0), long_name=what)
        variables[f"{name}_low"] = array(dims, low, long_name=f"{what}: 2.5 % quantile over splits")
        variables[f"{name}_high"] = array(dims, high, long_name=f"{what}: 97.5 % quantile over splits")
    return xr.Dataset(variables, {"layer": layers, "basis": list(BASES), "k": list(sizes)})


def _stacked(
    rows: Mapping[int, Any], numbers: Int64[np.ndarray, " row"]
) -> tuple[list[int], Float64[np.ndarray, "row layer d"]]:
    if not rows:
        raise DataError("No activations were given: give layer -> [row, d].")
    each = {}
    for layer, values in rows.items():
        try:
            each[layer] = activation_rows(values, numbers)
        except DataError as error:
            raise DataError(f"Layer {layer}: {error}") from None
    widths = {values.shape[1] for values in each.values()}
    if len(widths) > 1:
        raise DataError(f"Layers have different widths, {sorted(widths)}: give one site of every layer.")
    return list(each), np.stack(list(each.values()), axis=1)


def _between(
    rows: Float64[np.ndarray, "row layer d"], numbers: Int64[np.ndarray, " row"]
) -> Float64[np.ndarray, " layer"]:
    _, index, count = np.unique(numbers, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), *rows.shape[1:]))
    np.add.at(sums, index, rows)
    return explained(rows, (sums / count[:, None, None])[index], rows.mean(0))


def _summary(data: xr.Dataset) -> dict[str, Any]:
    largest = data.sel(k=data["k"].values[-1])
    best = int(np.nanargmax(largest["r2"].sel(basis="chosen").fillna(-np.inf).values))
    here = largest.isel(layer=best)
    return {
        "layer": int(here["layer"]),
        "k": int(here["k"]),
        "r2": {str(b): round(float(here["r2"].sel(basis=b)), 4) for b in data["basis"].values},
        "null_r2": {str(b): round(float(here["null_r2"].sel(basis=b)), 4) for b in data["basis"].values},
        "n_numbers": data.attrs["n_numbers"],
    }
