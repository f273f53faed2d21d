"""Figures of structural probes for numbers.

`probe_periodic` (how much of the activations each basis explains)
    `r2`        R² on held-out numbers by layer, one line a basis, dashed: the same basis of permuted numbers
    `sizes`     the same by number of columns, at the layer of the best chosen helix
`probe_periodic_patch` (what the model answers with a fitted activation in place)
    `effect`    change of the logit difference by layer, one bar for each thing put in, with ceiling and null
    `success`   share of pairs whose first choice is the new answer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.bars import error_bars
from dashboards.figures.lines import HOVER, Curve, curve, hover_title
from dashboards.figures.points import say
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

NAMES = {
    "helix": "helix",
    "chosen": "helix, chosen periods",
    "circle": "circle",
    "polynomial": "polynomial",
    "pca": "principal components",
    "layer": "true activation (ceiling)",
    "permuted": "helix of permuted numbers (null)",
    "mean": "mean activation",
}
LOWEST = -0.5
"""R² below this is not drawn; the subtitle says which lines leave."""
BARS: dict[str, tuple[int, str]] = {
    "layer": (5, "x"),
    "helix": (0, ""),
    "circle": (1, ""),
    "polynomial": (2, ""),
    "pca": (3, ""),
    "permuted": (0, "/"),
    "mean": (4, "/"),
}
"""Colour and pattern of a bar: what puts no number in is hatched, the ceiling crossed."""


def figures(result: Result) -> dict[str, go.Figure]:
    """Those of the result's kind, the main one first."""
    if result.kind == "probe_periodic_patch":
        return {"effect": effect_figure(result), "success": success_figure(result)}
    return {"r2": r2_figure(result), "sizes": sizes_figure(result)}


# -- R² ------------------------------------------------------------------------------------------------


def _n_numbers(result: Result) -> str:
    attrs = result.data.attrs
    held_out = f"{float(attrs['held_out']):.0%} of them held out" if "held_out" in attrs else "some held out"
    return f"{attrs['n_numbers']} numbers, {held_out} in each of {attrs['n_splits']} splits"


def _r2_subtitle(result: Result, *more: str) -> str:
    return theme.subtitle(
        model=theme.model_name(result),
        n=_n_numbers(result),
        control=str(result.data.attrs.get("control", "not run")),
        more=more,
    )


def _r2_lines(data: Any, along: str, title: str, under: Any, axis: str) -> go.Figure:
    """One line a basis over `along`, each beside its null."""
    figure, gone = go.Figure(), []
    for i, basis in enumerate(map(str, data["basis"].values)):
        here, x = data.sel(basis=basis), data[along].values
        name = NAMES.get(basis, basis)
        if along == "layer" and "n_columns" in data:
            name += f", {int(here['n_columns'])} columns"
        for control in (False, True):
            start = "null_r2" if control else "r2"
            y, low, high = (here[f"{start}{end}"].values for end in ("", "_low", "_high"))
            full = f"null of {NAMES.get(basis, basis)}" if control else name
            if np.nanmin(y, initial=np.inf) < LOWEST:
                gone.append(f"{full} (least {number(float(np.nanmin(y)))})")
            figure.add_traces(
                curve(Curve(x, y, full, i, None if control else low, None if control else high, control))
            )
    notes = [
        "Bands: 2.5 to 97.5 % of the splits. Principal components are given the held-out activation itself."
    ]
    if gone:
        notes.append(f"Below {number(LOWEST)} and not drawn there: {'; '.join(gone)}.")
    made = theme.layout(title, under(*notes), plot_height=340, legend_rows=4)
    figure.update_layout(made, **HOVER)
    figure.update_xaxes(title={"text": axis}, **hover_title(axis.split(" (")[0]), tickvals=data[along].values)
    return figure.update_yaxes(title={"text": "R² on held-out numbers"}, range=[LOWEST, 1.02], zeroline=True)


def r2_figure(result: Result) -> go.Figure:
    """R² by layer at the largest size."""
    data = result.data.sel(k=int(result.data["k"].values[-1]))
    title = f"Numbers in the activations: R² of bases of at most {int(data['k'])} columns"
    return _r2_lines(data, "layer", title, lambda *m: _r2_subtitle(result, *m), "layer (blocks passed)")


def _best_layer(data: Any) -> int:
    last = data.isel(k=-1)
    values = (
        last["r2"].sel(basis="chosen" if "chosen" in data["basis"].values else data["basis"].values[0]).values
    )
    return int(data["layer"].values[int(np.nanargmax(values))])


def sizes_figure(result: Result) -> go.Figure:
    """R² by size at one layer."""
    layer = _best_layer(result.data)
    title = f"Numbers in the activations: R² by size of the basis, layer {layer}"
    return _r2_lines(
        result.data.sel(layer=layer),
        "k",
        title,
        lambda *m: _r2_subtitle(result, *m),
        "columns beside the constant",
    )


# -- patch ---------------------------------------------------------------------------------------------


def _patch_subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    drawn = f" of {attrs['n_drawn']} drawn" if attrs.get("n_drawn", attrs["n"]) != attrs["n"] else ""
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{attrs['n']} pairs{drawn}, {attrs['n_numbers']} new numbers, each held out of the fit",
        control=str(attrs.get("control", "not run")),
        more=more,
    )


