"""The result of a helix patch: means over pairs, with intervals that resample the numbers put in.

Pairs with the same new number share what is put in, so they are not independent: whole numbers are drawn with
replacement, with all their pairs (cluster bootstrap).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64

from probes.periodic.pairs import NumberPairs
from workbench.results import array

SOURCES = ("layer", "helix", "circle", "polynomial", "pca", "permuted", "mean")
MEASURES = {
    "effect": "change of logit(new answer) − logit(old answer)",
    "logit_change": "change of logit(new answer)",
    "probability": "probability of the new answer",
    "success": "share of pairs whose first choice is the new answer",
}


@dataclass(frozen=True, eq=False)
class Fits:
    """What is put in at one layer, for each pair."""

    vectors: dict[str, Float64[np.ndarray, "pair d"]]
    """Source -> rows; permutations as `permuted 0`, `permuted 1`, …"""
    periods: tuple[tuple[float, ...], ...]
    """Per fold."""
    n_columns: int


def dataset(
    values: dict[str, Float64[np.ndarray, "layer source pair"]],
    layers: list[int],
    pairs: NumberPairs,
    fits: list[Fits],
    n_bootstrap: int,
    seed: int,
) -> xr.Dataset:
    variables: dict[str, Any] = {}
    weights = _resampled(pairs.new, n_bootstrap, seed)
    for name, each in values.items():
        variables[name] = array(("layer", "source", "pair"), each, long_name=MEASURES[name])
        _with_interval(variables, f"mean_{name}", each, weights, f"{MEASURES[name]}, mean over pairs")
        minus = each[:, [SOURCES.index("helix")]] - each
        _with_interval(
            variables, f"helix_minus_{name}", minus, weights, f"helix minus this source: {MEASURES[name]}"
        )
    effect = values["effect"]
    means = np.tensordot(effect, weights, axes=(2, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = means / means[:, :1]
        share = effect.mean(-1) / effect.mean(-1)[:, :1]
    ends = np.quantile(shares, [0.025, 0.975], axis=-1)
    for name, one in (("share", share), ("share_low", ends[0]), ("share_high", ends[1])):
        variables[name] = array(("layer", "source"), one, long_name="share of the layer patch's mean effect")
    columns = {"layer": -1, "mean": 0}
    largest = max(fit.n_columns for fit in fits)
    variables["n_columns"] = array(
        ("source",),
        np.array([columns.get(m, largest) for m in SOURCES]),
        long_name="columns beside the mean; -1: all",
    )
    rank = max(len(p) for fit in fits for p in fit.periods)
    period = np.full((len(fits), len(fits[0].periods), rank), np.nan)
    for i, fit in enumerate(fits):
        for f, chosen in enumerate(fit.periods):
            period[i, f, : len(chosen)] = chosen
    variables["period"] = array(
        ("layer", "fold", "rank"), period, long_name="periods of the helix", units="numbers"
    )
    coords = {
        "layer": layers,
        "source": list(SOURCES),
        "number": ("pair", pairs.number),
        "new_number": ("pair", pairs.new),
        "other": ("pair", pairs.other),
    }
    return xr.Dataset(variables, coords)


def _with_interval(
    into: dict[str, Any], name: str, each: np.ndarray, weights: np.ndarray, long_name: str
) -> None:
    low, high = np.quantile(np.tensordot(each, weights, axes=(2, 1)), [0.025, 0.975], axis=-1)
    ends = (("", each.mean(-1), ""), ("_low", low, "2.5 %"), ("_high", high, "97.5 %"))
    for end, values, says in ends:
        text = f"{long_name}{f': {says} over numbers' if says else ''}"
        into[f"{name}{end}"] = array(("layer", "source"), values, long_name=text)


def _resampled(groups: Int64[np.ndarray, " pair"], n: int, seed: int) -> Float64[np.ndarray, "resample pair"]:
    """Weights of the pairs (summing to 1) when whole groups are drawn with replacement."""
    different, index = np.unique(groups, return_inverse=True)
    if len(different) < 2:
        return np.full((1, len(groups)), np.nan)
    counts = np.random.default_rng([seed, 5]).multinomial(
        len(different), np.full(len(different), 1 / len(different)), size=n
    )
    weights = counts[:, index].astype(np.float64)
    return weights / weights.sum(1, keepdims=True)


def summary(data: xr.Dataset) -> dict[str, Any]:
    first = data.isel(layer=0)
    of = lambda name: {  # noqa: E731
        str(m): round(float(first[name].sel(source=m)), 4) for m in data["source"].values
    }
    return {
        "layer": int(first["layer"]),
        "effect": of("mean_effect"),
        "share": of("share"),
        "success": of("mean_success"),
        "n": data.attrs["n"],
        "n_drawn": data.attrs["n_drawn"],
    }
