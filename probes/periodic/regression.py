"""Linear read-out of numbers from activations: ridge on every layer, position and target, with its controls.

For each layer and position, rows h [problem, d] and targets y

    min ‖y − Hw − b‖² / n + α ‖w‖²      α by leave-one-out over the n training rows, for each target
    R² = 1 − Σ (y − ŷ)² / Σ (y − ȳ)²    ȳ the training mean;  MAE = mean |y − ŷ|

on held-out groups of problems (intervals: groups drawn with replacement); H is centred, and divided by the standard
deviation of its most variable dimension. Beside it stand

- `null_r2`: the same fit to shuffled targets, several shuffles; about 0 or below. Groups change places as wholes;
  rows of one group, as far as its targets differ, inside it, too;
- `baseline_mae`: the training median as the answer to everything;
- `visible_r2`: a ridge on what can be seen in the text so far (`visible`) in place of the activations. A sum of digit
  products is for the most part a *linear* function of the digits (83 % of the variance of a·b of two even digits),
  so an R² of 0.8 shows nothing but that the digits can be read. `beyond` = (R² − visible R²) / (1 − visible R²) is
  the share of the rest that the activations add.

Source: ridge instead of the AdamW fit without a bias of Bai et al. 2025 (2510.00184); controls ours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float64, Int64
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupShuffleSplit
from threadpoolctl import threadpool_limits

from probes.periodic.helix import activation_rows
from probes.periodic.splits import shuffled_groups, units_of
from workbench.errors import DataError
from workbench.provenance import Provenance, provenance
from workbench.results import Result, array

PENALTIES = tuple(float(p) for p in np.logspace(-6, 3, 10))


@dataclass(frozen=True)
class _Scores:
    """[target] each."""

    r2: Float64[np.ndarray, " target"]
    low: Float64[np.ndarray, " target"]
    high: Float64[np.ndarray, " target"]
    mae: Float64[np.ndarray, " target"]
    null: Float64[np.ndarray, "shuffle target"]
    penalty: Float64[np.ndarray, " target"]


def regression_probe(
    activations: Mapping[int, Any],
    targets: Mapping[str, Any],
    *,
    groups: Sequence[Any] | None = None,
    visible: Sequence[Any] | None = None,
    positions: Sequence[str] | None = None,
    held_out: float = 0.3,
    n_shuffles: int = 5,
    n_bootstrap: int = 200,
    penalties: Sequence[float | int] = PENALTIES,
    seed: int = 0,
    where: Provenance | None = None,
) -> Result:
    """Read targets from activations at every layer and position.

    Args:
        activations: layer -> [problem, position, d].
        targets: name -> [problem], or [problem, position] where it differs by position; NaN throughout at positions at
            which it has no meaning.
        groups: [problem] label; problems of one group stay on one side of the split. None: each its own.
        visible: for each position [problem, feature], what can be seen in the text up to there.
        positions: what each position is called.
        held_out: share of the groups to score.
        n_shuffles: shuffled targets, for the null; at least 1.
        n_bootstrap: resamples of the held-out groups for the interval of R²; at least 1.
        penalties: to choose from.
        seed: of split, shuffles and resamples.
        where: provenance of the activations.

    Returns:
        A `Result` of kind `probe_regression`, dims (layer, position, target): `r2`, `r2_low`, `r2_high` (95 % over
        held-out groups), `mae`, `null_r2`, `null_r2_high` (the largest shuffle), `penalty`; (position, target):
        `baseline_mae`, and `visible_r2`, `visible_mae` with `beyond` (layer, position, target) where `visible` is
        given.

    Raises:
        DataError: shapes that do not match, NaN, a constant target, fewer groups than two, no shuffles or resamples,
            no penalties or one that is not above 0.

    Example:
        >>> regression_probe({0: acts}, {"c_2": sums[:, 2]}).data["r2"].sel(layer=0, target="c_2")
    """
    started = time.perf_counter()
    if n_shuffles < 1 or n_bootstrap < 1:
        raise DataError(
            f"n_shuffles and n_bootstrap must be at least 1 (without them a score says little), not {n_shuffles} and "
            f"{n_bootstrap}."
        )
    alphas = np.asarray(penalties, dtype=np.float64)
    if alphas.ndim != 1 or not len(alphas) or not (np.isfinite(alphas).all() and alphas.min() > 0):
        raise DataError(f"The penalties to choose from are one or more numbers above 0, not {penalties!r}.")
    rows = _checked(activations)
    layers = list(rows)
    n, n_positions, _ = rows[layers[0]].shape
    y = _targets(targets, n, n_positions)
    names = list(targets)
    unit = units_of(groups, n)
    out = _held_out_rows(n, groups, held_out, seed)
    given = _visible(visible, n, n_positions)
    labels = [str(i) for i in range(n_positions)] if positions is None else [str(p) for p in positions]
    if len(labels) != n_positions:
        raise DataError(f"{len(labels)} names for {n_positions} positions: give one for each.")
    shape = (len(layers), n_positions, len(names))
    found = {
        name: np.full(shape, np.nan)
        for name in ("r2", "r2_low", "r2_high", "mae", "null_r2", "null_r2_high", "penalty")
    }
    flat = {name: np.full(shape[1:], np.nan) for name in ("baseline_mae", "visible_r2", "visible_mae")}
    for p in range(n_positions):
        some = [t for t in range(len(names)) if np.isfinite(y[:, p, t]).all()]
        if not some:
            continue
        here = y[:, p, some]
        flat["baseline_mae"][p, some] = np.abs(here[out] - np.median(here[~out], axis=0)).mean(0)
        settings = (here, out, n_shuffles, penalties, n_bootstrap, [seed, p], unit)
        if given is not None:
            seen = _fit(given[p], *settings)
            flat["visible_r2"][p, some], flat["visible_mae"][p, some] = seen.r2, seen.mae
        for i, layer in enumerate(layers):
            scores = _fit(rows[layer][:, p], *settings)
            for name, values in (
                ("r2", scores.r2),
                ("r2_low", scores.low),
                ("r2_high", scores.high),
                ("mae", scores.mae),
                ("null_r2", scores.null.mean(0)),
                ("null_r2_high", scores.null.max(0)),
                ("penalty", scores.penalty),
            ):
                found[name][i, p, some] = values
    if given is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            found["beyond"] = (found["r2"] - flat["visible_r2"]) / (1 - flat["visible_r2"])
    else:
        del flat["visible_r2"], flat["visible_mae"]
    dims = ("layer", "position", "target")
    variables = {name: array(dims, values, long_name=_SAYS[name]) for name, values in found.items()}
    variables |= {name: array(dims[1:], values, long_name=_SAYS[name]) for name, values in flat.items()}
    coords = {
        "layer": layers,
        "position": np.arange(n_positions),
        "target": names,
        "at": ("position", labels),
    }
    shuffled = "problems" if groups is None else "groups"
    attrs = {
        "n": n,
        "n_held_out": int(out.sum()),
        "n_groups": int(unit.max()) + 1,
        "control": f"targets shuffled over training {shuffled}, {n_shuffles} shuffles",
    }
    data = xr.Dataset(variables, coords, attrs)
    made = provenance(None, seed=seed, seconds={"regression_probe": time.perf_counter() - started})
    if where is not None:
        made = Provenance(**{**vars(made), "model": where.model, "inputs": where.inputs})
    return Result("probe_regression", data, made, _summary(data))


_SAYS = {
    "r2": "R² on held-out problems",
    "r2_low": "R²: 2.5 % over held-out groups of problems",
    "r2_high": "R²: 97.5 % over held-out groups of problems",
    "mae": "mean absolute error on held-out problems",
    "null_r2": "R² of shuffled targets, mean",
    "null_r2_high": "R² of shuffled targets, largest",
    "penalty": "chosen penalty",
    "baseline_mae": "mean absolute error of the training median",
    "visible_r2": "R² of a ridge on the visible text",
    "visible_mae": "mean absolute error of a ridge on the visible text",
    "beyond": "share of what the visible text leaves that the activations explain",
}


def _checked(activations: Mapping[int, Any]) -> dict[int, Float64[np.ndarray, "problem position d"]]:
    if not activations:
        raise DataError("No activations were given: give layer -> [problem, position, d].")
    found = {}
    for layer, values in activations.items():
        given = values.detach().cpu().double().numpy() if hasattr(values, "detach") else values
        rows = np.asarray(given, dtype=np.float64)
        if rows.ndim != 3:
            raise DataError(
                f"Layer {layer} has activations of shape {rows.shape}: give [problem, position, d]."
            )
        if not np.isfinite(rows).all():
            raise DataError(f"Layer {layer} has NaN or infinite activations: leave those problems out.")
        found[layer] = rows
    shapes = {rows.shape[:2] for rows in found.values()}
    if len(shapes) > 1:
        raise DataError(f"Layers have different problems or positions: {sorted(shapes)}.")
    return found


def _targets(
    targets: Mapping[str, Any], n: int, n_positions: int
) -> Float64[np.ndarray, "problem position target"]:
    if not targets:
        raise DataError("No targets were given: give name -> [problem] or [problem, position].")
    each = []
    for name, values in targets.items():
        y = values.detach().cpu().double().numpy() if hasattr(values, "detach") else values
        y = np.asarray(y, dtype=np.float64)
        if y.shape not in ((n,), (n, n_positions)):
            raise DataError(f"Target {name!r} has shape {y.shape}: give {(n,)} or {(n, n_positions)}.")
        y = y if y.ndim == 2 else np.repeat(y[:, None], n_positions, axis=1)
        some = np.isnan(y).any(0) & ~np.isnan(y).all(0)
        if some.any() or np.isinf(y).any():
            raise DataError(
                f"Target {name!r} is NaN or infinite for some problems of a position: it must be there for "
                "all, or for none."
            )
        known = y[:, ~np.isnan(y[0])]
        if not known.size or (known == known[0]).all(0).any():
            raise DataError(
                f"Target {name!r} is constant over the {n} problems at a position: there is nothing to predict."
            )
        each.append(y)
    return np.stack(each, axis=-1)


def _visible(
    visible: Sequence[Any] | None, n: int, n_positions: int
) -> list[Float64[np.ndarray, "problem f"]] | None:
    if visible is None:
        return None
    if len(visible) != n_positions:
        raise DataError(f"visible has {len(visible)} tables for {n_positions} positions: give one for each.")
    return [activation_rows(table, np.arange(n)) for table in visible]


def _held_out_rows(
    n: int, groups: Sequence[Any] | None, share: float, seed: int
) -> Bool[np.ndarray, " problem"]:
    labels = units_of(groups, n)
    if not 0 < share < 1 or not 1 <= round(share * len(np.unique(labels))) < len(np.unique(labels)):
        raise DataError(
            f"held_out={share:g} of {len(np.unique(labels))} groups leaves nothing to fit to or to score."
        )
    split = GroupShuffleSplit(1, test_size=share, random_state=seed)
    out = np.zeros(n, dtype=bool)
    out[next(iter(split.split(np.zeros(n), groups=labels)))[1]] = True
    return out


@threadpool_limits.wrap(1, user_api="blas")  # many small systems: threads would wait for each other
def _fit(
    x: Float64[np.ndarray, "problem d"],
    y: Float64[np.ndarray, "problem target"],
    out: Bool[np.ndarray, " problem"],
    n_shuffles: int,
    penalties: Sequence[float | int],
    n_bootstrap: int,
    seed: list[int],
    unit: Int64[np.ndarray, " problem"] | None = None,
) -> _Scores:
    """One factorisation for all targets and their shuffles."""
    rng = np.random.default_rng(seed)
    unit = np.arange(len(y)) if unit is None else unit
    train, test = y[~out], y[out]
    n_targets = y.shape[1]
    every = np.concatenate(
        [train, *(shuffled_groups(train, unit[~out], rng) for _ in range(n_shuffles))], axis=1
    )
    mean, scale = x[~out].mean(0), float(x[~out].std(0).max()) or 1.0
    model = RidgeCV(alphas=np.asarray(penalties) * len(train), alpha_per_target=True)
    said = (
        model.fit((x[~out] - mean) / scale, every)
        .predict((x[out] - mean) / scale)
        .reshape(len(test), -1, n_targets)
    )
    error = (test[:, None] - said) ** 2
    total = (test - train.mean(0)) ** 2
    r2 = 1 - error.sum(0) / total.sum(0)
    held = np.unique(unit[out], return_inverse=True)[1]
    n_units = int(held.max()) + 1
    counts = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_bootstrap)[:, held]
    spread = counts @ total
    drawn = 1 - (counts @ error[:, 0]) / np.where(
        spread > 0, spread, np.nan
    )  # draws without any spread have no R²
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    penalty = np.ravel(np.asarray(model.alpha_, dtype=np.float64))[:n_targets] / len(train)
    return _Scores(r2[0], low, high, np.abs(test - said[:, 0]).mean(0), r2[1:], penalty)


def _summary(data: xr.Dataset) -> dict[str, Any]:
    found = {}
    for name in data["target"].values:
        here = data.sel(target=name)
        values = np.where(np.isfinite(here["r2"].values), here["r2"].values, -np.inf)
        layer, position = np.unravel_index(int(values.argmax()), values.shape)
        best = here.isel(layer=int(layer), position=int(position))
        found[str(name)] = {
            "layer": int(best["layer"]),
            "at": str(best["at"].values),
            **{
                k: round(float(best[k]), 4)
                for k in ("r2", "mae", "null_r2", "baseline_mae", "visible_r2")
                if k in best
            },
        }
    return {"best": found, "n": data.attrs["n"], "n_held_out": data.attrs["n_held_out"]}
