"""Figures of a probe sweep.

`auc`          AUC by layer with its interval per probe; the control dashed in the same hue, with an area up to
               the highest control; chance (0.5) dotted. Of several labels one panel each (`probe_labels`).
`accuracy`     accuracy with its interval and the majority baseline dotted, and below it the selectivity
               (accuracy − control).
`labels`       of several labels: the best cell of each, with its interval, beside what permuted labels reach.
`penalty`      where several C were tried: AUC and log-loss against C (`probe_penalty`).
`calibration`  expected calibration error by layer.
`positions`    AUC of every layer × position. Only for a sweep over several positions, where the other
               figures show the position of the best AUC and say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, probe_labels, probe_penalty, theme
from dashboards.figures.lines import HOVER, LABEL, band, level
from dashboards.figures.probe_common import (
    along,
    at_best_position,
    auc_range,
    best_note,
    bottom,
    classes_note,
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
from dashboards.figures.probe_finish import areas_note, finished
from dashboards.figures.probe_words import control_statement, describe
from dashboards.figures.theme import f32, safe

if TYPE_CHECKING:
    from workbench.results import Result

__all__ = ["along", "at_best_position", "control_statement", "describe", "figures", "pretty", "probe_names"]


def figures(result: Result) -> dict[str, go.Figure]:
    """`auc` and `accuracy`, and what else there is; see the module."""
    several = bool(label_names(result))
    if several:
        made = {"auc": probe_labels.auc_figure(result), "labels": probe_labels.labels_figure(result)}
        made["accuracy"] = probe_labels.accuracy_figure(result)
    else:
        made = {"auc": auc_figure(result), "accuracy": accuracy_figure(result)}
    if probe_penalty.has_path(result.data):
        made["penalty"] = probe_penalty.penalty_figure(result)
    if "calibration_error" in result.data:
        made["calibration"] = probe_penalty.calibration_figure(result)
    if result.data.sizes.get("position", 1) > 1:
        made["positions"] = positions_figure(result)
    return made


def auc_figure(result: Result) -> go.Figure:
    """AUC with its interval, and the control."""
    data = at_best_position(result.data)
    x, first = x_of(data), along(data)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, probe in enumerate(probe_names(result)):
        at = data.sel(probe=probe)
        name, colour = safe(pretty(probe)), style(i)[0]
        low, high = at["auc_low"].values, at["auc_high"].values
        figure.add_traces(band(x, low, high, colour, name))
        template = f"{name}: AUC %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>"
        interval = f32(np.stack([low, high], axis=-1))
        drawn = line(x, at["auc"].values, i, name, template, customdata=interval, legendgroup=name)
        figure.add_trace(drawn.update(meta={"probe": probe}))
        if "control_auc" in data:
            figure.add_traces(control_traces(x, at, colour, f"{name}, control"))
    has_control = "control_auc" in data
    shapes, notes = level(0.5, "chance")
    hidden = areas_note(len(probe_names(result)))
    legend = _legend_note(has_control, "control_auc_high" in data, hidden)
    made = theme.layout(
        f"{_what(result)} by {first}: AUC out of fold",
        subtitle(result, classes_note(result), position_note(result), legend, best_note(result)),
        plot_height=340,
        legend_rows=_rows(result),
        bottom=bottom(data),
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(title={"text": first}, **x_type(data))
    figure.update_yaxes(title={"text": "AUC"}, range=auc_range(data))
    return finished(figure, areas=not hidden)


def _what(result: Result) -> str:
    """`Linear probes`, and of what, where that has a name."""
    reads = result.data.attrs.get("reads") or {}
    linear = not {"mlp", "kmeans"} & set(probe_names(result))
    what = "Linear probes" if linear else "Probes"
    return f"{what} of {next(iter(reads))}" if len(reads) == 1 else what


def _legend_note(has_control: bool, has_highest: bool, hidden: str) -> str:
    if hidden:
        return f"Solid: AUC.{' Dashed: mean of the controls.' if has_control else ''} {hidden}"
    control = " Dashed: mean of the controls" + (", shaded up to the highest." if has_highest else ".")
    return "Solid: AUC with its 95 % interval." + (control if has_control else "")


def control_traces(x: np.ndarray, at: Any, colour: str, name: str, **more: Any) -> list[go.Scatter]:
    """The control's line, below an area up to the highest control. `more`: for both traces."""
    mean = at["control_auc"].values
    dashed = {"color": colour, "width": 2, "dash": "dash"}
    common = {"x": x, "mode": "lines", "legendgroup": name, **more}
    if "control_auc_high" not in at:
        hover = f"{name}: AUC %{{y:.3f}}<extra></extra>"
        return [go.Scatter(y=f32(mean), name=name, line=dashed, hovertemplate=hover, **common)]
    high = f32(at["control_auc_high"].values)
    hover = f"{name}: AUC %{{y:.3f}} (highest %{{customdata[0]:.3f}})<extra></extra>"
    area = {
        "fill": "tonexty",
        "fillcolor": theme.rgba(colour, 0.14),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [
        go.Scatter(
            y=f32(mean), name=name, line=dashed, customdata=high[:, None], hovertemplate=hover, **common
        ),
        go.Scatter(y=high, name=f"{name}, highest", **area, **(common | {"showlegend": False})),
    ]


def accuracy_figure(result: Result) -> go.Figure:
    """Accuracy with its interval and the majority baseline; selectivity below."""
    data = at_best_position(result.data)
    x, first = x_of(data), along(data)
    has_selectivity, has_ends = "selectivity" in data, "accuracy_low" in data
    rows = 2 if has_selectivity else 1
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for i, probe in enumerate(probe_names(result)):
        at, name = data.sel(probe=probe), safe(pretty(probe))
        template = f"{name}: accuracy %{{y:.3f}}<extra></extra>"
        more: dict[str, Any] = {}
        if has_ends:
            low, high = at["accuracy_low"].values, at["accuracy_high"].values
            figure.add_traces(
                band(x, low, high, style(i)[0], f"{name}, accuracy", group=name), rows=1, cols=1
            )
            template = (
                f"{name}: accuracy %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>"
            )
            more["customdata"] = f32(np.stack([low, high], axis=-1))
        drawn = line(x, at["accuracy"].values, i, f"{name}, accuracy", template, legendgroup=name, **more)
        figure.add_trace(drawn, row=1, col=1)
        if has_selectivity:
            template = f"{name}: selectivity %{{y:.3f}}<extra></extra>"
            drawn = line(x, at["selectivity"].values, i, f"{name}, selectivity", template, legendgroup=name)
            figure.add_trace(drawn.update(showlegend=False), row=2, col=1)
    shapes, notes = [], []
    majority = data.attrs.get("majority_accuracy")
    if majority is not None:
        shapes, notes = level(float(majority), "majority")
    meaning = ""
    if has_selectivity:
        zero, zero_note = level(0.0, "= control", axis="2")
        shapes, notes = shapes + zero, notes + zero_note
        figure.update_yaxes(title={"text": "selectivity"}, row=2, col=1)
        meaning = f"Selectivity: {data['selectivity'].attrs.get('long_name', 'score minus control')}."
    hidden = areas_note(len(probe_names(result)))
    shaded = (hidden or "Shaded: 95 % interval.") if has_ends else ""
    made = theme.layout(
        f"{_what(result)} by {first}: accuracy" + (" and selectivity" if has_selectivity else ""),
        subtitle(result, position_note(result), " ".join(part for part in (shaded, meaning) if part)),
        plot_height=400 if has_selectivity else 280,
        legend_rows=_rows(result, controls=False),
        bottom=bottom(data),
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(title={"text": first}, row=rows, col=1)
    figure.update_xaxes(**x_type(data))
    figure.update_yaxes(title={"text": "accuracy"}, row=1, col=1)
    return finished(figure, areas=not hidden)


def positions_figure(result: Result) -> go.Figure:
    """AUC of every layer × position, one panel per probe, on one colour range around chance."""
    first, names, of = along(result.data), probe_names(result), ""
    data = result.data
    if labels := label_names(result):
        best = data["auc"].max([dim for dim in data["auc"].dims if dim != "label"])
        shown = labels[int(np.nanargmax(best.values))]
        data, of = data.sel(label=shown), f"Label: {shown}, that of the best AUC among {len(labels)}."
    n = data.sizes[first]
    columns, cut = grid.last_columns(n * len(names), data.sizes["position"])
    data = data.isel(position=columns)
    positions = grid.layer_labels(data["position"].values)
    rows = grid.layer_labels(data[first].values) if first == "layer" else [str(s) for s in data[first].values]
    figure = make_subplots(
        rows=1,
        cols=len(names),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[safe(pretty(name)) for name in names],
    )
    for i, name in enumerate(names, start=1):
        at = data["auc"].sel(probe=name).transpose(first, "position").values
        hover = (
            f"<b>{first} %{{y}}, position %{{x}}</b><br>{safe(pretty(name))}: AUC %{{z:.3f}}<extra></extra>"
        )
        gaps: dict[str, Any] = grid.gaps(len(positions))
        panel = go.Heatmap(
            name=f"AUC, {safe(pretty(name))}",
            x=positions,
            y=rows,
            z=f32(at),
            coloraxis="coloraxis",
            hovertemplate=hover,
            **gaps,
        )
        figure.add_trace(panel, row=1, col=i)
    title = f"{_what(result)}: AUC out of fold by {first} and position"
    made = theme.layout(
        title, subtitle(result, of, cut), plot_height=grid.row_height(n, False), bottom=80, legend_rows=1
    )
    bar = {"title": {"text": "AUC (0.5 = chance)"}}
    scale = {"colorscale": theme.DIVERGING, "cmin": 0, "cmax": 1, "cmid": 0.5, "colorbar": bar}
    figure.update_layout({**made, "showlegend": False, "coloraxis": scale})
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    x, y = grid.axes("position", positions, rows)
    figure.update_xaxes(x)
    figure.update_yaxes({**y, "title": None, "ticks": ""})
    figure.update_yaxes(title={"text": first}, col=1)
    return figure


def _rows(result: Result, controls: bool = True) -> int:
    """Legend rows to leave room for: four entries a row."""
    entries = len(probe_names(result)) * (2 if controls and "control_auc" in result.data else 1)
    return -(-entries // 4)
