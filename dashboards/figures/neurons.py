"""Figures of the importance of neurons.

`layers`  share of the summed |mean importance| in each layer, beside the control's
`top`     the first neurons as bars with their intervals and control
`heads`   of a comparison: the score of every head, the silenced one outlined

With a head silenced, "importance" is the comparative one: importance minus importance without the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import bars, grid, points, signed, theme
from dashboards.figures.lines import HOVER, Curve, curve, hover_title
from dashboards.figures.signed import Grid
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result


def figures(result: Result) -> dict[str, go.Figure]:
    """`layers`, `top`, and `heads` where a head was silenced."""
    found = {"layers": layers_figure(result), "top": top_figure(result)}
    if "mean_head_score" in result.data:
        found["heads"] = heads_figure(result)
    return found


def of(data: Any) -> str:
    """What is drawn: `comparative` where a head was silenced, else `importance`."""
    return "comparative" if "mean_comparative" in data else "importance"


def called(data: Any) -> str:
    """`importance`, or `comparative importance for head 17.2`."""
    return (
        f"comparative importance for head {data.attrs['silenced_head']}"
        if of(data) == "comparative"
        else "importance"
    )


def _subtitle(
    result: Result, *more: str, units: str = "change of ln p(answer) in nats", control: str = ""
) -> str:
    data, n = result.data, int(result.data.attrs["n_prompts"])
    right = int(np.sum(data["correct"].values))
    scale = (
        f"Scale of the final norm: {data.attrs['final_norm_scale']}."
        if "final_norm_scale" in data.attrs
        else ""
    )
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompt{'s' if n > 1 else ''} ({right} answered right)",
        units=units,
        control=control or str(data.attrs.get("control", "not run")),
        more=[*(note for note in more if note), scale],
    )


def controls(data: Any) -> np.ndarray | None:
    """[layer, neuron] mean control; of several control heads, of each neuron the one of largest size."""
    name = f"mean_control_{of(data)}"
    if name not in data or 0 in data[name].shape:
        return None
    values = data[name]
    if "control_head" not in values.dims:
        return values.transpose("layer", "neuron").values
    each = values.transpose("control_head", "layer", "neuron").values
    most = np.abs(each).argmax(0)
    return np.take_along_axis(each, most[None], 0)[0]


def grid_of(data: Any) -> Grid:
    """Layer × neuron. Too many cells to draw as such; `top` has the first of them."""
    name, several = of(data), int(data.attrs["n_prompts"]) > 1
    two = lambda variable: data[variable].transpose("layer", "neuron").values  # noqa: E731
    numbers, lines = {"effect": two(f"mean_{name}")}, [f"{name} {{effect}} nats"]
    if several:
        numbers |= {"low": two(f"{name}_low"), "high": two(f"{name}_high")}
        lines[0] += ", 95 % interval {low} to {high}"
    if name == "comparative":
        numbers["own"] = two("mean_importance")
        lines.append("importance with the head {own} nats")
    control = controls(data)
    if control is not None:
        numbers["control"] = control
        lines.append("control {control} nats")
    return Grid(
        numbers["effect"],
        grid.layer_labels(data["layer"].values),
        [str(int(k)) for k in data["neuron"].values],
        control=control,
        column="neuron",
        unit=f"{called(data)} (nats)",
        numbers=numbers,
        lines=tuple(lines),
        form=".3g",
        cell="layer {y}, neuron {x}",
    )


def top_figure(result: Result) -> go.Figure:
    """The neurons of largest mean."""
    several = result.data.sizes.get("control_head", 0) > 1
    note = "Of several control heads each neuron's largest is drawn." if several else ""
    under = lambda notes: _subtitle(result, *notes, note)  # noqa: E731
    title = f"Neurons: {called(result.data)}, the first {bars.BARS}"
    figure = bars.top_figure(grid_of(result.data), title, under, what="neurons", signed=True)
    return figure.update_yaxes(title={"text": "layer.neuron"})


def shares(data: Any) -> dict[str, np.ndarray]:
    """[layer] share of the sum over all neurons of |mean|: of the importance, and of the control (mean over heads)."""
    name, found = of(data), {}
    for key, variable in (("", f"mean_{name}"), ("control", f"mean_control_{name}")):
        if variable in data and 0 not in data[variable].shape:
            size = np.abs(data[variable]).sum("neuron")
            share = size / size.sum("layer").where(lambda total: total > 0)
            others = [dim for dim in share.dims if dim != "layer"]
            found[key] = share.mean(others).values if others else share.values
    return found


def layers_figure(result: Result) -> go.Figure:
    """Where the importance lies."""
    data, figure = result.data, go.Figure()
    each = shares(data)
    if "control" in each:
        figure.add_traces(curve(Curve(data["layer"].values, each["control"], "control", 1, control=True)))
    figure.add_traces(curve(Curve(data["layer"].values, each[""], called(data), 0)))
    first, share = result.summary.get("top", ""), result.summary.get("top_share")
    held = (
        f"The first {str(first).split(' of ')[-1]} of all neurons hold {number(share)} of the sum."
        if share
        else ""
    )
    meaning = f"Share of the sum over all {data.sizes['layer'] * data.sizes['neuron']:,} neurons of |mean {of(data)}|."
    title = f"Neurons: {called(data)} by layer"
    made = theme.layout(title, _subtitle(result, f"{meaning} {held}"), plot_height=300, legend_rows=1)
    figure.update_layout(made, **HOVER)
    figure.update_xaxes(title={"text": "layer"}, **hover_title("layer"))
    return figure.update_yaxes(title={"text": "share of the sum"}, rangemode="tozero")


def heads_grid(data: Any) -> Grid:
    """Layer × head: relative loss of the answer's probability without the head."""
    two = lambda name: data[name].transpose("head_layer", "head").values  # noqa: E731
    numbers, lines = {"effect": two("mean_head_score")}, ["mean score {effect}"]
    if int(data.attrs["n_prompts"]) > 1:
        numbers |= {"low": two("head_score_low"), "high": two("head_score_high")}
        lines[0] += ", 95 % interval {low} to {high}"
    return Grid(
        numbers["effect"],
        grid.layer_labels(data["head_layer"].values),
        [str(int(h)) for h in data["head"].values],
        unit="head score (p − p without it) / p",
        numbers=numbers,
        lines=tuple(lines),
        form=".3g",
    )


