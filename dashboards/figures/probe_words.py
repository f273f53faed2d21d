"""The figures of a probe sweep in words: for screen readers, captions and logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dashboards.figures.probe_common import (
    along,
    at_best_position,
    best_kind,
    label_names,
    picked,
    pretty,
    probe_names,
)
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result

SAID = 6
"""Labels told one by one; the tables have all."""


def describe(result: Result) -> dict[str, str]:
    """Text summary of each figure, under the names of `probe.figures(result)`."""
    data, several = at_best_position(result.data), bool(label_names(result))
    described = _of_labels(result, data) if several else _of_one(result, data)
    if (penalty := _penalty(result)) is not None:
        described["penalty"] = penalty
    if "calibration_error" in data:
        parts = []
        for name, at in picked(result).lines:
            error = at["calibration_error"].values
            parts.append(
                f"{name} from {number(float(np.nanmin(error)))} to {number(float(np.nanmax(error)))}"
            )
        described["calibration"] = (
            f"Lines of the expected calibration error over {_span(data)}: {'; '.join(parts)}."
        )
    if result.data.sizes.get("position", 1) > 1:
        auc = result.data["auc"].values
        described["positions"] = (
            f"Heatmaps of the AUC of {', '.join(map(pretty, probe_names(result)))} over {data.sizes[along(data)]} "
            f"{along(data)}s and {result.data.sizes['position']} positions, from {number(float(np.nanmin(auc)))} to "
            f"{number(float(np.nanmax(auc)))}."
        )
    return described


def control_statement(result: Result) -> str:
    """What the sweep was compared with, and what came out."""
    data, labels = at_best_position(result.data), label_names(result)
    control = f"Control: {data.attrs.get('control', 'not run')}."
    if not labels:
        return " ".join([control, *(_against_control(data, name) for name in probe_names(result))])
    kind = best_kind(result)
    shown = labels[:SAID]
    parts = [f"{name}: {_against_control(data.sel(label=name), kind)}" for name in shown]
    more = f" The first {len(shown)} of {len(labels)} labels." if len(shown) < len(labels) else ""
    return " ".join([control, *parts]) + more


def _span(data: Any) -> str:
    first = along(data)
    return f"{data.sizes[first]} {first}s, {data[first].values[0]} to {data[first].values[-1]}"


def _where(result: Result, data: Any) -> str:
    several = result.data.sizes.get("position", 1) > 1
    return f" at position {int(data['position'])}, that of the best AUC" if several else ""


def _of_one(result: Result, data: Any) -> dict[str, str]:
    first, names = along(data), probe_names(result)
    where = _where(result, data)
    parts = " ".join(_against_control(data, name) for name in names)
    majority = data.attrs.get("majority_accuracy")
    best = []
    for name in names:
        accuracy = data["accuracy"].sel(probe=name).values
        at = int(np.nanargmax(accuracy))
        best.append(f"{pretty(name)} {number(float(accuracy[at]))} at {first} {data[first].values[at]}")
    against = f" The majority class gives {number(float(majority))}." if majority is not None else ""
    n = data.attrs.get("n", "an unknown number of")
    return {
        "auc": f"Lines of the AUC over {_span(data)}{where}; {n} examples; chance is 0.5. {parts}",
        "accuracy": f"Lines of the accuracy over {_span(data)}{where}. Best: {', '.join(best)}.{against}",
    }


def _of_labels(result: Result, data: Any) -> dict[str, str]:
    labels, kind, n = label_names(result), best_kind(result), data.attrs.get("n", "an unknown number of")
    shown = labels[:SAID]
    more = f" The first {len(shown)} of {len(labels)} labels." if len(shown) < len(labels) else ""
    auc = " ".join(f"{name}: {_against_control(data.sel(label=name), kind)}" for name in shown)
    first, accuracies = along(data), []
    for name in shown:
        at = data.sel(label=name, probe=kind)
        best = int(np.nanargmax(at["accuracy"].values))
        text = f"{name} {number(float(at['accuracy'].values[best]))} at {first} {data[first].values[best]}"
        if "majority_accuracy" in at.coords:
            text += f" (majority {number(float(at['majority_accuracy']))})"
        accuracies.append(text)
    by_label = result.summary.get("best_by_label") or {}
    bests = []
    for name in [name for name in labels if name in by_label][:SAID]:
        one = by_label[name]
        text = f"{name} {number(one['auc'])} (95 % interval {number(one['auc_low'])} to {number(one['auc_high'])})"
        if "control_best_auc" in one:
            text += f", permuted labels {number(one['control_best_auc'])}"
        bests.append(text)
    where = _where(result, data)
    return {
        "auc": f"Panels of the AUC over {_span(data)}{where}, one of {len(labels)} labels each; {n} examples; "
        f"chance is 0.5. {auc}{more}",
        "labels": f"The best AUC of each of {len(labels)} labels: {'; '.join(bests)}.{more}",
        "accuracy": f"Panels of the accuracy over {_span(data)}{where}, {pretty(kind)}: {'; '.join(accuracies)}.{more}",
    }


def _against_control(data: Any, name: str) -> str:
    """Best AUC of one probe with interval and control, at one position."""
    at, first = data.sel(probe=name), along(data)
    best = int(np.nanargmax(at["auc"].values))
    low, high = (number(float(at[n].values[best])) for n in ("auc_low", "auc_high"))
    text = (
        f"{pretty(name)}: best AUC {number(float(at['auc'].values[best]))} (95 % interval {low} to "
        f"{high}) at {first} {data[first].values[best]}"
    )
    if "control_auc" in at:
        text += f", control there {number(float(at['control_auc'].values[best]))}"
    if "control_auc_high" in at:
        text += f" (highest {number(float(at['control_auc_high'].values[best]))})"
    return text + "."


def _penalty(result: Result) -> str | None:
    from dashboards.figures.probe_penalty import has_path, paths

    if not has_path(result.data):
        return None
    c, parts = result.data["penalty_C"].values, []
    for name, at, where in paths(result)[0]:
        auc, loss = at["auc_by_penalty"].values, at["log_loss_by_penalty"].values
        best = int(np.nanargmin(loss))
        parts.append(
            f"{name} at {where}: AUC {number(float(auc.min()))} to {number(float(auc.max()))}, least log-loss "
            f"{number(float(loss[best]))} nats at C {number(float(c[best]))}"
        )
    return (
        f"Lines of AUC and log-loss over {len(c)} penalties C, {number(c.min())} to {number(c.max())}: "
        + (f"{'; '.join(parts)}.")
    )
