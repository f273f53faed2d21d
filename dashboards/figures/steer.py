"""Figures of a steering dose–response.

`score`  mean score by strength with its band: steered solid, random direction of the same norm dashed; the
         score without steering as a dotted level.
`kl`     KL(unsteered || steered) of the next-token distribution by strength: what steering costs. A figure of
         its own and not a second axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, band, hover_title, level
from dashboards.figures.theme import f32, safe

if TYPE_CHECKING:
    from workbench.results import Result

KL_RANGE = (0.1, 0.9)
"""Quantiles over prompts that the band of the KL figure spans."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`score`, and `kl` where it was measured."""
    made = {"score": score_figure(result)}
    if "kl" in result.data:
        made["kl"] = kl_figure(result)
    return made


def directions(result: Result) -> list[str]:
    """`steered` and its controls, in order."""
    return [str(name) for name in result.data["direction"].values]


def score_name(result: Result) -> str:
    """What is scored, with units: `log-probability difference (nats)`."""
    attrs = result.data["score"].attrs
    name, units = str(attrs.get("long_name", "score")), attrs.get("units")
    return f"{name} ({units})" if units and f"({units})" not in name else name


def baseline(result: Result) -> float | None:
    """Mean score at strength 0, or None if 0 was not measured."""
    at_zero = np.flatnonzero(result.data["strength"].values == 0)
    if not len(at_zero):
        return None
    return float(result.data["mean_score"].isel(direction=0, strength=int(at_zero[0])))


def _label(direction: str) -> str:
    return {"steered": "steered", "random": "random (control)"}.get(direction, direction)


def _style(i: int) -> dict[str, Any]:
    colour = theme.SERIES[i % len(theme.SERIES)]
    dash = "solid" if i == 0 else "dash"
    return {
        "mode": "lines+markers",
        "cliponaxis": False,
        "line": {"color": colour, "width": 2.5 if i == 0 else 2, "dash": dash},
        "marker": {"color": colour, "symbol": theme.SYMBOLS[i % len(theme.SYMBOLS)], "size": 7},
    }


def control_text(result: Result) -> str:
    """What steering is compared with."""
    if len(directions(result)) < 2:
        return "not run"
    return str(result.data.attrs.get("control", "random direction of the same norm"))


def _subtitle(result: Result, *more: str) -> str:
    attrs, n = result.data.attrs, result.data.sizes.get("prompt", 1)
    what = f"direction: {attrs['direction']}" if attrs.get("direction") else ""
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompt{'s' if n > 1 else ''}",
        units=f"{what} at {attrs['site']}" if what and attrs.get("site") else what,
        control=control_text(result),
        more=[note for note in more if note],
    )


def _finish(figure: go.Figure, title: str, under: str, y_title: str, height: int) -> go.Figure:
    made = theme.layout(title, under, plot_height=height, legend_rows=1, right=LABEL)
    figure.update_layout(made, **HOVER)
    figure.update_xaxes(title={"text": "strength"}, **hover_title("strength", ""))
    figure.update_yaxes(title={"text": y_title})
    return figure


def score_figure(result: Result) -> go.Figure:
    """Mean score by strength."""
    data = result.data
    strengths = f32(data["strength"].values)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, direction in enumerate(directions(result)):
        at, name = data.sel(direction=direction), safe(_label(direction))
        low, high = at["score_low"].values, at["score_high"].values
        for trace in band(strengths, low, high, theme.SERIES[i % len(theme.SERIES)], name):
            figure.add_trace(trace)
        interval = " [%{customdata[0]:.3f}, %{customdata[1]:.3f}]" if np.isfinite(low).any() else ""
        figure.add_scatter(
            x=strengths,
            y=f32(at["mean_score"].values),
            name=name,
            customdata=f32(np.stack([low, high], axis=-1)),
            hovertemplate=f"{name}: %{{y:.3f}}{interval}<extra></extra>",
            legendgroup=name,
            **_style(i),
        )
    under = _subtitle(
        result, "Shaded: 95 % interval over prompts." if data.sizes.get("prompt", 1) > 1 else ""
    )
    _finish(figure, "Steering: score by strength", under, f"mean {safe(score_name(result))}", 340)
    zero = baseline(result)
    if zero is not None:
        shapes, notes = level(zero, "strength 0")
        figure.update_layout(shapes=shapes, annotations=notes)
    return figure


def kl_figure(result: Result) -> go.Figure:
    """KL to the unsteered next-token distribution by strength."""
    data = result.data
    strengths = f32(data["strength"].values)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    several = data.sizes.get("prompt", 1) > 1
    for i, direction in enumerate(directions(result)):
        kl, name = (
            data["kl"].sel(direction=direction).transpose("strength", ...).values,
            safe(_label(direction)),
        )
        if several:
            low, high = np.nanquantile(kl, KL_RANGE, axis=1)
            for trace in band(strengths, low, high, theme.SERIES[i % len(theme.SERIES)], name):
                figure.add_trace(trace)
        figure.add_scatter(
            x=strengths,
            y=f32(np.nanmean(kl.reshape(len(strengths), -1), axis=1)),
            name=name,
            hovertemplate=f"{name}: %{{y:.3f}} nats<extra></extra>",
            legendgroup=name,
            **_style(i),
        )
    under = _subtitle(result, "Line: mean. Shaded: 10th to 90th percentile of prompts." if several else "")
    title = "Steering: change of the next-token distribution"
    figure = _finish(figure, title, under, "KL(unsteered‖steered) (nats)", 220)
    return figure.update_yaxes(rangemode="tozero")
