"""Figures of directions.

`direction_cosines`  `cosines`  heat map of every pair; only cells outside the band of random directions have a number
                     `pairs`    the pairs as bars, with the bands of random directions as dotted lines
`direction_tokens`   one figure an effect (`network`, `last_stream`, `direct`): promoted and suppressed tokens as two
                     lists of bars, with their intervals; diamonds: the k-th value of random directions, and its band
`direction_angles`   `angles`   principal angles of two spans over the band of random spans
"""

from __future__ import annotations

import re
from math import radians, sin
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import signed, theme
from dashboards.figures.bars import BARS, error_bars, vertical
from dashboards.figures.grid import fits, shorten, visible
from dashboards.figures.lines import HOVER, Curve, curve, hover_title
from dashboards.figures.signed import Grid
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

KINDS = ("direction_cosines", "direction_tokens", "direction_angles")
SHORT = 28
"""Characters of a direction's name on an axis."""
_ANGLE = 40
"""Degrees by which the names under the cells are turned."""
_AT_BLOCK = re.compile(r" @ blocks\.(\d+)\.(?:attn\.)?hook_(\w+)$")
SAYS = {
    "direct": "direct effect on the logits (norm held)",
    "last_stream": "added to the last residual stream",
    "network": "added at its site, the network running",
}


def figures(result: Result) -> dict[str, go.Figure]:
    """The figures of one of the three kinds, the main one first."""
    if result.kind == "direction_cosines":
        return {"cosines": cosines_figure(result), "pairs": pairs_figure(result)}
    if result.kind == "direction_angles":
        return {"angles": angles_figure(result)}
    return {effect: tokens_figure(result, effect) for effect in _effects(result)}


# -- cosines -----------------------------------------------------------------------------------------------


def _bands(result: Result) -> dict[str, tuple[float, float]]:
    """Null -> 95 % of |cos| of one pair, and of the largest of all pairs."""
    data = result.data
    ends = (data["null_band"].values, data["null_band_of_all"].values)
    names = [str(n) for n in data["null"].values]
    return {name: (float(one), float(all_)) for name, one, all_ in zip(names, *ends, strict=True)}


def _bands_text(result: Result) -> str:
    said = {"isotropic": "random directions", "reference": "with the covariance of reference text"}
    parts = [
        f"{said.get(name, name)}: {number(one)} for one pair, {number(all_)} for the largest of all"
        for name, (one, all_) in _bands(result).items()
    ]
    return f"95 % of |cos| of {'; '.join(parts)}."


def _names(result: Result) -> list[str]:
    """Names with their sites, `truth @ 14 resid_post`, and numbers in front where shortening makes two the same."""
    told = [_AT_BLOCK.sub(r" @ \1 \2", str(n)) for n in result.data["direction"].values]
    names = [shorten(n, SHORT) for n in told]
    return [safe(f"{i} {n}") if names.count(n) > 1 else safe(n) for i, n in enumerate(names)]


def _subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{attrs['n_directions']} directions, {attrs['n_pairs']} pairs, width {attrs['d']}",
        control=str(attrs["control"]),
        more=more,
    )


def cosine_grid(result: Result) -> Grid:
    """Direction × direction, the first at the bottom; the diagonal is empty."""
    values = result.data["cosine"].transpose("direction", "other").values.astype(float).copy()
    np.fill_diagonal(values, np.nan)
    return Grid(
        values,
        _names(result),
        _names(result),
        row="direction",
        column="direction",
        x_title="",
        y_title="",
        unit="cosine",
        numbers={"cosine": values, "p": result.data["p_value"].values},
        lines=("cosine {cosine}", "chance between random directions {p}"),
        written_from=max(one for one, _ in _bands(result).values()),
        at_least=1.0,
        missing="a direction with itself",
        cell="{y} and {x}",
    )


def cosines_figure(result: Result) -> go.Figure:
    """Every pair."""
    cells = cosine_grid(result)
    written = fits(len(cells.columns))
    note = "Numbers stand in cells outside the band of one pair." if written else ""
    x, y = signed.axes(cells)
    longest = max(map(len, cells.columns))
    made = theme.layout(
        "Cosines between directions",
        _subtitle(result, _bands_text(result), note),
        plot_height=max(160, 30 * len(cells.rows)),
        bottom=int(30 + 6.2 * longest * sin(radians(_ANGLE))),
    )
    # Names stand on both sides of the cells, so the words above begin at the edge of the figure.
    title = {**made["title"], "x": 0.02, "xref": "container"}
    x = {**x, "tickangle": -_ANGLE}
    layout = {**made, "title": title, "xaxis": x, "yaxis": y, "coloraxis": signed.colours(1.0, "cosine")}
    return go.Figure(signed.heatmap(cells, cells.values, "cosine", written=written), layout=layout)


