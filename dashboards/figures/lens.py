"""Figures of a logit lens.

`lens`    layer × position: the top token of each cell, colour its probability (0–1). Outlined: the layers
          from which on the target stays top-1, in each column where it is top-1 after the last layer.
`layers`  at the last position, over layers: entropy, KL to the final distribution, rank of the target with
          the control (median rank of random tokens) dashed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, theme
from dashboards.figures.lines import HOVER, hover_title
from dashboards.figures.theme import f32, safe

if TYPE_CHECKING:
    from workbench.results import Result


IN_HOVER = ("entropy", "kl_to_final", "target_rank", "target_probability", "control_rank")
"""Numbers of a cell in `customdata`, in the order that `_hover_template` says them."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`lens` and `layers`."""
    return {"lens": lens_figure(result), "layers": layers_figure(result)}


def control_name(result: Result) -> str:
    """What the target's rank is compared with."""
    return f"median rank of {result.data.attrs.get('n_control', '?')} random tokens"


def lens_figure(result: Result) -> go.Figure:
    """The grid of decoded tokens."""
    n_layers, n_positions = result.data.sizes["layer"], result.data.sizes["position"]
    columns, note = grid.last_columns(n_layers, n_positions)
    data = result.data.isel(position=columns)
    layers = grid.layer_labels(data["layer"].values)
    tokens = zip(data["position"].values, data["token"].values, strict=True)
    labels = [grid.token_label(int(p), str(token)) for p, token in tokens]
    top = np.array(
        [grid.visible(str(token)) for token in data["top_token"].values[:, :, 0].ravel()], dtype=object
    )
    top = top.reshape(len(layers), len(labels))
    written = grid.fits(len(labels))
    cells, shown = _cells(data, labels, layers, top)
    more = f" of the {data.sizes['k']} in the result" if shown < data.sizes["k"] else ""
    dot = (
        "In cells, · stands for a leading space; hover shows tokens in full, with the"
        if written
        else "Hover: the"
    )
    notes = [_depth_sentence(result), note, f"{dot} top {shown}{more}."]
    under = theme.subtitle(
        model=theme.model_name(result),
        n=f"1 prompt, {n_positions} positions × {n_layers} layers",
        units="colour: probability of the top token",
        more=[note for note in notes if note],
    )
    height, bottom = grid.row_height(n_layers, written), grid.bottom(labels)
    made = theme.layout(
        "Logit lens: the token each layer would say next", under, plot_height=height, bottom=bottom
    )
    x, y = grid.axes("position and token", labels, layers)
    bar = {"title": {"text": "top-1 probability"}}
    made |= {"xaxis": x, "yaxis": y, "shapes": _outlines(data["target_rank"].values)}
    made["coloraxis"] = {"colorscale": theme.SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": bar}
    texts = [grid.text_trace(labels, layers, grid.cut(top), cells.z)] if written else []
    return go.Figure([cells, *texts], layout=made)


def _cells(data, labels: list[str], layers: list[str], top: np.ndarray) -> tuple[Any, int]:
    """The heatmap with everything about a cell in its hover, and how many of the top-k tokens are in it."""
    shown = min(data.sizes["k"], grid.HOVER_LINES, max(1, grid.HOVER_TOKENS // top.size))
    # Where one token is all there is room for, the hover takes it from `text`.
    hover = _hover(data, shown) if shown > 1 else None
    cells = go.Heatmap(
        name="top-1 probability",
        x=labels,
        y=layers,
        z=f32(data["top_probability"].values[:, :, 0]),
        coloraxis="coloraxis",
        text=np.vectorize(safe, otypes=[object])(top),
        hovertext=hover,
        customdata=f32(np.stack([data[name].values for name in IN_HOVER], axis=-1)),
        hovertemplate=_hover_template(
            str(data.attrs["target"]), "%{hovertext}" if shown > 1 else "%{text} %{z:.3f}"
        ),
        **grid.gaps(len(labels)),
    )
    return cells, shown


def _hover(data, shown: int) -> np.ndarray:
    """The first tokens of each cell with their probabilities, one per line."""
    tokens, p = data["top_token"].values, data["top_probability"].values
    texts = np.empty(tokens.shape[:2], dtype=object)
    for i, j in np.ndindex(texts.shape):
        lines = (f"{safe(repr(str(tokens[i, j, m])))} {p[i, j, m]:.3f}" for m in range(shown))
        texts[i, j] = "<br>".join(lines)
    return texts


def _hover_template(target: str, tokens: str) -> str:
    name = safe(repr(target))
    return (
        f"<b>layer %{{y}}, position %{{x}}</b><br>{tokens}<br>"
        "entropy %{customdata[0]:.3f} nats, KL to final %{customdata[1]:.3f} nats<br>"
        f"{name}: rank %{{customdata[2]:,.0f}}, probability %{{customdata[3]:.3g}}<br>"
        "control (random tokens): median rank %{customdata[4]:,.0f}<extra></extra>"
    )


def _outlines(ranks: np.ndarray) -> list[dict]:
    starts = grid.last_runs(ranks == 1)
    last = ranks.shape[0] - 1
    return [shape for j, i in enumerate(starts) if i is not None for shape in grid.outline(j, j, i, last)]


def _depth_sentence(result: Result) -> str:
    """Whether and from where on the target is top-1 at the last position, with the control's rank."""
    data = result.data
    ranks = data["target_rank"].values
    target, layers = repr(str(data.attrs["target"])), data["layer"].values
    start = grid.last_runs(ranks == 1)[-1]
    control = theme.number(float(data["control_rank"].values[-1, -1]))
    if start is None:
        rank = theme.number(int(ranks[-1, -1]))
        return (
            f"At the last position {target} is not top-1 after the last layer: rank {rank} "
            f"(control, {control_name(result)}: {control})."
        )
    return (
        f"Outlined: {target} stays top-1 from layer {int(layers[start])} on at the last position "
        f"(control, {control_name(result)} there: {control})."
    )


def layers_figure(result: Result) -> go.Figure:
    """Entropy, KL and rank at the last decoded position."""
    data = result.data.isel(position=-1)
    target = safe(repr(str(data.attrs["target"])))
    layers = f32(data["layer"].values)
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    line = {"color": theme.SERIES[0], "width": 2}
    marker = {"size": 5, "color": theme.SERIES[0]}
    panels = [("entropy", "entropy (nats)", ":.3f"), ("kl_to_final", "KL to final (nats)", ":.3f")]
    panels.append(("target_rank", f"rank of {target}", ":,.0f"))
    for row, (name, label, form) in enumerate(panels, start=1):
        trace = go.Scatter(
            x=layers,
            y=f32(data[name].values),
            name=label,
            mode="lines+markers",
            line=line,
            marker=marker,
            cliponaxis=False,
            hovertemplate=f"{label} %{{y{form}}}<extra></extra>",
            showlegend=row == 3,
        )
        figure.add_trace(trace, row=row, col=1)
        axis_title = label if row < 3 else f"{label}<br>(log, 1 = top)"
        figure.update_yaxes(title={"text": axis_title}, row=row, col=1)
    control = f"control: {control_name(result)}"
    trace = go.Scatter(
        x=layers,
        y=f32(data["control_rank"].values),
        name=control,
        mode="lines",
        line={"color": theme.SERIES[1], "width": 2, "dash": "dash"},
        hovertemplate=f"{control} %{{y:,.0f}}<extra></extra>",
    )
    figure.add_trace(trace, row=3, col=1)
    figure.update_yaxes(type="log", dtick=1, row=3, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title={"text": "layer"}, row=3, col=1)
    under = theme.subtitle(
        model=theme.model_name(result),
        n=f"1 prompt, {len(layers)} layers",
        control=control_name(result),
    )
    at = repr(str(data["token"].values))
    title = f"Logit lens by layer at position {int(data['position'])} {at}"
    figure.update_xaxes(hover_title("layer"))
    figure.update_layout(theme.layout(title, under, plot_height=450, legend_rows=1), **HOVER)
    return figure
