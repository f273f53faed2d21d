"""From the cells of a sweep to its labelled result: dims, coordinates, variables, and the best cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from probes import scores as measure
from probes.cells import Task
from probes.labels import Rows
from workbench.results import array

MEANING = {
    "auc": ("AUC, out of fold", ""),
    "auc_low": ("AUC, lower end of the 95 % interval", ""),
    "auc_high": ("AUC, upper end of the 95 % interval", ""),
    "accuracy": ("accuracy, out of fold", ""),
    "accuracy_low": ("accuracy, lower end of the 95 % interval", ""),
    "accuracy_high": ("accuracy, upper end of the 95 % interval", ""),
    "log_loss": ("log-loss, out of fold", "nats"),
    "calibration_error": ("expected calibration error, out of fold", ""),
    "control_auc": ("AUC on permuted labels, mean", ""),
    "control_auc_high": ("AUC on permuted labels, highest", ""),
    "control_accuracy": ("accuracy on permuted labels, mean", ""),
    "selectivity": ("accuracy minus accuracy on permuted labels", ""),
    "penalty": ("C (inverse strength of the L2 penalty) of the probe fitted to all rows", ""),
    "auc_by_penalty": ("AUC, out of fold, at each C", ""),
    "log_loss_by_penalty": ("log-loss, out of fold, at each C", "nats"),
    "gradient_norm": ("largest gradient norm of all fits (mean objective)", "nats"),
    "weight": ("weight of the probe fitted to all rows", "log-odds / activation"),
    "bias": ("intercept of the probe fitted to all rows", "log-odds"),
    "scale": ("standard deviation of the activations along the weight", "activation"),
    "converged": ("all fits converged", ""),
    "scores": ("out-of-fold score of every row", "log-odds"),
}


def classes(rows: Rows) -> dict[str, Any]:
    """What the labels are, for the attributes of the result."""
    one, names = rows.labels[0], [str(c) for c in rows.labels[0].classes]
    if len(rows.labels) > 1:
        return {"labels": [label.name for label in rows.labels]}
    if len(names) > 2:
        counts = np.bincount(one.code).tolist()
        return {
            "classes": names,
            "n_of_class": counts,
            "majority_accuracy": one.majority,
        }
    return {
        "n_positive": int(one.positive.sum()),
        "positive": names[1],
        "negative": names[0],
        "majority_accuracy": one.majority,
    }


def dataset(
    cells: list[dict[str, Any]],
    names: list[str],
    kinds: list[str],
    rows: Rows,
    task: Task,
    settings: dict[str, Any],
    *,
    keep_scores: bool,
) -> xr.Dataset:
    """The result of a sweep: `cells` in the order site, position, label, kind."""
    sizes, coords = axes(names, rows)
    sizes |= {"label": len(rows.labels), "probe": len(kinds)}
    coords["probe"] = kinds
    if len(rows.labels) == 1:
        del sizes["label"]
    else:
        coords["label"] = [label.name for label in rows.labels]
        for i, key in enumerate(("negative", "positive")):
            coords[key] = ("label", [str(label.classes[i]) for label in rows.labels])
        coords["majority_accuracy"] = ("label", [label.majority for label in rows.labels])
    if "classes" in settings:
        coords["class"] = settings["classes"]
    coords["penalty_C"] = settings["penalty"]
    if keep_scores:
        coords["fold"] = ("row", task.fold)
        coords["label_code"] = ("row", task.code[0]) if len(rows.labels) == 1 else (
            ("label", "row"), task.code[:: task.per_label])  # fmt: skip
    variables = {}
    for key, (text, units) in MEANING.items():
        if key not in cells[0] or (key == "scores" and not keep_scores):
            continue  # no controls or scores were asked for
        values = _stacked(cells, settings["penalty"], key)
        tail = _tail(key, values.ndim - 1)
        variables[key] = array(
            (*sizes, *tail), values.reshape(*sizes.values(), *values.shape[1:]), long_name=text, units=units
        )
    return xr.Dataset(variables, coords, attrs=settings)


def axes(names: list[str], rows: Rows) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes and coordinates that every probe over sites has: layer (or site) and, if several, position."""
    blocks = [_block_of(name) for name in names]
    per_block = len({part for _, part in blocks}) == 1 and None not in {layer for layer, _ in blocks}
    first = "layer" if per_block else "site"
    sizes = {first: len(names)}
    coords: dict[str, Any] = {"site": (first, np.array(names, dtype=str))}
    if per_block:
        coords["layer"] = [layer for layer, _ in blocks]
    if rows.positions is not None:
        sizes["position"] = len(rows.index)
        coords["position"] = rows.positions
    return sizes, coords


