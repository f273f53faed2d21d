"""Parts of line figures: curves with their intervals, and labelled levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.theme import f32, safe

HOVER: dict[str, Any] = {"hovermode": "x unified", "hoverdistance": -1}
"""Hover anywhere says all lines at the nearest x."""


def hover_title(name: str, form: str = ":.0f") -> dict[str, Any]:
    """Heading of the unified hover: `layer 14`."""
    return {"unifiedhovertitle": {"text": f"{name} %{{x{form}}}"}}


LABEL = 80
"""Right margin that holds the label of a level."""


def band(x: np.ndarray, low: Any, high: Any, colour: str, name: str, *, group: str = "") -> list[go.Scatter]:
    """Two traces that fill the area between `low` and `high`; none where there is no interval at all."""
    low, high = f32(low), f32(high)
    if not (np.isfinite(low) & np.isfinite(high)).any():
        return []
    common = {
        "x": x,
        "mode": "lines",
        "line": {"width": 0},
        "showlegend": False,
        "hoverinfo": "skip",
        "legendgroup": group or name,
    }
    return [
        go.Scatter(y=low, name=f"{name}, low", **common),
        go.Scatter(
            y=high, name=f"{name}, high", fill="tonexty", fillcolor=theme.rgba(colour, 0.25), **common
        ),
    ]


def level(y: float, label: str, *, axis: str = "") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A dotted line across a panel, and its label right of the panel (give the layout `right=LABEL`)."""
    across = {"xref": f"x{axis} domain", "yref": f"y{axis}"}
    shape = {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        **across,
        "line": {"dash": "dot", "width": 1.5},
    }
    note = {
        "x": 1,
        "y": y,
        **across,
        "text": label,
        "xanchor": "left",
        "xshift": 4,
        "font": {"size": theme.SIZE["tick"]},
        "showarrow": False,
    }
    return [shape], [note]


@dataclass(frozen=True)
class Curve:
    """A line over a numeric axis, with its interval where it has one.

    Attributes:
        x, y: [point].
        name: plain text.
        colour: number of its colour and symbol; a control shares those of what it is the control of.
        low, high: [point] ends of the interval.
        control: dashed, without symbols.
        said: [point] what its hover begins with, escaped (where that differs from point to point).
        form: d3 format of the numbers.
    """

    x: np.ndarray
    y: np.ndarray
    name: str
    colour: int = 0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    control: bool = False
    said: Sequence[str] | None = None
    form: str = ".3f"


def curve(one: Curve, **axes: str) -> list[go.Scatter]:
    """The traces of a curve: its band, and the line with everything in its hover. `axes`: `xaxis`, `yaxis`."""
    colour = theme.SERIES[one.colour % len(theme.SERIES)]
    name, x = safe(one.name), f32(one.x)
    found: list[go.Scatter] = []
    interval, data = "", None
    if one.low is not None and one.high is not None and np.isfinite(one.low).any():
        found = band(x, one.low, one.high, colour, name)
        data = f32(np.stack([one.low, one.high], axis=-1))
        interval = f" [%{{customdata[0]:{one.form}}}, %{{customdata[1]:{one.form}}}]"
    begins = "%{text}: " if one.said is not None else ""
    line = go.Scatter(
        x=x,
        y=f32(one.y),
        name=name,
        mode="lines" if one.control else "lines+markers",
        line={"color": colour, "width": 2, "dash": "dash" if one.control else "solid"},
        text=None if one.said is None else list(one.said),
        customdata=data,
        hovertemplate=f"{begins}{name} %{{y:{one.form}}}{interval}<extra></extra>",
        legendgroup=name,
        legendrank=1001 if one.control else 1000,
        cliponaxis=False,
    )
    if not one.control:
        symbol = theme.SYMBOLS[one.colour % len(theme.SYMBOLS)]
        line.update(marker={"color": colour, "symbol": symbol, "size": 6})
    return [trace.update(axes) for trace in (*found, line)]
