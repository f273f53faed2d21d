"""Figures of a sweep of several labels.

`auc`, `accuracy`  one panel per label with a line per probe, its interval, and the control dashed; chance or majority
                   dotted. At most `PANELS` panels ("n of N").
`labels`           the best cell of every label: AUC with its interval, what it is when the cell is chosen without the
                   fold that is scored (×), and the best cell of permuted labels (◇).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, theme
from dashboards.figures.bars import error_bars
from dashboards.figures.lines import HOVER, band
from dashboards.figures.probe_common import (
    along,
    at_best_position,
    auc_range,
    best_labels,
    bottom,
    label_names,
    line,
    position_note,
    pretty,
    probe_names,
    style,
    subtitle,
    x_of,
    x_type,
)
from dashboards.figures.probe_finish import finished
from dashboards.figures.theme import f32, safe

if TYPE_CHECKING:
    from workbench.results import Result

PANELS = 9
ROWS = 40
"""Labels in `labels` at most."""


def auc_figure(result: Result) -> go.Figure:
    """AUC by layer, one panel a label."""
    from dashboards.figures.probe import control_traces

    data = at_best_position(result.data)
    has_control = "control_auc" in data

    def draw(at: Any, x: np.ndarray, i: int, name: str, first: bool) -> list[go.Scatter]:
        colour = style(i)[0]
        found = _with_ends(x, at, "auc", "AUC", i, name, first)
        if has_control:
            found += control_traces(x, at, colour, f"{name}, control", showlegend=first)
        return found

    control = " Dashed: mean of permuted labels, shaded up to the highest." if has_control else ""
    figure = _panels(result, draw, "AUC out of fold", f"Solid: 95 % interval shaded.{control} Dotted: chance.",
                     levels=[0.5] * len(label_names(result)), entries=2 if has_control else 1)  # fmt: skip
    return figure.update_yaxes(range=auc_range(data))


def accuracy_figure(result: Result) -> go.Figure:
    """Accuracy by layer, one panel a label, each with its majority."""
    data = at_best_position(result.data)
    has_control = "control_accuracy" in data

    def draw(at: Any, x: np.ndarray, i: int, name: str, first: bool) -> list[go.Scatter]:
        found = _with_ends(x, at, "accuracy", "accuracy", i, name, first)
        if has_control:
            dashed = go.Scatter(
                x=x, y=f32(at["control_accuracy"].values), name=f"{name}, control", mode="lines", showlegend=first,
                line={"color": style(i)[0], "width": 2, "dash": "dash"}, legendgroup=f"{name}, control",
                hovertemplate=f"{name}, control: accuracy %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
            found.append(dashed)
        return found

    majority = data["majority_accuracy"].values.tolist() if "majority_accuracy" in data.coords else []
    dotted = " Dotted: the majority class." if majority else ""
    control = " Dashed: permuted labels." if has_control else ""
    return _panels(result, draw, "accuracy out of fold", f"Solid: 95 % interval shaded.{control}{dotted}",
                   levels=majority, entries=2 if has_control else 1)  # fmt: skip


def _with_ends(
    x: np.ndarray, at: Any, key: str, said: str, i: int, name: str, first: bool
) -> list[go.Scatter]:
    """A line and, where it has one, its interval."""
    found: list[go.Scatter] = []
    template, more = f"{name}: {said} %{{y:.3f}}<extra></extra>", {}
    if f"{key}_low" in at:
        low, high = at[f"{key}_low"].values, at[f"{key}_high"].values
        found = band(x, low, high, style(i)[0], name)
        template = (
            f"{name}: {said} %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>"
        )
        more = {"customdata": f32(np.stack([low, high], axis=-1))}
    return [*found, line(x, at[key].values, i, name, template, legendgroup=name, showlegend=first, **more)]


def _panels(
    result: Result,
    draw: Callable[[Any, np.ndarray, int, str, bool], list[go.Scatter]],
    what: str,
    legend: str,
    *,
    levels: list[float],
    entries: int,
) -> go.Figure:
    """One panel for each label that is shown, with common axes."""
    data = at_best_position(result.data)
    every, names = label_names(result), best_labels(result, PANELS)
    x, first, probes = x_of(data), along(data), probe_names(result)
    columns = min(len(names), 2 if len(names) <= 4 else 3)
    rows = -(-len(names) // columns)
    height = 190 if rows > 1 else 260
    figure = make_subplots(
        rows=rows, cols=columns, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03,
        vertical_spacing=min(0.16, 34 / (height * rows)), subplot_titles=[safe(grid.shorten(n, 34)) for n in names],
    )  # fmt: skip
    for place, label in enumerate(names):
        row, column = place // columns + 1, place % columns + 1
        for i, probe in enumerate(probes):
            at = data.sel(label=label, probe=probe)
            for trace in draw(at, x, i, safe(pretty(probe)), place == 0):
                meta = {"label": label, "probe": probe}
                figure.add_trace(trace.update(meta=meta), row=row, col=column)
        if levels:
            axis = "" if place == 0 else str(place + 1)
            across = {"xref": f"x{axis} domain", "yref": f"y{axis}", "x0": 0, "x1": 1}
            y = float(levels[every.index(label)])
            figure.add_shape(type="line", y0=y, y1=y, line={"dash": "dot", "width": 1.5}, **across)
    some = ""
    if len(names) < len(every):
        some = f"Panels: {len(names)} of {len(every)} labels, those of the highest AUC; the result holds all."
    made = theme.layout(
        f"Probes of {len(every)} labels by {first}: {what}",
        subtitle(result, position_note(result), legend, some),
        plot_height=height * rows,
        legend_rows=-(-len(probes) * entries // 4) + 1,
        bottom=bottom(data),
    )
    # Annotations of subplots stand just above their panels, where the legend would be.
    made["legend"] = {**made["legend"], "y": 1, "yshift": 0, "yanchor": "bottom"} | {
        "y": 1 + 26 / (height * rows)
    }
    made["legend"].pop("yshift")
    figure.update_layout(made, **HOVER)
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    figure.update_xaxes(**x_type(data))
    figure.update_xaxes(title={"text": first}, row=rows)
    if rows > 1 and len(names) % columns:  # a panel above an empty place has its own axis
        for place in range(len(names) - columns, (rows - 1) * columns):
            figure.update_xaxes(
                showticklabels=True, title={"text": first}, row=place // columns + 1, col=place % columns + 1
            )
    figure.update_yaxes(title={"text": what.split(" out")[0]}, col=1)
    return finished(figure)


def labels_figure(result: Result) -> go.Figure:
    """The best cell of every label, and what it is worth."""
    best: dict[str, dict[str, Any]] = result.summary.get("best_by_label") or {}
    every = [name for name in label_names(result) if name in best]
    names = sorted(every, key=lambda name: best[name]["auc"])[-ROWS:]
    first = along(result.data)
    said = [f"{pretty(str(best[n]['probe']))}, {first} {best[n].get(first, best[n]['site'])}" for n in names]
    rows = grid.unique([safe(grid.shorten(name, 34)) for name in names])
    pick = lambda key: f32([best[name].get(key, np.nan) for name in names])  # noqa: E731
    auc, low, high = pick("auc"), pick("auc_low"), pick("auc_high")
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    marks = [
        ("best cell", auc, 0, {"symbol": "circle", "size": 10}),
        ("chosen without the scored fold", pick("nested_auc"), 2, {"symbol": "x", "size": 9}),
        ("best cell of permuted labels", pick("control_best_auc"), 1, {"symbol": "diamond-open", "size": 10}),
    ]
    for name, values, i, marker in marks:
        if np.isfinite(values).any():
            trace = go.Scatter(
                x=values, y=rows, name=name, mode="markers", marker={**marker, "color": theme.SERIES[i]},
                hovertext=[safe(s) for s in said],
                hovertemplate=f"<b>%{{y}}</b> (%{{hovertext}})<br>{name}: AUC %{{x:.3f}}<extra></extra>",
            )  # fmt: skip
            if name == "best cell":
                trace.update(error_x={**error_bars(auc, low, high), "color": theme.SERIES[0], "thickness": 2})
            figure.add_trace(trace)
    figure.add_shape(
        type="line", x0=0.5, x1=0.5, y0=0, y1=1, yref="paper", line={"dash": "dot", "width": 1.5}
    )
    some = (
        f"{len(names)} of {len(label_names(result))} labels. "
        if len(names) < len(label_names(result))
        else ""
    )
    meaning = (
        f"{some}Whiskers: 95 % interval of that cell, which does not know that it was chosen. Dotted: chance."
    )
    made = theme.layout(
        "The best probe of each label",
        subtitle(result, meaning),
        plot_height=max(130, 30 * len(names)),
        legend_rows=1,
    )
    figure.update_layout(made)
    figure.update_xaxes(title={"text": "AUC out of fold"}, range=auc_range(result.data))
    return figure.update_yaxes(type="category", ticks="", range=[-0.6, len(names) - 0.4])
