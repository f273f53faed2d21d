"""Figures of a probe sweep: against the penalty, and how far probabilities can be trusted.

`penalty`      AUC and log-loss out of fold against C at the best layer, a ring where the log-loss is least (the C that
               the probe fitted to all rows has); chance and the log-loss of the class shares dotted
`calibration`  expected calibration error of the answered class by layer: |stated − true share of right answers|
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, level
from dashboards.figures.probe_common import (
    along,
    at_best_position,
    bottom,
    label_names,
    line,
    picked,
    position_note,
    pretty,
    style,
    subtitle,
    x_of,
    x_type,
)
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result


def has_path(data: Any) -> bool:
    """Whether some kind of probe was tried at several penalties."""
    return "auc_by_penalty" in data and data.sizes.get("penalty_C", 1) > 1 and bool(kinds_with_path(data))


def kinds_with_path(data: Any) -> list[str]:
    """The kinds that have a score at every penalty."""
    values = data["auc_by_penalty"]
    return [str(k) for k in data["probe"].values if np.isfinite(values.sel(probe=k).values).all()]


def paths(result: Result) -> tuple[list[tuple[str, Any, str]], str]:
    """Of each line its name, its cell, and where that is; and a note on what is drawn."""
    data, labels = at_best_position(result.data), label_names(result)
    kinds = kinds_with_path(result.data)
    if not labels:
        chosen, note = [(pretty(kind), data.sel(probe=kind)) for kind in kinds], ""
    else:
        one = data.sel(probe=kinds)
        of = picked(_with(result, one))
        chosen, note = of.lines, of.note
    first, found = along(data), []
    for name, part in chosen:
        at = part.isel({first: int(np.nanargmax(part["auc"].values))})
        found.append((name, at, f"{first} {at[first].item()}"))
    others = [pretty(str(k)) for k in data["probe"].values if str(k) not in kinds]
    without = (
        f"Without a path (nothing to choose, or chosen by leave-one-out): {', '.join(others)}."
        if others
        else ""
    )
    return found, " ".join(part for part in (note, without) if part)


def _with(result: Result, data: Any) -> Result:
    from dataclasses import replace

    return replace(result, data=data)


def penalty_figure(result: Result) -> go.Figure:
    """AUC and log-loss against C."""
    lines, note = paths(result)
    c = f32(result.data["penalty_C"].values)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for i, (plain, at, where) in enumerate(lines):
        name = safe(f"{plain}, {where}")
        for row, key, said in ((1, "auc_by_penalty", "AUC"), (2, "log_loss_by_penalty", "log-loss, nats")):
            hover = f"{name}: {said} %{{y:.3f}}<extra></extra>"
            drawn = line(
                c, at[key].values, i, name if row == 1 else f"{name}, log-loss", hover, legendgroup=name
            )
            figure.add_trace(drawn.update(showlegend=row == 1), row=row, col=1)
        best = int(np.nanargmin(at["log_loss_by_penalty"].values))
        ring = go.Scatter(
            x=c[[best]], y=f32(at["log_loss_by_penalty"].values[[best]]), mode="markers", name=f"{name}, least",
            showlegend=False, legendgroup=name, hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 14, "color": style(i)[0], "line": {"width": 2}},
        )  # fmt: skip
        figure.add_trace(ring, row=2, col=1)
    shapes, notes = level(0.5, "chance")
    n_classes = result.data.sizes.get("class", 2)
    if (share := result.data.attrs.get("majority_accuracy")) is not None and n_classes == 2:
        constant = -(share * np.log(share) + (1 - share) * np.log(1 - share))
        more = level(float(constant), "class shares", axis="2")
        shapes, notes = shapes + more[0], notes + more[1]
    ring_note = "Ring: the least log-loss, whose C the probe fitted to all rows has. Small C: strong penalty."
    made = theme.layout(
        f"Probes against the penalty, each at its best {along(result.data)}",
        subtitle(result, position_note(result), ring_note, note),
        plot_height=400,
        legend_rows=-(-len(lines) // 3),
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    ticks = [float(v) for v in result.data["penalty_C"].values]
    shown = ticks if len(ticks) <= 10 else ticks[:: -(-len(ticks) // 10)]
    axis = {"type": "log", "tickvals": shown, "ticktext": [number(v) for v in shown]}
    figure.update_xaxes(**axis, unifiedhovertitle={"text": "C %{x}"})
    figure.update_xaxes(title={"text": "C (inverse strength of the L2 penalty)"}, row=2, col=1)
    figure.update_yaxes(title={"text": "AUC"}, row=1, col=1)
    return figure.update_yaxes(title={"text": "log-loss (nats)"}, row=2, col=1)


def calibration_figure(result: Result) -> go.Figure:
    """Expected calibration error by layer."""
    data, of = at_best_position(result.data), picked(result)
    x, first = x_of(data), along(data)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, (plain, at) in enumerate(of.lines):
        name = safe(plain)
        hover = f"{name}: %{{y:.3f}}<extra></extra>"
        figure.add_trace(line(x, at["calibration_error"].values, i, name, hover))
    shapes, notes = level(0.0, "calibrated")
    meaning = "|stated probability − share of right answers|, mean over ten bins of equally many rows."
    made = theme.layout(
        f"Calibration error by {first}, out of fold",
        subtitle(result, position_note(result), meaning, of.note),
        plot_height=260,
        legend_rows=-(-len(of.lines) // 4),
        bottom=bottom(data),
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(title={"text": first}, **x_type(data))
    highest = max(float(np.nanmax(at["calibration_error"].values)) for _, at in of.lines)
    return figure.update_yaxes(
        title={"text": "expected calibration error"}, range=[-0.01, max(0.1, 1.05 * highest)]
    )