def _pairs(result: Result) -> list[tuple[int, int]]:
    """Pairs of largest |cos|, the largest first."""
    cosines = result.data["cosine"].values
    first, second = np.triu_indices(len(cosines), 1)
    order = np.argsort(-np.abs(cosines[first, second]), kind="stable")
    return [(int(first[i]), int(second[i])) for i in order]


def pairs_figure(result: Result) -> go.Figure:
    """The pairs of largest |cos| as bars over the bands."""
    every, names = _pairs(result), _names(result)
    shown = list(reversed(every[:BARS]))
    bar = go.Bar(
        x=f32([result.data["cosine"].values[pair] for pair in shown]),
        y=[f"{names[i]} · {names[j]}" for i, j in shown],
        customdata=f32([[result.data["p_value"].values[pair]] for pair in shown]),
        orientation="h",
        name="cosine",
        marker={"color": theme.rgba(theme.SERIES[0], 0.35), "line": {"color": theme.SERIES[0], "width": 1}},
        hovertemplate="<b>%{y}</b><br>cosine %{x:.3f}<br>chance between random directions "
        "%{customdata[0]:.3g}<extra></extra>",
    )
    figure = go.Figure(bar)
    for i, (_, of_all) in enumerate(_bands(result).values()):
        for x in (-of_all, of_all):
            line = vertical(x)
            figure.add_shape(**{**line, "line": {**line["line"], "dash": ("dot", "dash")[i % 2]}})
    what = f"The {len(shown)} of largest |cos|" if len(shown) < len(every) else "All of them"
    lines = "Dotted: random directions, largest of all pairs"
    lines += "; dashed: the same with the covariance of reference text." if len(_bands(result)) > 1 else "."
    made = theme.layout(
        "Pairs of directions",
        _subtitle(result, _bands_text(result), f"{what}. {lines}"),
        plot_height=max(120, 22 * len(shown)),
    )
    figure.update_layout(made, bargap=0.35)
    figure.update_xaxes(title={"text": "cosine"}, range=[-1.05, 1.05], zeroline=True, zerolinewidth=1)
    return figure.update_yaxes(type="category", ticks="", showgrid=False, title={"text": "pair"})


# -- tokens ------------------------------------------------------------------------------------------------


def _effects(result: Result) -> list[str]:
    """The effects, the truest first."""
    return [str(e) for e in reversed(result.data["effect"].values)]


def _token_labels(cell: Any, sign: str) -> list[str]:
    """`+1 ·Paris`: rank and token, escaped."""
    return [safe(f"{sign}{i + 1} {shorten(visible(str(t)), 18)}") for i, t in enumerate(cell["token"].values)]


def tokens_figure(result: Result, effect: str) -> go.Figure:
    """Promoted and suppressed tokens of one effect."""
    data, attrs = result.data.sel(effect=effect), result.data.attrs
    n, units = min(BARS, result.data.sizes["k"]), str(data["units"].item())
    p = {str(s): number(float(data["p_value"].sel(side=s)), 2) for s in data["side"].values}
    figure = make_subplots(
        rows=1,
        cols=2,
        horizontal_spacing=0.2,
        subplot_titles=[f"{side} (p = {p[side]})" for side in ("promoted", "suppressed")],
    )
    for column, (side, sign) in enumerate((("promoted", "+"), ("suppressed", "−")), 1):
        cell = data.sel(side=side).isel(k=slice(n))
        labels = _token_labels(cell, sign)
        get = lambda name, cell=cell: f32(cell[name].values)[::-1]  # noqa: E731
        value, colour = get("value"), theme.SERIES[0]
        bar = go.Bar(
            x=value,
            y=labels[::-1],
            orientation="h",
            name=side,
            showlegend=False,
            marker={"color": theme.rgba(colour, 0.35), "line": {"color": colour, "width": 1}},
            customdata=np.stack([get("low"), get("high")], axis=-1),
            hovertemplate="<b>%{y}</b><br>%{x:.3f} "
            + units
            + "<br>95 % interval %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>",
        )
        if np.isfinite(get("low")).any():
            bar.update(error_x={**error_bars(value, get("low"), get("high")), "color": colour})
        figure.add_trace(bar, row=1, col=column)
        control = go.Scatter(
            x=get("control_mean"),
            y=labels[::-1],
            name=f"random directions, {side}",
            mode="markers",
            showlegend=column == 1,
            marker={"color": theme.SERIES[1], "symbol": "diamond", "size": 7},
            error_x={
                **error_bars(get("control_mean"), get("control_low"), get("control_high")),
                "color": theme.SERIES[1],
            },
            hovertemplate="random directions' value of this rank: %{x:.3f}<extra></extra>",
        )
        figure.add_trace(control, row=1, col=column)
    notes = [
        f"At {attrs['site']}, strength {number(float(attrs['strength']))}: {SAYS[effect]}.",
        f"The first {n} of {attrs['d_vocab']:,} tokens each way. Bars' lines: 95 % intervals over prompts, which do "
        "not know that the tokens were chosen on them; diamonds: value of the same rank, with a 95 % band over draws.",
    ]
    under = theme.subtitle(
        model=theme.model_name(result),
        n=f"{attrs['n_prompts']} prompts",
        units=f"change in {units}",
        control=str(attrs["control"]),
        more=notes,
    )
    title = f"Tokens of {attrs['direction'] or 'a direction'}"
    figure.update_layout(
        theme.layout(title, under, plot_height=max(140, 22 * n), legend_rows=1), showlegend=False, bargap=0.35
    )
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    figure.update_xaxes(title={"text": f"change ({units})"}, zeroline=True, zerolinewidth=1)
    figure.update_yaxes(type="category", ticks="", showgrid=False)
    return figure.update_yaxes(title={"text": "token"}, col=1)


