"""Figures of a probe sweep.

`auc`        AUC by layer with its interval per probe; the control dashed in the same hue, with an area up to
             the highest control; chance (0.5) dotted.
`accuracy`   accuracy with the majority baseline dotted, and below it the selectivity (accuracy − control).
`positions`  AUC of every layer × position. Only for a sweep over several positions, where the other two
             figures show the position of the best AUC and say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, theme
from dashboards.figures.lines import HOVER, LABEL, band, hover_title, level
from dashboards.figures.theme import f32, safe

if TYPE_CHECKING:
    from workbench.results import Result


def figures(result: Result) -> dict[str, go.Figure]:
    """`auc` and `accuracy`, and `positions` where there are several."""
    made = {"auc": auc_figure(result), "accuracy": accuracy_figure(result)}
    if result.data.sizes.get("position", 1) > 1:
        made["positions"] = positions_figure(result)
    return made


def probe_names(result: Result) -> list[str]:
    """The probes of the sweep, in order."""
    return [str(name) for name in result.data["probe"].values]


def pretty(name: str) -> str:
    """`mass_mean` -> `mass mean`."""
    return name.replace("_", " ")


def along(data) -> str:
    """The dimension of the lines: `layer`, or `site` where sites are not one per block."""
    return "layer" if "layer" in data.dims else "site"


def at_best_position(data):
    """The data at one position: that of the highest AUC, where there are several."""
    if "position" not in data.dims:
        return data
    best = data["auc"].max([along(data), "probe"])
    return data.isel(position=int(np.nanargmax(best.values)))


def _x(data) -> np.ndarray:
    values = data[along(data)].values
    return f32(values) if along(data) == "layer" else values.astype(str).astype(object)


def _position_note(result: Result) -> str:
    data = result.data
    if "position" not in data.dims:
        return ""
    shown, n = int(at_best_position(data)["position"]), data.sizes["position"]
    return f"Shown: position {shown}, that of the best AUC among {n}; the heatmap has all." if n > 1 else ""


def _style(i: int) -> tuple[str, str]:
    return theme.SERIES[i % len(theme.SERIES)], theme.SYMBOLS[i % len(theme.SYMBOLS)]


def _subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    label = repr(attrs["positive"]) if attrs.get("positive") else "positive"
    examples = f"{attrs.get('n', '?')} examples"
    if attrs.get("n_positive") is not None:
        examples += f" ({attrs['n_positive']} {label})"
    folds = f"{attrs['folds']} folds" if attrs.get("folds") else "held out"
    grouped = attrs.get("grouped")
    if grouped:
        groups = f"{attrs['n_groups']} groups" if attrs.get("n_groups") else "groups"
        folds += f" grouped by {grouped}" if isinstance(grouped, str) else f" that keep {groups} together"
    return theme.subtitle(
        model=theme.model_name(result),
        n=examples,
        units=folds,
        control=str(attrs.get("control", "not run")),
        more=[note for note in more if note],
    )


def _line(x: np.ndarray, y: Any, i: int, name: str, template: str, **more: Any) -> go.Scatter:
    colour, symbol = _style(i)
    return go.Scatter(
        x=x,
        y=f32(y),
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "symbol": symbol, "size": 6},
        hovertemplate=template,
        **more,
    )


def auc_figure(result: Result) -> go.Figure:
    """AUC with its interval, and the control."""
    data = at_best_position(result.data)
    x, first = _x(data), along(data)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, probe in enumerate(probe_names(result)):
        at = data.sel(probe=probe)
        name, colour = safe(pretty(probe)), _style(i)[0]
        low, high = at["auc_low"].values, at["auc_high"].values
        figure.add_traces(band(x, low, high, colour, name))
        template = f"{name}: AUC %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>"
        interval = f32(np.stack([low, high], axis=-1))
        figure.add_trace(_line(x, at["auc"].values, i, name, template, customdata=interval, legendgroup=name))
        if "control_auc" in data:
            figure.add_traces(_control(x, at, colour, f"{name}, control"))
    has_control = "control_auc" in data
    shapes, notes = level(0.5, "chance")
    made = theme.layout(
        f"Linear probes by {first}: AUC out of fold",
        _subtitle(result, _position_note(result), _legend_note(has_control, "control_auc_high" in data)),
        plot_height=340,
        legend_rows=_rows(result),
        bottom=_bottom(data),
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(title={"text": first}, **_x_type(data))
    return figure.update_yaxes(title={"text": "AUC"}, range=_auc_range(data))


def _legend_note(has_control: bool, has_highest: bool) -> str:
    control = " Dashed: mean of the controls" + (", shaded up to the highest." if has_highest else ".")
    return "Solid: AUC with its 95 % interval." + (control if has_control else "")


def _control(x: np.ndarray, at, colour: str, name: str) -> list[go.Scatter]:
    """The control's line, below an area up to the highest control."""
    mean = at["control_auc"].values
    line = {"color": colour, "width": 2, "dash": "dash"}
    common = {"x": x, "mode": "lines", "legendgroup": name}
    if "control_auc_high" not in at:
        hover = f"{name}: AUC %{{y:.3f}}<extra></extra>"
        return [go.Scatter(y=f32(mean), name=name, line=line, hovertemplate=hover, **common)]
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
            y=f32(mean), name=name, line=line, customdata=high[:, None], hovertemplate=hover, **common
        ),
        go.Scatter(y=high, name=f"{name}, highest", showlegend=False, **area, **common),
    ]


