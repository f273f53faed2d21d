"""Points with intervals over a few named categories: shares, accuracies, rates beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.bars import error_bars
from dashboards.figures.theme import f32, number, safe


@dataclass(frozen=True)
class Series:
    """One value for each category.

    Attributes:
        name: plain text.
        categories: labels, escaped.
        values, low, high: [category]; NaN where there is none.
        colour: number of its colour and symbol.
        said: [category] a line more for the hover, escaped.
        form: d3 format.
        interval: what its ends are.
    """

    name: str
    categories: Sequence[str]
    values: Any
    low: Any = None
    high: Any = None
    colour: int = 0
    said: Sequence[str] | None = None
    form: str = ".3f"
    interval: str = "95 % interval"


def add_points(figure: go.Figure, one: Series, **more: Any) -> None:
    """Draw a series; several of one figure stand side by side. `more`: for the trace."""
    values = f32(one.values)
    name, interval, data = safe(one.name), "", None
    colour = theme.SERIES[one.colour % len(theme.SERIES)]
    says = "" if one.said is None else "<br>%{hovertext}"
    points = go.Scatter(
        x=list(one.categories),
        y=values,
        name=name,
        mode="markers",
        marker={"color": colour, "symbol": theme.SYMBOLS[one.colour % len(theme.SYMBOLS)], "size": 11},
        hovertext=None if one.said is None else list(one.said),
        cliponaxis=False,
        **more,
    )
    if one.low is not None and one.high is not None and np.isfinite(f32(one.low)).any():
        low, high = f32(one.low), f32(one.high)
        points.update(error_y={**error_bars(values, low, high), "color": colour, "thickness": 2, "width": 6})
        data = f32(np.stack([low, high], axis=-1))
        interval = f", {one.interval} %{{customdata[0]:{one.form}}} to %{{customdata[1]:{one.form}}}"
    hover = f"<b>%{{x}}</b><br>{name} %{{y:{one.form}}}{interval}{says}<extra></extra>"
    figure.add_trace(points.update(customdata=data, hovertemplate=hover))
    figure.update_layout(scattermode="group", scattergap=0.5)


def share_axis(figure: go.Figure, title: str) -> go.Figure:
    """A y axis from 0 to 1."""
    return figure.update_yaxes(title={"text": title}, range=[-0.02, 1.02])


def say(value: float, low: float = np.nan, high: float = np.nan) -> str:
    """`0.8 (95 % interval 0.7 to 0.9)`."""
    interval = f" (95 % interval {number(low)} to {number(high)})" if np.isfinite([low, high]).all() else ""
    return number(value) + interval
