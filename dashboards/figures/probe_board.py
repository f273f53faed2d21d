"""Figures on a board: which squares a prediction hangs on, and how well a probe reads each square or passage.

Of a `latent_saliency` result: `saliency`, the fall of the predicted move's probability where a square is
flipped, beside random directions of the same norms on one colour range; stones are drawn (● mine, ○ yours), grey
squares were not flipped.

Of a `probe_board` result: `layers`, the mean error by site with its controls; `board`, the error of each square
at the best site of each kind of label, as a board, or as a map of passages where the squares are those of a
lattice maze.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.signed import NO_CELL
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

STONES = np.array(["", "●", "○"])


def figures(result: Result) -> dict[str, go.Figure]:
    """`saliency`; or `layers` and `board`."""
    if result.kind == "latent_saliency":
        return {"saliency": saliency_figure(result)}
    return {"layers": layers_figure(result), "board": board_figure(result)}


def saliency_figure(result: Result, prompt: int = 0) -> go.Figure:
    """The map of one prompt beside its control."""
    data = result.data.isel(prompt=prompt)
    panels = [("saliency", "a flipped square"), ("control", "random directions (control)")]
    most = max(float(np.nanmax(np.abs(data[name].values))) for name, _ in panels)
    figure = make_subplots(1, 2, horizontal_spacing=0.06, subplot_titles=[text for _, text in panels])
    columns, rows = _names(data.sizes["row"])
    for i, (name, _) in enumerate(panels, 1):
        figure.add_trace(
            go.Heatmap(
                z=f32(data[name].values), x=columns, y=rows, text=STONES[data["board"].values.astype(int)],
                texttemplate="%{text}", textfont={"size": 16}, coloraxis="coloraxis", xgap=1, ygap=1,
                hovertemplate=f"%{{x}}%{{y}}: {name} %{{z:.3f}}<extra></extra>", hoverongaps=False,
            ), 1, i,
        )  # fmt: skip
    _square(figure, 2)
    shown = (
        f"Prompt {int(data['prompt'])} of {result.data.sizes['prompt']}. "
        if result.data.sizes["prompt"] > 1
        else ""
    )
    move, probability = str(data["move"].values), number(float(data["probability"]))
    note = f"{shown}Move {move!r}, probability {probability}. ● mine, ○ yours."
    n = int(np.isfinite(data["saliency"].values).sum())
    under = theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} squares flipped",
        control=str(result.data.attrs["control"]),
        more=[note],
    )
    title = "Latent saliency: what the predicted move hangs on"
    figure.update_layout(theme.layout(title, under, plot_height=320, right=80))
    bar = {"title": {"text": "p(move) − p(move | flipped)"}}
    return figure.update_layout(
        coloraxis={"colorscale": theme.DIVERGING, "cmin": -most, "cmax": most, "colorbar": bar},
        plot_bgcolor=NO_CELL,
    )


def layers_figure(result: Result) -> go.Figure:
    """Mean error over squares by site."""
    data = result.data
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    x = np.arange(data.sizes["site"])
    colour = 0
    for name in data["labels"].values:
        for kind in data["kind"].values:
            at = data.sel(labels=name, kind=kind)
            control = str(kind) in ("shuffled", "untrained")
            one = Curve(
                x, at["mean_error"].values, f"{name}, {kind}", colour=colour, low=at["mean_error_low"].values,
                high=at["mean_error_high"].values, control=control,
            )  # fmt: skip
            figure.add_traces(curve(one))
            colour += 1
    shapes, notes = [], []
    floors = sorted(
        {round(float(data["position_error"].sel(labels=n).mean()), 4) for n in data["labels"].values}
    )
    for floor in floors:
        shape, note = level(floor, "majority")
        shapes, notes = shapes + shape, notes + note
    made = theme.layout(
        "Board probes: error by site", _subtitle(result, "Shaded: 95 % interval over groups. Dashed: controls."),
        plot_height=340, legend_rows=2, right=LABEL,
    )  # fmt: skip
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    labels = [
        safe(str(site).replace("blocks.", "").replace("hook_resid_", "")) for site in data["site"].values
    ]
    figure.update_xaxes(
        tickvals=x.tolist(), ticktext=labels, title={"text": "site"}, **hover_title("site", "")
    )
    return figure.update_yaxes(title={"text": "share of squares read wrong"}, rangemode="tozero")


def board_figure(result: Result, kind: str | None = None) -> go.Figure:
    """Error of each square (or passage) at the best site, one panel for each kind of label."""
    data = result.data
    kind = str(data["kind"].values[0]) if kind is None else kind
    names = [str(n) for n in data["labels"].values]
    best = [int(np.argmin(data["mean_error"].sel(labels=n, kind=kind).values)) for n in names]
    size, maze = _size(data.sizes["square"])
    panels = [f"{safe(n)}: {safe(str(data['site'].values[b]))}" for n, b in zip(names, best, strict=True)]
    figure = make_subplots(1, len(names), horizontal_spacing=0.06, subplot_titles=panels)
    most = 0.0
    for i, (name, at) in enumerate(zip(names, best, strict=True), 1):
        error = data["error"].sel(labels=name, kind=kind).values[at]
        most = max(most, float(error.max()))
        if maze:
            z, x, y, text = _lattice(error, size)
        else:
            z, (x, y) = error.reshape(size, size), _names(size)
            text = np.char.add(np.array(x)[None, :], np.array(y)[:, None])
        figure.add_trace(
            go.Heatmap(
                z=f32(z), x=x, y=y, customdata=text, coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False,
                hovertemplate="%{customdata}: error %{z:.3f}<extra></extra>",
            ), 1, i,
        )  # fmt: skip
    _square(figure, len(names))
    under = _subtitle(result, f"Probe: {kind}, at the site of its least mean error.")
    what = "passage" if maze else "square"
    figure.update_layout(
        theme.layout(f"Board probes: error of each {what}", under, plot_height=320, right=80)
    )
    bar = {"title": {"text": "share of rows read wrong"}}
    scale = {"colorscale": theme.SEQUENTIAL, "cmin": 0, "cmax": most or 1, "colorbar": bar}
    return figure.update_layout(coloraxis=scale, plot_bgcolor=NO_CELL)


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    if result.kind == "latent_saliency":
        data = result.data.isel(prompt=0)
        values = data["saliency"].values
        row, column = np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)
        columns, rows = _names(len(values))
        control = float(np.nanmax(np.abs(data["control"].values)))
        said = (
            f"Board of {len(values)} by {len(values)} squares. The move {str(data['move'].values)!r} (probability "
            f"{number(float(data['probability']))}) hangs most on {columns[column]}{rows[row]}: flipped, its "
            f"probability falls by {number(float(values[row, column]))}; random directions change it by at most "
            f"{number(control)}."
        )
        return {"saliency": said}
    data, parts = result.data, []
    for name in data["labels"].values:
        for kind in data["kind"].values:
            at = data.sel(labels=name, kind=kind)
            best = int(np.argmin(at["mean_error"].values))
            value, low, high = (number(float(at[f"mean_error{end}"][best])) for end in ("", "_low", "_high"))
            parts.append(
                f"{name}, {kind}: least error {value} ({low} to {high}) at {at['site'].values[best]}"
            )
    floor = ", ".join(
        f"{n} {number(float(data['position_error'].sel(labels=n).mean()))}" for n in data["labels"].values
    )
    kind = str(data["kind"].values[0])
    worst = [
        f"{n} from {number(float(e.min()))} to {number(float(e.max()))}"
        for n in data["labels"].values
        for e in [
            data["error"]
            .sel(labels=n, kind=kind)
            .values[int(np.argmin(data["mean_error"].sel(labels=n, kind=kind).values))]
        ]
    ]
    return {
        "layers": f"Lines of the mean error over {data.sizes['site']} sites. {'; '.join(parts)}. Majority: {floor}.",
        "board": f"Error of each of {data.sizes['square']} squares, probe {kind}: {'; '.join(worst)}.",
    }


def control_statement(result: Result) -> str:
    """What was compared, and what came out."""
    if result.kind == "latent_saliency":
        summary = result.summary
        flip, control = (number(summary[f"mean_absolute_{n}"]) for n in ("saliency", "control"))
        return f"Control: {result.data.attrs['control']}. Mean absolute change {flip}, control {control}."
    kinds = [str(k) for k in result.data["kind"].values if str(k) in ("shuffled", "untrained")]
    return f"Control: {', '.join(kinds) or 'none but the majority class'}. {describe(result)['layers']}"


def _names(size: int) -> tuple[list[str], list[str]]:
    """Letters of the columns and numbers of the rows, as `othello_rules.square_name` has them."""
    return [chr(ord("a") + c) for c in range(size)], [str(r + 1) for r in range(size)]


def _size(n_squares: int) -> tuple[int, bool]:
    """Cells on a side, and whether these are the passages of a lattice."""
    side = round(n_squares**0.5)
    if side * side == n_squares:
        return side, False
    size = round((1 + (1 + 2 * n_squares) ** 0.5) / 2)
    return size, True


def _lattice(values: np.ndarray, size: int) -> tuple[np.ndarray, list[float], list[float], np.ndarray]:
    """Passages between cells on a doubled grid: downward ones first, then rightward (`maze_grid.passages`)."""
    wide = 2 * size - 1
    z, text = np.full((wide, wide), np.nan), np.full((wide, wide), "", dtype=object)
    half = size * (size - 1)
    z[1::2, ::2], z[::2, 1::2] = values[:half].reshape(size - 1, size), values[half:].reshape(size, size - 1)
    for r in range(wide):
        for c in range(wide):
            if (r + c) % 2:
                a, b = (r // 2, c // 2), ((r + 1) // 2, (c + 1) // 2)
                text[r, c] = f"({a[0]},{a[1]})–({b[0]},{b[1]})"
    at = [i / 2 for i in range(wide)]
    return z, at, at, text


def _square(figure: go.Figure, n: int) -> None:
    for i in range(1, n + 1):
        figure.update_yaxes(
            autorange="reversed", scaleanchor=f"x{'' if i == 1 else i}", showgrid=False, row=1, col=i
        )
        figure.update_xaxes(constrain="domain", side="bottom", showgrid=False, row=1, col=i)


def _subtitle(result: Result, *more: str) -> str:
    attrs: dict[str, Any] = result.data.attrs
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{attrs['n_test']} test rows, {attrs['n_groups']} groups in all",
        control=", ".join(str(k) for k in result.data["kind"].values if str(k) in ("shuffled", "untrained"))
        or "majority",
        more=[note for note in more if note],
    )
