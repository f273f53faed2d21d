"""Figures of a probe sweep over layers.

`auc`       held-out AUC by layer with its confidence band per probe; the control dashed in the same hue; chance
            (0.5) dotted.
`accuracy`  accuracy by layer with the majority baseline dotted, and below it the selectivity (score − control).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.lines import band, level
from dashboards.figures.theme import f32

if TYPE_CHECKING:
    from workbench.results import Result


def figures(result: Result) -> dict[str, go.Figure]:
    """`auc` and `accuracy`."""
    return {"auc": auc_figure(result), "accuracy": accuracy_figure(result)}


def probe_names(result: Result) -> list[str]:
    """The probes of the sweep, in order."""
    return [str(name) for name in result.data["probe"].values]


def pretty(name: str) -> str:
    """`mass_mean` -> `mass mean`."""
    return name.replace("_", " ")


def _style(i: int) -> tuple[str, str]:
    return theme.SERIES[i % len(theme.SERIES)], theme.SYMBOLS[i % len(theme.SYMBOLS)]


def _subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    n, positive = attrs.get("n"), attrs.get("n_positive")
    label = f" {attrs['positive']!r}" if attrs.get("positive") else " positive"
    examples = f"{n} examples" + (f" ({positive}{label})" if positive is not None else "")
    folds = f"{attrs['folds']} folds" if attrs.get("folds") else "held out"
    # `grouped` is a flag or the name of the group, whichever the sweep wrote.
    grouped = attrs.get("grouped")
    if grouped:
        folds += f" grouped by {grouped}" if isinstance(grouped, str) else ", groups kept together"
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
        legendgroup=name,
        **more,
    )


def auc_figure(result: Result) -> go.Figure:
    """AUC with its band, and the control."""
    data = result.data
    layers = f32(data["layer"].values)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, probe in enumerate(probe_names(result)):
        at = data.sel(probe=probe)
        name, colour = pretty(probe), _style(i)[0]
        low, high = at["auc_low"].values, at["auc_high"].values
        for trace in band(layers, low, high, colour, name, group=name):
            figure.add_trace(trace)
        template = f"{name}: AUC %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>"
        figure.add_trace(
            _line(layers, at["auc"].values, i, name, template, customdata=f32(np.stack([low, high], axis=-1)))
        )
        if "control_auc" in data:
            figure.add_trace(_control(layers, at, colour, name))
    shapes, notes = level(0.5, "chance")
    made = theme.layout(
        "Linear probes by layer: held-out AUC",
        _subtitle(result, "Shaded: 95 % interval. Dashed: control in the same colour."),
        plot_height=340,
        legend_rows=_rows(result),
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, hovermode="x unified")
    figure.update_xaxes(title={"text": "layer"}, hoverformat=".0f", unifiedhovertitle={"text": "layer %{x}"})
    figure.update_yaxes(title={"text": "AUC"}, range=_auc_range(data))
    return figure


def _control(layers: np.ndarray, at, colour: str, name: str) -> go.Scatter:
    has_high = "control_auc_high" in at
    high = f32(at["control_auc_high"].values)[:, None] if has_high else None
    upper = " (95 % of controls below %{customdata[0]:.3f})" if has_high else ""
    return go.Scatter(
        x=layers,
        y=f32(at["control_auc"].values),
        name=f"{name}, control",
        mode="lines",
        line={"color": colour, "width": 2, "dash": "dash"},
        customdata=high,
        hovertemplate=f"{name}, control: AUC %{{y:.3f}}{upper}<extra></extra>",
        legendgroup=name,
    )


def _auc_range(data) -> list[float]:
    """Down to 0.4, or lower where the data go lower; up to just above 1."""
    names = [name for name in ("auc_low", "auc", "control_auc") if name in data]
    lowest = min(float(np.nanmin(data[name].values)) for name in names)
    return [max(0.0, min(0.4, lowest - 0.03)), 1.02]


def accuracy_figure(result: Result) -> go.Figure:
    """Accuracy with the majority baseline; selectivity below."""
    data = result.data
    layers = f32(data["layer"].values)
    has_selectivity = "selectivity" in data
    rows = 2 if has_selectivity else 1
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for i, probe in enumerate(probe_names(result)):
        at, name = data.sel(probe=probe), pretty(probe)
        template = f"layer %{{x:.0f}}, {name}: accuracy %{{y:.3f}}<extra></extra>"
        figure.add_trace(_line(layers, at["accuracy"].values, i, name, template), row=1, col=1)
        if has_selectivity:
            template = f"layer %{{x:.0f}}, {name}: selectivity %{{y:.3f}}<extra></extra>"
            line = _line(
                layers, at["selectivity"].values, i, f"{name}, selectivity", template, showlegend=False
            )
            figure.add_trace(line.update(legendgroup=name), row=2, col=1)
    shapes, notes = [], []
    majority = data.attrs.get("majority_accuracy")
    if majority is not None:
        shapes, notes = level(float(majority), "majority class")
    if has_selectivity:
        more_shapes, more_notes = level(0.0, "no better than the control", axis="2")
        shapes, notes = shapes + more_shapes, notes + more_notes
        figure.update_yaxes(title={"text": "selectivity"}, row=2, col=1)
    made = theme.layout(
        "Linear probes by layer: accuracy and selectivity" if has_selectivity else "Linear probes: accuracy",
        _subtitle(result, "Selectivity: score minus the control's score." if has_selectivity else ""),
        plot_height=400 if has_selectivity else 280,
        legend_rows=_rows(result, controls=False),
    )
    figure.update_layout(made, shapes=shapes, annotations=notes)
    figure.update_xaxes(title={"text": "layer"}, row=rows, col=1)
    figure.update_yaxes(title={"text": "accuracy"}, row=1, col=1)
    return figure


def _rows(result: Result, controls: bool = True) -> int:
    """Legend rows to leave room for: four entries a row."""
    entries = len(probe_names(result)) * (2 if controls and "control_auc" in result.data else 1)
    return -(-entries // 4)