def _auc_range(data) -> list[float]:
    """Down to 0.4, or lower where the data go lower; up to just above 1."""
    names = [name for name in ("auc_low", "auc", "control_auc") if name in data]
    lowest = min(float(np.nanmin(data[name].values)) for name in names)
    return [max(0.0, min(0.4, lowest - 0.03)), 1.02]


def _x_type(data) -> dict[str, Any]:
    if along(data) == "layer":
        return hover_title("layer")
    return {"type": "category", "tickangle": -45, **hover_title("site", "")}


def _bottom(data) -> int:
    return 60 if along(data) == "layer" else 150


def accuracy_figure(result: Result) -> go.Figure:
    """Accuracy with the majority baseline; selectivity below."""
    data = at_best_position(result.data)
    x, first = _x(data), along(data)
    has_selectivity = "selectivity" in data
    rows = 2 if has_selectivity else 1
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for i, probe in enumerate(probe_names(result)):
        at, name = data.sel(probe=probe), safe(pretty(probe))
        template = f"{name}: accuracy %{{y:.3f}}<extra></extra>"
        line = _line(x, at["accuracy"].values, i, f"{name}, accuracy", template, legendgroup=name)
        figure.add_trace(line, row=1, col=1)
        if has_selectivity:
            template = f"{name}: selectivity %{{y:.3f}}<extra></extra>"
            line = _line(x, at["selectivity"].values, i, f"{name}, selectivity", template, legendgroup=name)
            figure.add_trace(line.update(showlegend=False), row=2, col=1)
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
    made = theme.layout(
        f"Linear probes by {first}: accuracy" + (" and selectivity" if has_selectivity else ""),
        _subtitle(result, _position_note(result), meaning),
        plot_height=400 if has_selectivity else 280,
        legend_rows=_rows(result, controls=False),
        bottom=_bottom(data),
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(title={"text": first}, row=rows, col=1)
    figure.update_xaxes(**_x_type(data))
    return figure.update_yaxes(title={"text": "accuracy"}, row=1, col=1)


def positions_figure(result: Result) -> go.Figure:
    """AUC of every layer × position, one panel per probe, on one colour range around chance."""
    first, names = along(result.data), probe_names(result)
    n = result.data.sizes[first]
    columns, cut = grid.last_columns(n * len(names), result.data.sizes["position"])
    data = result.data.isel(position=columns)
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
    title = f"Linear probes: AUC out of fold by {first} and position"
    made = theme.layout(
        title, _subtitle(result, cut), plot_height=grid.row_height(n, False), bottom=80, legend_rows=1
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
