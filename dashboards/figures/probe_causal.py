"""Figures of a probe's causal check.

`dose`   mean change of the metric by strength with its interval: along the probe's direction solid, random
directions of
         the same norm dashed, each of them a thin line behind; a dotted level where the direction is taken out
`slope`  change of the metric per natural scale: the probe with its interval beside every random direction
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

THIN = 40
"""At most so many random directions are drawn one by one in `dose`; `slope` has all of them."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`dose` and `slope`."""
    return {"dose": dose_figure(result), "slope": slope_figure(result)}


def dose_figure(result: Result) -> go.Figure:
    """Change of the metric by strength, probe against random directions."""
    data = result.data
    x = f32(data["strength"].values)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    each = data["random_change"].values[:THIN]
    for i, line in enumerate(each):
        figure.add_scatter(
            x=x, y=f32(line), mode="lines", hoverinfo="skip", showlegend=False, name=f"random direction {i}",
            legendgroup="random (mean)", line={"width": 1, "color": theme.rgba(theme.SERIES[1], 0.25)},
        )  # fmt: skip
    for i, (kind, name) in enumerate((("probe", "along the probe"), ("random", "random (mean)"))):
        at = data.sel(direction=kind)
        one = Curve(
            x, at["mean_change"].values, name, colour=i, low=at["change_low"].values, high=at["change_high"].values,
            control=kind == "random",
        )  # fmt: skip
        figure.add_traces(curve(one))
    drawn = (
        f"Thin: {len(each)} of {data.sizes['random']} random directions."
        if len(each) < data.sizes["random"]
        else ""
    )
    shaded = f"Shaded: 95 % interval over {_units(result)}; of random directions over them, too."
    under = _subtitle(result, shaded if data.sizes["prompt"] > 1 else "", drawn, _verdict(result))
    made = theme.layout(
        "Causal check: the metric by strength", under, plot_height=340, legend_rows=1, right=LABEL
    )
    figure.update_layout(made, **HOVER)
    shapes, notes = level(float(data["ablation"].sel(direction="probe")), "taken out")
    figure.update_layout(shapes=shapes, annotations=notes)
    figure.update_xaxes(
        title={"text": "strength (natural scales of the probe)"}, **hover_title("strength", "")
    )
    return figure.update_yaxes(title={"text": f"change of {safe(str(data.attrs['metric']))}"})


def _units(result: Result) -> str:
    """What the intervals resample."""
    attrs = result.data.attrs
    return f"{attrs['n_groups']} groups of prompts" if attrs.get("grouped") else "prompts"


def slope_figure(result: Result) -> go.Figure:
    """Slope of the probe beside those of random directions."""
    data = result.data
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    random = data["random_slope"].values
    figure.add_scatter(
        x=f32(random), y=["random"] * len(random), mode="markers", name="random directions",
        marker={"color": theme.SERIES[1], "symbol": "line-ns-open", "size": 14, "line": {"width": 1.5}},
        hovertemplate="random direction: %{x:.3g}<extra></extra>",
    )  # fmt: skip
    at = data.sel(direction="probe")
    value, low, high = (float(at[f"slope{end}"]) for end in ("", "_low", "_high"))
    whiskers = {} if not np.isfinite(low) else {
        "error_x": {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low]}
    }  # fmt: skip
    figure.add_scatter(
        x=f32([value]), y=["probe"], mode="markers", name="probe", marker={"color": theme.SERIES[0], "size": 11},
        hovertemplate=f"probe: %{{x:.3g}} [{low:.3g}, {high:.3g}]<extra></extra>", **whiskers,
    )  # fmt: skip
    under = _subtitle(result, "Whiskers: 95 % interval over prompts.", _verdict(result))
    made = theme.layout("Causal check: slope beside random directions", under, plot_height=140)
    figure.update_layout(made)
    figure.update_yaxes(categoryorder="array", categoryarray=["random", "probe"])
    figure.update_xaxes(
        title={"text": f"change of {safe(str(data.attrs['metric']))} per natural scale"},
        zeroline=True,
        zerolinewidth=1,
    )
    return figure


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data, n = result.data, int(result.data.attrs["n_prompts"])
    ends = [int(np.argmin(data["strength"].values)), int(np.argmax(data["strength"].values))]
    parts = []
    for i in ends:
        at = data.isel(strength=i)
        probe, random = (float(at["mean_change"].sel(direction=d)) for d in ("probe", "random"))
        parts.append(
            f"at strength {number(float(at['strength']))} the metric changes by {number(probe)} along the probe and by "
            f"{number(random)} along random directions"
        )
    random = data["random_slope"].values
    return {
        "dose": f"Lines of the change of {data.attrs['metric']} by strength, n = {n}: {', '.join(parts)}. "
        + _verdict(result),
        "slope": f"The probe's slope {_slope(data)} beside {len(random)} random directions from "
        f"{number(random.min())} to {number(random.max())}.",
    }


def control_statement(result: Result) -> str:
    """What the check was compared with, and what came out."""
    return f"Control: {result.data.attrs['control']}. {_verdict(result)}"


def _slope(data: Any) -> str:
    at = data.sel(direction="probe")
    value, low, high = (float(at[f"slope{end}"]) for end in ("", "_low", "_high"))
    return number(value) + (f" (95 % interval {number(low)} to {number(high)})" if np.isfinite(low) else "")


def _verdict(result: Result) -> str:
    data, summary = result.data, result.summary
    text = f"Slope {_slope(data)}"
    difference = summary.get("difference", {})
    if difference.get("low") is not None:
        held = "excludes" if summary["excludes_zero"] else "holds"
        low, high = number(difference["low"]), number(difference["high"])
        text += f"; probe − random {number(difference['value'])}, interval {low} to {high} {held} 0"
    largest = int(
        (np.abs(data["random_slope"].values) >= abs(float(data["slope"].sel(direction="probe")))).sum()
    )
    return f"{text}; {largest} of {data.sizes['random']} random directions have as large a slope."


def _subtitle(result: Result, *more: str) -> str:
    attrs, n = result.data.attrs, result.data.sizes["prompt"]
    what = f"direction: {attrs['direction']}, " if attrs.get("direction") else ""
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompt{'s' if n > 1 else ''}",
        units=f"{what}{attrs['site']}, scale {number(float(attrs['scale']))}",
        control=str(attrs.get("control", "not run")),
        more=[note for note in more if note],
    )