def _bars(result: Result, name: str, title: str, axis: str) -> go.Figure:
    data, figure = result.data, go.Figure()
    layers = [f"layer {int(layer)}" for layer in data["layer"].values]
    for source in map(str, data["source"].values):
        here = data.sel(source=source)
        values, low, high = (f32(here[f"{name}{end}"].values) for end in ("", "_low", "_high"))
        colour_index, shape = BARS.get(source, (5, "."))
        colour = theme.SERIES[colour_index]
        columns = int(here["n_columns"])
        label = NAMES.get(source, source) + (f", {columns} columns" if columns > 0 else "")
        bar = go.Bar(
            x=layers,
            y=values,
            name=safe(label),
            marker={
                "color": theme.rgba(colour, 0.45),
                "line": {"color": colour, "width": 1},
                "pattern": {"shape": shape, "solidity": 0.35, "fgcolor": colour},
            },
            customdata=f32(np.stack([low, high], axis=-1)),
            hovertemplate=(
                f"<b>%{{x}}</b><br>{safe(label)} %{{y:.3f}}, 95 % interval %{{customdata[0]:.3f}} to "
                "%{customdata[1]:.3f}<extra></extra>"
            ),
        )
        if np.isfinite(low).any():
            bar.update(error_y={**error_bars(values, low, high), "color": colour})
        figure.add_trace(bar)
    note = "Lines: 95 % intervals over the numbers put in. Crossed: ceiling. Hatched: no number is put in."
    figure.update_layout(
        theme.layout(
            title, _patch_subtitle(result, note, *_period_note(data)), plot_height=330, legend_rows=4
        ),
        barmode="group",
        bargap=0.2,
    )
    return figure.update_yaxes(title={"text": axis}, zeroline=True, zerolinewidth=1)


def _period_note(data: Any) -> list[str]:
    periods = data["period"].values
    if not data.attrs.get("chosen_periods"):
        return [
            f"Periods of the helix: {', '.join(number(float(T)) for T in periods[0, 0] if np.isfinite(T))}."
        ]
    first = ", ".join(number(float(T)) for T in periods[0, 0] if np.isfinite(T))
    return [f"Periods chosen on each fold's training numbers and layer; first fold and layer: {first}."]


def effect_figure(result: Result) -> go.Figure:
    """Change of the logit difference."""
    operand = result.data.attrs.get("operand", "a")
    return _bars(
        result,
        "mean_effect",
        f"Another number put in at the token of {operand}: change of the answer's logits",
        "change of logit(new answer) − logit(old answer)",
    )


def success_figure(result: Result) -> go.Figure:
    """Share of new answers."""
    operand = result.data.attrs.get("operand", "a")
    title = f"Another number put in at the token of {operand}: how often the answer follows"
    made = _bars(result, "mean_success", title, "share of pairs with the new answer first")
    return made.update_yaxes(range=[0, 1.02])


# -- words ---------------------------------------------------------------------------------------------


def _r2_words(data: Any) -> str:
    parts = []
    for basis in map(str, data["basis"].values):
        ends = (float(data[f"r2{end}"].sel(basis=basis)) for end in ("", "_low", "_high"))
        value, low, high = ends
        null = number(float(data["null_r2"].sel(basis=basis)))
        parts.append(
            f"{NAMES.get(basis, basis)} {number(value)} ({number(low)} to {number(high)} over splits, null {null})"
        )
    return "; ".join(parts)


def _patch_words(data: Any, name: str) -> str:
    parts = []
    for source in map(str, data["source"].values):
        ends = (float(data[f"{name}{end}"].sel(source=source)) for end in ("", "_low", "_high"))
        parts.append(f"{NAMES.get(source, source)} {say(*ends)}")
    return "; ".join(parts)


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    if result.kind == "probe_periodic_patch":
        at = int(data["layer"].values[0])
        layers = f"{data.sizes['layer']} layers"
        n = f"{data.attrs['n']} pairs"
        first = data.isel(layer=0)
        return {
            "effect": (
                f"Bars with intervals over {layers}, {n}: change of the logit difference between new and old answer. "
                f"At layer {at}: {_patch_words(first, 'mean_effect')}."
            ),
            "success": (
                f"Bars with intervals over {layers}, {n}: share whose first choice is the new answer. At layer {at}: "
                f"{_patch_words(first, 'mean_success')}."
            ),
        }
    layer, k = _best_layer(data), int(data["k"].values[-1])
    words = _r2_words(data.sel(layer=layer, k=k))
    return {
        "r2": (
            f"Lines of R² on held-out numbers over {data.sizes['layer']} layers, {_n_numbers(result)}; bases "
            f"of at most {k} columns, each with its null dashed. At layer {layer}: {words}."
        ),
        "sizes": (
            f"Lines of R² at layer {layer} over {data.sizes['k']} sizes, {int(data['k'].values[0])} to {k} columns. "
            f"At {k}: {words}."
        ),
    }


def control_statement(result: Result) -> str:
    """What it was compared with, and what came out."""
    data, control = result.data, result.data.attrs.get("control", "not run")
    if result.kind == "probe_periodic_patch":
        return (
            f"Control: {control}. Share of new answers: {_patch_words(data.isel(layer=0), 'mean_success')}."
        )
    here = data.sel(layer=_best_layer(data), k=int(data["k"].values[-1]))
    return f"Control: {control}. R²: {_r2_words(here)}."