def heads_figure(result: Result) -> go.Figure:
    """Scores of all heads, the silenced one outlined (and the strongest, if that is another)."""
    data = result.data
    cells = heads_grid(data)
    chosen = f"Silenced: head {data.attrs['silenced_head']} ({data.attrs.get('head_chosen', 'given')})."
    under = lambda notes: _subtitle(  # noqa: E731
        result,
        chosen,
        *notes,
        units="score: share of the answer's probability that is lost",
        control="the other heads beside it",
    )
    figure = signed.effect_figure(cells, "Heads: how much less probable the answer is without each", under)
    row, column = (
        labels.index(n) for labels, n in zip((cells.rows, cells.columns), _head(data), strict=True)
    )
    for shape in grid.outline(column, column, row, row):
        figure.add_shape(shape)
    return figure


def _head(data: Any) -> tuple[str, str]:
    layer, head = str(data.attrs["silenced_head"]).split(".")
    return layer, head


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    layers, each = data["layer"].values, shares(data)
    at = int(np.nanargmax(each[""]))
    text = f"Line of the share of {called(data)} by layer: largest in layer {layers[at]}, {number(float(each[''][at]))}"
    if "control" in each:
        text += f", control there {number(float(each['control'][at]))}"
    found = {
        "layers": f"{text}.",
        "top": f"{called(data).capitalize()}. {bars.top_words(grid_of(data), 'neurons', signed=True)}",
    }
    if "mean_head_score" in data:
        what = "share of the answer's probability that is lost without each head"
        found["heads"] = (
            f"{signed.words(heads_grid(data), what)} Silenced: head {data.attrs['silenced_head']}."
        )
    return found


def control_statement(result: Result) -> str:
    """What the neurons were compared with, and what came out."""
    data = result.data
    cells = grid_of(data)
    if cells.control is None:
        return "No control was run: any head of the block, or any disturbance there, may do the same."
    first = bars.strongest_cells(cells, 1, signed=True)
    largest = points.say(float(cells.values[first[0]])) if first else "none"
    text = f"Control: {data.attrs['control']}. Largest {called(data)} {largest}"
    return f"{text}; largest |control| of all neurons {number(signed.largest(cells.control))}."