# -- angles ------------------------------------------------------------------------------------------------


def angles_figure(result: Result) -> go.Figure:
    """Principal angles, the smallest first."""
    data = result.data
    at = data["angle"].values
    null = [data[f"null_{name}"].values for name in ("mean", "low", "high")]
    figure = go.Figure(curve(Curve(at, null[0], "random spans", 1, null[1], null[2], control=True)))
    figure.add_traces(curve(Curve(at, data["degrees"].values, "principal angle", 0, form=".2f")))
    sizes = " and ".join(str(n) for n in data.attrs["dimensions"])
    under = theme.subtitle(
        n=f"spans of {sizes} dimensions in {data.attrs['d']}", control=str(data.attrs["control"])
    )
    made = theme.layout("Principal angles between two spans", under, plot_height=280, legend_rows=1)
    figure.update_layout(made, **HOVER)
    figure.update_xaxes(title={"text": "angle, the smallest first"}, dtick=1, **hover_title("angle"))
    return figure.update_yaxes(title={"text": "degrees"}, range=[-2, 93])


# -- in words ----------------------------------------------------------------------------------------------


def describe(result: Result) -> dict[str, str]:
    """The figures in words, under the names of `figures`."""
    data = result.data
    if result.kind == "direction_cosines":
        names = [str(n) for n in data["direction"].values]
        said = [f"{names[i]} and {names[j]} {number(float(data['cosine'][i, j]))}" for i, j in _pairs(result)]
        first = "; ".join(said[:3])
        what = f"{data.sizes['direction']} directions of width {data.attrs['d']}"
        return {
            "cosines": f"Heatmap of the cosines between {what}. Largest |cos|: {first}. {_bands_text(result)}",
            "pairs": f"Bars of the cosines of {len(said)} pairs. {'; '.join(said[:5])}. {_bands_text(result)}",
        }
    if result.kind == "direction_angles":
        ends = [number(float(data["degrees"][i])) for i in (0, -1)]
        low, high = (number(float(data[f"null_{e}"][0])) for e in ("low", "high"))
        return {
            "angles": f"Line of {data.sizes['angle']} principal angles, from {ends[0]} to {ends[1]} degrees; the "
            f"smallest between random spans is {low} to {high} degrees."
        }
    return {effect: _tokens_words(result, effect) for effect in _effects(result)}


def _tokens_words(result: Result, effect: str) -> str:
    data, parts = result.data.sel(effect=effect), []
    units = str(data["units"].item())
    for side in ("promoted", "suppressed"):
        cell = data.sel(side=side)
        first = ", ".join(
            f"{str(t)!r} {number(float(v))}"
            for t, v in zip(cell["token"].values[:5], cell["value"].values, strict=False)
        )
        random = number(float(cell["control_mean"][0]))
        parts.append(
            f"{side}: {first} (random directions' first: {random}, p = {number(float(cell['p_value']), 2)})"
        )
    return f"Two lists of bars, {SAYS[effect]}, change in {units}. {'; '.join(parts)}."


def control_statement(result: Result) -> str:
    """What was compared with what, and what came out."""
    data = result.data
    if result.kind == "direction_cosines":
        outside = result.summary.get("outside", {})
        counts = ", ".join(f"{n} of {data.attrs['n_pairs']} beyond {name}" for name, n in outside.items())
        return f"Control: {data.attrs['control']}. {_bands_text(result)} Pairs: {counts}."
    if result.kind == "direction_angles":
        return f"Control: {data.attrs['control']}. {describe(result)['angles']}"
    effect = _effects(result)[0]
    p = data["p_value"].sel(effect=effect).values
    return (
        f"Control: {data.attrs['control']}. Their first token changes at least as much with "
        f"p = {number(float(p[0]), 2)} (promoted) and {number(float(p[1]), 2)} (suppressed)."
    )
