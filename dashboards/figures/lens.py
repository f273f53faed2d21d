"""Figures of a logit lens.

`lens`    layer × position: the top token of each cell, colour its probability (0–1). Outlined: the layers
          from which on the target stays top-1, in each column where it is top-1 after the last layer.
`layers`  at the last position, over layers: entropy, KL to the final distribution, rank of the target with
          the control (median rank of random tokens) dashed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, theme
from dashboards.figures.theme import f32

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
    n_positions = result.data.sizes["position"]
    n_layers = result.data.sizes["layer"]
    columns, cut = grid.last_columns(n_layers, n_positions)
    data = result.data.isel(position=columns)
    layers = grid.layer_labels(data["layer"].values)
    labels = [
        grid.token_label(int(p), str(t))
        for p, t in zip(data["position"].values, data["token"].values, strict=True)
    ]
    text = grid.cell_text(data["top_token"].values[:, :, 0])
    hover, shown = _hover(data)
    p = f32(data["top_probability"].values[:, :, 0])
    cells = go.Heatmap(
        name="top-1 probability",
        x=labels,
        y=layers,
        z=p,
        coloraxis="coloraxis",
        hovertext=hover,
        customdata=f32(np.stack([data[name].values for name in IN_HOVER], axis=-1)),
        hovertemplate=_hover_template(str(data.attrs["target"])),
        **grid.gaps(len(labels)),
    )
    if text is not None:
        cells.update(text=text)
    k = data.sizes["k"]
    notes = [_depth_sentence(result), cut]
    if text is not None:
        notes.append(f"In cells, · stands for a leading space; hover shows tokens in full, with the top {k}.")
    if shown < k:
        notes.append(f"Hover shows the top token of each cell; the result holds the top {k}.")
    under = theme.subtitle(
        model=theme.model_name(result),
        n=f"1 prompt, {n_positions} positions × {n_layers} layers",
        units="colour: probability of the top token",
        more=[note for note in notes if note],
    )
    title = "Logit lens: the token each layer would say next"
    made = theme.layout(
        title, under, plot_height=grid.row_height(n_layers, text is not None), bottom=grid.bottom(labels)
    )
    x, y = grid.axes("position and token", labels, layers)
    shapes = _outlines(data["target_rank"].values)
    bar = {"title": {"text": "top-1 probability"}}
    scale = {"colorscale": theme.SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": bar}
    traces = [cells] if text is None else [cells, _texts(labels, layers, text, p)]
    return go.Figure(traces, layout={**made, "xaxis": x, "yaxis": y, "shapes": shapes, "coloraxis": scale})


def _texts(labels: list[str], layers: list[str], text: np.ndarray, p: np.ndarray) -> go.Scatter:
    """The cells' texts. A heatmap's own text is grey on the middle of Cividis, where it cannot be read."""
    return go.Scatter(
        x=np.tile(np.array(labels, dtype=object), len(layers)),
        y=np.repeat(np.array(layers, dtype=object), len(labels)),
        mode="text",
        text=text.ravel(),
        textfont={"size": theme.SIZE["cell"], "color": grid.text_colours(p).ravel()},
        hoverinfo="skip",
        showlegend=False,
    )


def _hover(data) -> tuple[np.ndarray, int]:
    """Top-k tokens with probabilities of each cell as text, and how many of the k it says."""
    tokens, p = data["top_token"].values, data["top_probability"].values
    n_layers, n_columns, k = tokens.shape
    shown = k if n_layers * n_columns <= grid.HOVER_CELLS else 1
    texts = np.empty((n_layers, n_columns), dtype=object)
    for i in range(n_layers):
        for j in range(n_columns):
            texts[i, j] = "<br>".join(
                f"{grid.safe(repr(str(tokens[i, j, m])))} {p[i, j, m]:.3f}" for m in range(shown)
            )
    return texts, shown


def _hover_template(target: str) -> str:
    name = grid.safe(repr(target))
    return (
        "<b>layer %{y}, position %{x}</b><br>%{hovertext}<br>"
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
    target = grid.safe(repr(str(data.attrs["target"])))
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
            hovertemplate=f"layer %{{x:.0f}}: {label} %{{y{form}}}<extra></extra>",
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
        hovertemplate=f"layer %{{x:.0f}}: {control} %{{y:,.0f}}<extra></extra>",
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
    figure.update_layout(theme.layout(title, under, plot_height=450, legend_rows=1))
    return figure
