"""Parts of line figures: interval bands and labelled levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.theme import f32

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
