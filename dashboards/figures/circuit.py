"""Figure of circuits of growing size.

`curves`  faithfulness and completeness by number of edges (log scale), each with its interval over pairs, beside random
          circuits of as many edges: their mean dashed, shaded from the lowest to the highest of them
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.points import say
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result

MEASURES = {"faithfulness": "faithfulness of the circuit", "completeness": "completeness"}
NO_EDGES = 0.5
"""Where a circuit of no edges stands on the log scale."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`curves`."""
    data = result.data
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    x = np.maximum(data["size"].values.astype(float), NO_EDGES)
    edges, nodes = (data[name].values for name in ("n_edges", "n_nodes"))
    pruned = [f"{e:,} edges after pruning, {n:,} nodes" for e, n in zip(edges, nodes, strict=True)]
    shapes, notes = [], []
    for row, (name, title) in enumerate(MEASURES.items(), 1):
        axis = "" if row == 1 else str(row)
        axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
        if f"random_{name}" in data:
            drawn = data[f"random_{name}"].mean("pair").transpose("size", "random").values
            low, high = drawn.min(1), drawn.max(1)
            random = Curve(x, drawn.mean(1), f"{name}, random circuits", 1, low, high, control=True)
            figure.add_traces(curve(random, **axes))
        low, high = (data[f"{name}_{end}"].values for end in ("low", "high"))
        said = [text + more for text, more in zip(pruned, _p_texts(data, name), strict=True)]
        own = Curve(x, data[f"mean_{name}"].values, name, 0, low, high, said=said)
        figure.add_traces(curve(own, **axes))
        figure.update_yaxes(title={"text": title}, row=row, col=1)
        for y, label in ((1.0, "whole model"), (0.0, "no edges")):
            line, note = level(y, label, axis=axis)
            shapes, notes = shapes + line, notes + note
    made = theme.layout(
        f"Circuits of growing size: how much of {data.attrs['metric']} they carry",
        _subtitle(result),
        plot_height=520,
        legend_rows=1,
        right=LABEL + 10,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(type="log", dtick=1, **hover_title("strongest edges:", ",.0f"))
    return {"curves": figure.update_xaxes(title={"text": "number of edges (log)"}, row=2, col=1)}


def _p_texts(data: Any, name: str) -> list[str]:
    if f"{name}_p" not in data:
        return [""] * data.sizes["size"]
    return [f", p {number(float(p))}" for p in data[f"{name}_p"].values]


def _subtitle(result: Result) -> str:
    data, attrs = result.data, result.data.attrs
    n, drawn = int(attrs["n_pairs"]), data.sizes.get("random", 0)
    clean, ablated = (number(float(data[name].mean())) for name in ("clean_metric", "ablated_metric"))
    how = {"run": "corrupt run", "mean": "mean over corrupt prompts", "zero": "zero"}.get(
        str(attrs.get("ablate")), "?"
    )
    control = f"{drawn} random circuits of as many edges ({attrs.get('null', '?')})" if drawn else "not run"
    lines = "Solid: the strongest edges, pruned." + (" Shaded: 95 % interval over pairs." if n > 1 else "")
    if drawn:
        lines += " Dashed: mean of the random circuits, shaded from the lowest to the highest."
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} pair{'s' if n > 1 else ''}, {int(attrs['n_edges_of_graph']):,} edges in the graph",
        units=f"{'mean ' if n > 1 else ''}metric: whole model {clean}, no edges {ablated}",
        control=control,
        more=[f"{reached(result)} Edges outside carry: {how}.", lines],
    )


def reached(result: Result) -> str:
    """From how many edges on the circuit is faithful: `Faithfulness 0.8 at 50 edges (43 after pruning); …`."""
    data = result.data
    mean, sizes = data["mean_faithfulness"].values, data["size"].values
    parts = []
    for least in (0.8, 0.9):
        at = np.flatnonzero(mean >= least)
        if len(at):
            edges = f"{int(sizes[at[0]]):,} edges ({int(data['n_edges'].values[at[0]]):,} after pruning)"
            parts.append(f"{least} first at {edges}")
        else:
            parts.append(f"{least} not reached")
    return f"Faithfulness {', '.join(parts)}."


def describe(result: Result) -> dict[str, str]:
    """The figure in words."""
    data = result.data
    sizes, parts = data["size"].values, []
    for name in MEASURES:
        mean = data[f"mean_{name}"].values
        ends = [f"{number(float(mean[i]))} with {sizes[i]:,} edges" for i in (0, -1)]
        text = f"{name} from {' to '.join(ends)}"
        if f"mean_random_{name}" in data:
            random = data[f"mean_random_{name}"].values
            at = int(np.nanargmax(mean - random))
            own, theirs = (number(float(values[at])) for values in (mean, random))
            text += f"; furthest from random circuits with {sizes[at]:,}: {own} against {theirs}"
        parts.append(text)
    n = int(data.attrs["n_pairs"])
    return {"curves": f"Lines by number of edges, n = {n}: {'. '.join(parts)}. {reached(result)}"}


def control_statement(result: Result) -> str:
    """What the circuits were compared with, and what came out."""
    area = result.summary.get("area") or {}
    if "random" not in area:
        return "No random circuits were run: any circuit of this size may do as well."
    own = say(area["circuit"], *(area.get("interval") or (np.nan, np.nan)))
    return (
        f"Control: {result.data.sizes['random']} random circuits of as many edges at each size. Mean faithfulness over "
        f"log size {own}, of random circuits {number(area['random'])} (p {number(area['p_value'])})."
    )
