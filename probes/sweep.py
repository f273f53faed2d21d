"""A probe at every site: is a property linearly readable, more than shuffled labels are?

1. Labels become positive and negative; rows get folds (`probes.scores`), groups staying together.
2. Per site and fold the training rows are prepared once (`probes.estimators.Features`), and every kind of
   probe is fitted to the true labels and to permutations of them. Each row is scored by the one fit that did
   not see its fold. Means, scales and covariances come from the training rows alone.
3. Per cell (site, position, kind): AUC with its interval, accuracy, log-loss, control, selectivity.
4. Each kind is fitted once more to all rows: the weight that becomes a `Direction`.

The best of many cells looks better than it is. So `summary["best"]` gives, beside its AUC, the nested AUC and
`control_best_auc`, the AUC of the best cell on permuted labels. Definitions: `probes.scores`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float64

from probes import scores as measure
from probes.estimators import Weights, as_matrix, cross_fit, make_probes
from workbench.activations import Activations
from workbench.directions import Direction
from workbench.errors import DataError, did_you_mean
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.sites.names import expand

MEANING = {
    "auc": ("AUC, out of fold", ""),
    "auc_low": ("AUC, lower end of the 95 % interval", ""),
    "auc_high": ("AUC, upper end of the 95 % interval", ""),
    "accuracy": ("accuracy, out of fold", ""),
    "log_loss": ("log-loss, out of fold", "nats"),
    "control_auc": ("AUC on permuted labels, mean", ""),
    "control_auc_high": ("AUC on permuted labels, highest", ""),
    "control_accuracy": ("accuracy on permuted labels, mean", ""),
    "selectivity": ("accuracy minus accuracy on permuted labels", ""),
    "weight": ("weight of the probe fitted to all rows", "log-odds / activation"),
    "bias": ("intercept of the probe fitted to all rows", "log-odds"),
    "scale": ("standard deviation of the activations along the weight", "activation"),
    "converged": ("all fits converged", ""),
}


def sweep(
    acts: Activations,
    labels: Any,
    *,
    kinds: str | Iterable[str] = ("logistic", "mass_mean"),
    controls: bool = True,
    groups: Any = None,
    sites: str | Iterable[str] | None = None,
    positive: Any = None,
    folds: int = 5,
    penalty: float = 1.0,
    seed: int = 0,
    n_bootstrap: int = 1000,
    n_control: int = 5,
    progress: Progress | None = None,
) -> ProbeSweep:
    """Fit and cross-validate probes at every site of some activations.

    Args:
        acts: activations, usually of one position per prompt (`positions=-1`).
        labels: booleans, numbers or texts of two classes. One per prompt: where prompts have several
            positions, each is its own cell (dimension `position`, absolute if the same in every prompt, else
            counted from 0). One per row: all rows make one cell; those of a prompt stay in one fold.
        kinds: `logistic`, `mass_mean`, `mass_mean_whitened` (see `probes.estimators`; all but the plain
            mass-mean probe standardise).
        controls: also fit permuted labels. Without them a score says little.
        groups: one per prompt or per row; a group (a country) is never in both training and test rows.
        sites: names or globs; by default all of `acts`. Of one width; `hook_z` and its like are flattened.
        positive: the positive class; by default the one that sorts last (`True`, 1, "true", "positive").
        folds: of the cross-validation, stratified by label.
        penalty: scikit-learn's `C` of the logistic probe, the *inverse* strength of its L2 penalty.
        seed: for folds, permutations and bootstrap; the same for every cell, so that cells compare.
        n_bootstrap: draws for the interval of the AUC.
        n_control: permutations for the control. `control_auc_high` is the highest of so many.
        progress: stage "probe", one item per cell.

    Returns:
        A `ProbeSweep` (`Result` of kind `probe_sweep`) with dims (layer, probe) or (layer, position, probe);
        `layer` is `site` where the sites are not one per block. Variables: those in `MEANING`; `weight`
        [..., d_model] is over raw activations. A site that is constant is in `attrs["constant_sites"]`.

    Raises:
        DataError, SiteError: labels or groups that do not match, not two classes, too few rows for the folds,
            NaN, an unknown kind, sites of different widths, no such site in `acts`.

    Example:
        >>> statements = wb.datasets.load("capitals").filter(label=["true", "false"], negated=False)
        >>> acts = wb.collect(model, statements.texts)
        >>> sweep = probes.sweep(acts, statements.labels, groups=statements.groups)
        >>> sweep.summary["best"]["layer"], sweep.direction(layer=14)
    """
    progress = progress or Silent()
    started = time.perf_counter()
    if not (penalty > 0 and n_bootstrap >= 1 and n_control >= 1):
        given = f"{penalty}, {n_bootstrap} and {n_control}"
        raise DataError(f"penalty must be above 0, n_bootstrap and n_control at least 1, but are {given}.")
    probes = make_probes(kinds, penalty=penalty)
    rows = measure.arrange(acts, labels, groups, positive)
    names = _names(acts, sites)
    fold = measure.assign_folds(rows.positive, rows.groups, n=folds, seed=seed)
    n_permuted = n_control if controls else 0
    permuted, level = measure.permute_labels(rows.positive, fold, rows.groups, n=n_permuted, seed=seed + 1)
    targets = np.concatenate([rows.positive[None], permuted])
    bootstrap = measure.Bootstrap(rows.groups, len(rows.positive), n=n_bootstrap, seed=seed + 2)

    progress.stage("probe", len(names) * len(rows.index) * len(probes))
    cells: list[dict[str, Any]] = []
    constant: list[str] = []
    for name in names:
        for index in rows.index:
            x, is_constant = as_matrix(acts.rows(name), index, name)
            constant += [name] if is_constant and name not in constant else []
            for out, found in cross_fit(x, targets, fold, probes, lambda: progress.advance(0)).values():
                scored = measure.score_cell(out, targets, fold, bootstrap)
                cells.append({**scored, **_final(x, found), "scores": out[0]})
                progress.advance()

    share = float(rows.positive.mean())
    settings = {
        "n": len(rows.positive),
        "n_positive": int(rows.positive.sum()),
        "positive": str(rows.classes[1]),
        "negative": str(rows.classes[0]),
        "majority_accuracy": max(share, 1 - share),
        "folds": folds,
        "grouped": rows.groups is not None,
        "n_groups": len(rows.positive if rows.groups is None else np.unique(rows.groups)),
        "control": f"labels permuted over {level} within folds, {n_control} times" if controls else "none",
        "penalty": penalty,
        "n_bootstrap": n_bootstrap,
        "constant_sites": constant,
    }
    data = _dataset(cells, names, list(probes), rows, settings)
    summary = _summary(data, cells, rows.positive, fold)
    seconds = {**acts.provenance.seconds, "probe": round(time.perf_counter() - started, 4)}
    made = provenance(None, seed=seed, seconds=seconds, settings={"collect": acts.provenance.settings})
    made = replace(made, model=acts.provenance.model, inputs=acts.provenance.inputs)
    return ProbeSweep("probe_sweep", data, made, summary)


def _names(acts: Activations, sites: str | Iterable[str] | None) -> list[str]:
    known = acts.sites
    blocks = [layer for layer, _ in map(_block_of, known) if layer is not None]
    names = known
    if sites is not None:
        names = expand(sites, known, n_layers=max(blocks, default=-1) + 1, model_name="This collection")
    widths = {name: acts.rows(name).shape[1:].numel() for name in names}
    if len(set(widths.values())) > 1:
        some = ", ".join(f"{name} {width}" for name, width in list(widths.items())[:4])
        raise DataError(f"One sweep needs sites of one width, these differ ({some}): sweep them one by one.")
    if any(name.endswith("hook_pattern") for name in names):
        raise DataError("hook_pattern holds attention over positions, not a vector: probe another site.")
    return names


def _block_of(site: str) -> tuple[int | None, str]:
    """Block number and part of a site name; no number outside the blocks."""
    pieces = site.split(".", 2)
    inside = len(pieces) == 3 and pieces[0] == "blocks"
    return (int(pieces[1]), pieces[2]) if inside else (None, site)


def _final(x: Float64[np.ndarray, "row d"], found: Weights) -> dict[str, Any]:
    norm = float(np.linalg.norm(found.coef))
    scale = float((x @ found.coef).std() / norm) if norm > 0 else 0.0
    weight = found.coef.astype(np.float32)
    return {"weight": weight, "bias": found.intercept, "scale": scale, "converged": found.converged}


def _dataset(
    cells: list[dict[str, Any]],
    names: list[str],
    kinds: list[str],
    rows: measure.Rows,
    settings: dict[str, Any],
) -> xr.Dataset:
    blocks = [_block_of(name) for name in names]
    per_block = len({part for _, part in blocks}) == 1 and None not in {layer for layer, _ in blocks}
    first = "layer" if per_block else "site"
    dims, shape = (first, "probe"), [len(names), len(kinds)]
    coords: dict[str, Any] = {"probe": kinds, "site": (first, np.array(names, dtype=str))}
    if per_block:
        coords["layer"] = [layer for layer, _ in blocks]
    if rows.positions is not None:
        dims, shape = (first, "position", "probe"), [len(names), len(rows.index), len(kinds)]
        coords["position"] = rows.positions
    variables = {}
    for key, (text, units) in MEANING.items():
        if key not in cells[0]:
            continue  # no controls were asked for
        values = np.stack([c[key] for c in cells])
        tail = ("d_model",) if values.ndim > 1 else ()
        variables[key] = array(
            (*dims, *tail), values.reshape(*shape, *values.shape[1:]), long_name=text, units=units
        )
    return xr.Dataset(variables, coords, attrs=settings)


def _summary(
    data: xr.Dataset, cells: list[dict[str, Any]], positive: np.ndarray, fold: np.ndarray
) -> dict[str, Any]:
    values = data["auc"].values
    place = np.unravel_index(int(np.argmax(values)), values.shape)
    chosen = data.isel(dict(zip(data["auc"].dims, place, strict=True)))
    best = {str(name): chosen[name].item() for name in (*data["auc"].dims, "site")}
    keys = ("auc", "auc_low", "auc_high", "control_auc", "control_auc_high", "accuracy", "selectivity")
    best |= {key: round(float(chosen[key]), 4) for key in keys if key in chosen}
    best["nested_auc"] = round(measure.nested_auc([c["scores"] for c in cells], positive, fold), 4)
    if "control_auc" in data:
        highest = np.max([c["control_aucs"] for c in cells], axis=0)
        best["control_best_auc"] = round(float(highest.mean()), 4)
    said = ("n", "n_positive", "positive", "majority_accuracy", "control")
    return {"best": best, "n_cells": len(cells), **{key: data.attrs[key] for key in said}}


class ProbeSweep(Result):
    """A `Result` of kind `probe_sweep` that also gives its probes as directions.

    Example:
        >>> sweep = probes.ProbeSweep.load("runs/…/result.zarr")
        >>> sweep.data["auc"].sel(probe="logistic").values
        >>> sweep.direction(layer=14, kind="mass_mean").save("truth.safetensors")
    """

    @classmethod
    def of(cls, result: Result) -> ProbeSweep:
        """The same result with these methods; `DataError` for a result of another kind."""
        if result.kind != "probe_sweep":
            raise DataError(f"A result of kind {result.kind!r} is no probe sweep: expected 'probe_sweep'.")
        return cls(result.kind, result.data, result.provenance, result.summary)

    @classmethod
    def load(cls, path: str | Path) -> ProbeSweep:
        """Read a sweep that `save` wrote; `RunError` and `DataError` as `Result.load` and `of`."""
        return cls.of(Result.load(path))

    def direction(
        self,
        layer: int | None = None,
        *,
        kind: str | None = None,
        site: str | None = None,
        position: int | None = None,
    ) -> Direction:
        """The weight of one probe, fitted to all rows, as a unit vector towards the positive class.

        Args:
            layer: block number; the best by default.
            kind: kind of probe; by default the first of those that were fitted.
            site: site name, instead of a layer.
            position: needed where the sweep has several.

        Its scale is the standard deviation of the rows along it. Raises `DataError` where there is no such
        cell, or no direction because the site is constant.
        """
        kind = kind if kind is not None else str(self.data["probe"].values[0])
        cell = _pick(self.data, "probe", kind)
        if site is None and layer is None:
            site = self.summary["best"]["site"]
        cell = _pick(cell, "layer", layer) if site is None else _pick(cell, "site", site)
        if "position" in self.data.dims:
            cell = _pick(cell, "position", position)
        where = cell["site"].item()
        if float(cell["scale"]) == 0:
            raise DataError(f"Nothing varies with the label at {where!r}: the probe there has no direction.")
        found = ("positive", "negative", "folds", "penalty", "n", "grouped", "control")
        settings = {"kind": kind, "position": position, "auc": round(float(cell["auc"]), 4)}
        return Direction.from_vector(
            torch.from_numpy(cell["weight"].values),
            site=where,
            scale=float(cell["scale"]),
            name=f"{self.data.attrs['positive']} (vs {self.data.attrs['negative']})",
            source=f"probe:{kind}",
            model_fingerprint=str(self.provenance.model.get("fingerprint", "")),
            settings=settings | {key: self.data.attrs[key] for key in found},
            provenance=self.provenance.to_dict(),
        )


def _pick(data: xr.Dataset, name: str, value: Any) -> xr.Dataset:
    """The data where a coordinate has a value; an unknown value is an error that lists the others."""
    known = data[name].values.tolist() if name in data.coords else []
    if value not in known:
        shown = ", ".join(str(k) for k in known[:40]) or "none: give a site"
        near = did_you_mean(str(value), [str(k) for k in known]) if isinstance(value, str) else ""
        raise DataError(f"This sweep has no {name} {value!r}.{near} It has {shown}.")
    return data.isel({data[name].dims[0]: known.index(value)})
