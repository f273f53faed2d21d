"""Figure of an attention knock-out.

`effect`  mean change of the metric by window of layers, with its interval and the control of as many other edges.
          Windows of one width are a line over their first layers; any other sets of layers are marks side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import grid, signed, theme
from dashboards.figures.ablation import UNIT, effect_curves, lines_note, strongest_words
from dashboards.figures.lines import HOVER, LABEL, hover_title, level
from dashboards.figures.points import Series, add_points
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result


def figures(result: Result) -> dict[str, go.Figure]:
    """`effect`."""
    data, figure = result.data, go.Figure()
    title = f"Attention knock-out: change of {data.attrs['metric']}"
    shapes, notes = level(0.0, "no change")
    width = width_of(data)
    names = grid.unique([theme.safe(str(layers)) for layers in data["layers"].values])
    bottom = 60 if width else grid.bottom(names)
    meaning = lines_note(data) if width else "Lines: 95 % intervals." * (data.sizes["prompt"] > 1)
    under = _subtitle(result, meaning)
    made = theme.layout(title, under, plot_height=340, legend_rows=1, right=LABEL, bottom=bottom)
    figure.update_layout(made, shapes=shapes, annotations=notes)
    if width:
        said = [f"layers {a}–{b}" if b > a else f"layer {a}" for a, b in _ends(data)]
        figure.add_traces(
            effect_curves(data, data["first_layer"].values, "knock-out", 0, said if width > 1 else None)
        )
        windows = f"first layer of the window of {width}" if width > 1 else "layer"
        figure.update_layout(HOVER)
        figure.update_xaxes(title={"text": windows}, **hover_title("from layer" if width > 1 else "layer"))
    else:
        for i, (prefix, name) in enumerate((("", "knock-out"), ("control_", "control"))):
            if f"mean_{prefix}effect" in data:
                ends = (data[f"{prefix}effect_{end}"].values for end in ("low", "high"))
                add_points(
                    figure,
                    Series(name, names, data[f"mean_{prefix}effect"].values, *ends, colour=i, form=".3f"),
                )
        figure.update_xaxes(
            title={"text": "blocked in layers"}, type="category", tickangle=-grid.angle(names)
        )
    return {"effect": figure.update_yaxes(title={"text": UNIT})}


def _ends(data: Any) -> list[tuple[int, int]]:
    return [
        (int(a), int(b)) for a, b in zip(data["first_layer"].values, data["last_layer"].values, strict=True)
    ]


def width_of(data: Any) -> int:
    """Layers in each window, if windows are runs of neighbouring layers of one width, one after another; else 0."""
    ends = _ends(data)
    sizes = {len(str(layers).split()) for layers in data["layers"].values}
    widths = {b - a + 1 for a, b in ends}
    in_order = all(a < b for a, b in zip([a for a, _ in ends], [a for a, _ in ends][1:], strict=False))
    return widths.pop() if widths == sizes and len(widths) == 1 and in_order and len(ends) > 1 else 0


def _subtitle(result: Result, *more: str) -> str:
    data, n = result.data, int(result.data.attrs["n_prompts"])
    attrs = data.attrs
    edges = f"{number(float(data['n_edges'].mean()))} edges"
    if "n_control_edges" in data:
        edges += f" ({number(float(data['n_control_edges'].mean()))} in the control)"
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompt{'s' if n > 1 else ''}",
        units=f"{'mean ' if n > 1 else ''}metric of the base run {number(float(data['base_metric'].mean()))}",
        control=str(attrs.get("control", "not run")),
        more=[
            f"Blocked: queries {_short(attrs['queries'])} to keys {_short(attrs['keys'])}, heads {attrs['heads']}, "
            f"{edges}{' a prompt on average' if n > 1 else ''}; {attrs['blocked']}.",
            *more,
        ],
    )


def _short(positions: object) -> str:
    text = str(positions)
    return text if len(text) <= 60 else text[:59] + "…"


def describe(result: Result) -> dict[str, str]:
    """The figure in words."""
    data = result.data
    n = int(data.attrs["n_prompts"])
    labels = [str(layers).replace(" ", ", ") for layers in data["layers"].values]
    strongest = strongest_words(data, "Knock-out", "layers", labels)
    blocked = f"queries {_short(data.attrs['queries'])} to keys {_short(data.attrs['keys'])}"
    control = "" if "mean_control_effect" in data else " No control was run."
    text = (
        f"Lines over {data.sizes['window']} windows of layers: change of {data.attrs['metric']} when the attention of "
        f"{blocked} is blocked, n = {n}. {strongest}{control}"
    )
    return {"effect": text}


def control_statement(result: Result) -> str:
    """What the knock-out was compared with, and what came out."""
    data = result.data
    if "mean_control_effect" not in data:
        return "No control was run: the size of these effects cannot be judged."
    largest = (
        number(signed.largest(np.asarray(data[name].values)))
        for name in ("mean_effect", "mean_control_effect")
    )
    return "Control: {}. Largest |effect| {}; largest |control effect| {}.".format(
        data.attrs["control"], *largest
    )