def _stacked(cells: list[dict[str, Any]], path: list[float], key: str) -> np.ndarray:
    values = [cell[key] for cell in cells]
    if key.endswith("_by_penalty"):
        values = [_on_path(v, float(c["penalty"]), path) for v, c in zip(values, cells, strict=True)]
    if key == "scores":
        values = [v[:, 0] if v.shape[1] == 1 else v for v in values]
    return np.stack(values)


def _on_path(values: np.ndarray, chosen: float, path: list[float]) -> np.ndarray:
    """[penalty] what a kind says at every C: one number stands at the C that was chosen, or, without a C, at none.

    With a path of one C it stands there in any case: nothing else was asked for.
    """
    if len(values) == len(path):
        return values
    return np.where(np.isclose(path, chosen, rtol=1e-9, atol=0), values[0], np.nan)


def _tail(key: str, n: int) -> tuple[str, ...]:
    if key.endswith("_by_penalty"):
        return ("penalty_C",)
    if key == "scores":
        return ("row", "class")[:n]
    return {"weight": ("class", "d_model")[-n:] if n else ()}.get(key, ("class",)[:n])


def _block_of(site: str) -> tuple[int | None, str]:
    """Block number and part of a site name; no number outside the blocks."""
    pieces = site.split(".", 2)
    inside = len(pieces) == 3 and pieces[0] == "blocks"
    return (int(pieces[1]), pieces[2]) if inside else (None, site)


def summary(
    data: xr.Dataset, cells: list[dict[str, Any]], rows: Rows, task: Task, n_kinds: int
) -> dict[str, Any]:
    """The best cell (of each label set), what the picking is worth, and the counts."""
    n_labels = len(rows.labels)
    best = []
    for number in range(n_labels):
        part = data.isel(label=number) if n_labels > 1 else data
        mine = [c for i, c in enumerate(cells) if i // n_kinds % n_labels == number]
        best.append(_best(part, mine, task.code[number * task.per_label], task.fold))
    said = ("n", "n_positive", "positive", "classes", "majority_accuracy", "control")
    found = {key: data.attrs[key] for key in said if key in data.attrs}
    if n_labels == 1:
        return {"best": best[0], "n_cells": len(cells), **found}
    by_label = dict(zip(data["label"].values.tolist(), best, strict=True))
    top = max(by_label, key=lambda name: by_label[name]["auc"])
    return {"best": by_label[top] | {"label": top}, "best_by_label": by_label, "n_cells": len(cells), **found}


def _best(
    data: xr.Dataset, cells: list[dict[str, Any]], code: np.ndarray, fold: np.ndarray
) -> dict[str, Any]:
    values = data["auc"].values
    place = np.unravel_index(int(np.argmax(values)), values.shape)
    chosen = data.isel(dict(zip(data["auc"].dims, place, strict=True)))
    best = {str(name): chosen[name].item() for name in (*data["auc"].dims, "site")}
    keys = ("auc", "auc_low", "auc_high", "control_auc", "control_auc_high", "accuracy", "selectivity")
    keys = (*keys, "calibration_error")
    best |= {key: round(float(chosen[key]), 4) for key in keys if key in chosen}
    if not np.isnan(chosen["penalty"]):
        best["penalty"] = float(chosen["penalty"])
    columns = [measure.one_against_rest(c["scores"], code) for c in cells]
    nested = [
        measure.nested_auc([scores[k] for scores, _ in columns], columns[0][1][k], fold)
        for k in range(len(columns[0][1]))
    ]
    best["nested_auc"] = round(float(np.mean(nested)), 4)
    if "control_auc" in data:
        highest = np.max([c["control_aucs"] for c in cells], axis=0)
        best["control_best_auc"] = round(float(highest.mean()), 4)
    return best
