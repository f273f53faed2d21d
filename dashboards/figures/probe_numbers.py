"""Figures of ridge probes of numbers (`probe_numbers`).

`r2`   held-out R² by layer with its interval, one line per quantity; permuted quantities dashed in the same hue with an
       area up to the highest; 0 (the mean) dotted. Far below 0 the axis is cut, and the subtitle says so.
`mae`  mean absolute error by layer, where there is one quantity (several may have units of their own).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, Curve, band, curve, level
from dashboards.figures.probe_common import LINES, along, bottom, subtitle, x_of, x_type
from dashboards.figures.probe_finish import finished
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

LOWEST = -0.5
"""R² is drawn down to here."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`r2`, and `mae` of one quantity."""
    made = {"r2": r2_figure(result)}
    if result.data.sizes["target"] == 1:
        made["mae"] = mae_figure(result)
    return made


def _at_position(data: Any) -> tuple[Any, str]:
    """The data at the position of the highest R², and a note where there are several."""
    if "position" not in data.dims:
        return data, ""
    best = data["r2"].max([dim for dim in data["r2"].dims if dim != "position"])
    at = data.isel(position=int(np.nanargmax(best.values)))
    n = data.sizes["position"]
    return at, f"Shown: position {int(at['position'])}, that of the best R² among {n}; the result holds all."


def _targets(data: Any) -> tuple[list[str], str]:
    """The quantities that are drawn, and a note where not all are."""
    every = [str(name) for name in data["target"].values]
    if len(every) <= LINES:
        return every, ""
    best = data["r2"].max([dim for dim in data["r2"].dims if dim != "target"]).values
    kept = set(np.argsort(-best)[:LINES].tolist())
    return [
        n for i, n in enumerate(every) if i in kept
    ], f"{LINES} of {len(every)} quantities, those of the highest R²."


def r2_figure(result: Result) -> go.Figure:
    """R² by layer, with control."""
    data, where = _at_position(result.data)
    names, some = _targets(data)
    x, first, has_control = x_of(data), along(data), "control_r2" in data
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, plain in enumerate(names):
        at, name = data.sel(target=plain), safe(plain)
        colour, symbol = theme.SERIES[i], theme.SYMBOLS[i]
        low, high = at["r2_low"].values, at["r2_high"].values
        figure.add_traces(band(x, low, high, colour, name))
        figure.add_scatter(
            x=x, y=f32(at["r2"].values), name=name, mode="lines+markers", legendgroup=name,
            line={"color": colour, "width": 2}, marker={"color": colour, "symbol": symbol, "size": 6},
            customdata=f32(np.stack([low, high], axis=-1)),
            hovertemplate=f"{name}: R² %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>",
        )  # fmt: skip
        if has_control:
            figure.add_traces(_control(x, at, colour, f"{name}, permuted"))
    shapes, notes = level(0.0, "mean")
    lines = ["Solid: R² with its 95 % interval."]
    lines += ["Dashed: permuted, shaded up to the highest."] if has_control else []
    keys = [key for key in ("r2_low", "r2", "control_r2") if key in data]
    lowest = min(float(np.nanmin(data[key].values)) for key in keys)
    cut = (
        f"The axis ends at {number(LOWEST)}; the lowest value is {number(lowest)}." if lowest < LOWEST else ""
    )
    made = theme.layout(
        f"Numbers read by {first}: R² out of fold",
        subtitle(result, where, " ".join(lines), some, cut),
        plot_height=340,
        legend_rows=-(-len(names) * (2 if has_control else 1) // 4),
        bottom=bottom(data),
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(title={"text": first}, **x_type(data))
    figure.update_yaxes(title={"text": "R²"}, range=[max(LOWEST, min(-0.1, lowest - 0.03)), 1.02])
    return finished(figure)


def _control(x: np.ndarray, at: Any, colour: str, name: str) -> list[go.Scatter]:
    high = f32(at["control_r2_high"].values)
    common = {"x": x, "mode": "lines", "legendgroup": name}
    return [
        go.Scatter(
            y=f32(at["control_r2"].values), name=name, line={"color": colour, "width": 2, "dash": "dash"},
            customdata=high[:, None], legendrank=1001,
            hovertemplate=f"{name}: R² %{{y:.3f}} (highest %{{customdata[0]:.3f}})<extra></extra>", **common,
        ),
        go.Scatter(
            y=high, name=f"{name}, highest", showlegend=False, fill="tonexty", fillcolor=theme.rgba(colour, 0.14),
            line={"width": 0}, hoverinfo="skip", **common,
        ),
    ]  # fmt: skip


def mae_figure(result: Result) -> go.Figure:
    """Mean absolute error by layer."""
    data, where = _at_position(result.data)
    name = str(data["target"].values[0])
    at, first = data.isel(target=0), along(data)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    x = at[first].values if first == "layer" else np.arange(data.sizes[first])
    figure.add_traces(curve(Curve(f32(x), at["mae"].values, name, form=".4g")))
    made = theme.layout(
        f"Numbers read by {first}: mean absolute error",
        subtitle(result, where),
        plot_height=220,
        bottom=bottom(data),
    )
    figure.update_layout(made, **HOVER)
    if first == "layer":
        figure.update_xaxes(title={"text": first}, **x_type(data))
    else:
        ticks = {
            "tickvals": f32(x),
            "ticktext": [safe(str(s)) for s in data["site"].values],
            "tickangle": -45,
        }
        figure.update_xaxes(title={"text": first}, **ticks)
    return figure.update_yaxes(title={"text": f"mean |error| in {safe(name)}"}, rangemode="tozero")


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data, where = _at_position(result.data)
    names, some = _targets(data)
    first = along(data)
    span = f"{data.sizes[first]} {first}s, {data[first].values[0]} to {data[first].values[-1]}"
    parts = [_best(data, name) for name in names]
    words = {
        "r2": f"Lines of the held-out R² over {span}; {data.attrs['n']} examples; 0 is the mean. {' '.join(parts)} "
        f"{where}{some}".strip()
    }
    if len(names) == 1 == data.sizes["target"]:
        error = data["mae"].isel(target=0).values
        best = int(np.nanargmin(error))
        words["mae"] = (
            f"Line of the mean absolute error in {names[0]} over {span}, least {number(float(error[best]))} at {first} "
            f"{data[first].values[best]}."
        )
    return words


def _best(data: Any, name: str) -> str:
    at, first = data.sel(target=name), along(data)
    best = int(np.nanargmax(at["r2"].values))
    value, low, high = (number(float(at[f"r2{end}"].values[best])) for end in ("", "_low", "_high"))
    text = f"{name}: best R² {value} (95 % interval {low} to {high}) at {first} {data[first].values[best]}"
    if "control_r2" in at:
        text += f", permuted there {number(float(at['control_r2'].values[best]))}"
        text += f" (highest {number(float(at['control_r2_high'].values[best]))})"
    return text + "."


def control_statement(result: Result) -> str:
    """What the probes were compared with, and what came out."""
    data, _ = _at_position(result.data)
    names, some = _targets(data)
    return f"Control: {data.attrs.get('control', 'not run')}. {' '.join(_best(data, n) for n in names)} {some}".strip()
