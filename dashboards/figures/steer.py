"""Figures of a steering dose–response.

`score`    mean score by strength with its band: steered solid, random directions of the same norm dashed, their band
           from the lowest to the highest of them; the score without steering as a dotted level, and the strengths at
           which quality breaks as dotted verticals.
`kl`       KL(unsteered || steered) of the next-token distribution by strength: what steering costs.
`by_kl`    mean score against KL: what a direction does for what it costs, beside random directions.
`quality`  perplexity under the unsteered model and repeated 4-grams by strength, with the limits that count as broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.bars import error_bars, vertical
from dashboards.figures.lines import HOVER, LABEL, band, hover_title, level
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

KL_RANGE = (0.1, 0.9)
"""Quantiles over prompts that the band of the KL figure spans."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`score`; `kl`, `by_kl` and `quality` where they were measured."""
    made = {"score": score_figure(result)}
    if "kl" in result.data:
        made["kl"] = kl_figure(result)
    if "random_kl" in result.data:
        made["by_kl"] = by_kl_figure(result)
    if "break_strength" in result.data:
        made["quality"] = quality_figure(result)
    return made


def directions(result: Result) -> list[str]:
    """`steered` and its controls, in order."""
    return [str(name) for name in result.data["direction"].values]


def score_name(result: Result) -> str:
    """What is scored, with units: `log-probability difference (nats)`."""
    attrs = result.data["score"].attrs
    name, units = str(attrs.get("long_name", "score")), attrs.get("units")
    return f"{name} ({units})" if units and f"({units})" not in name else name


def baseline(result: Result) -> float | None:
    """Mean score at strength 0, or None if 0 was not measured."""
    at_zero = np.flatnonzero(result.data["strength"].values == 0)
    if not len(at_zero):
        return None
    return float(result.data["mean_score"].isel(direction=0, strength=int(at_zero[0])))


def _zero(result: Result) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    zero = baseline(result)
    return level(zero, "strength 0") if zero is not None else ([], [])


def _label(direction: str) -> str:
    return {"steered": "steered", "random": "random (control)"}.get(direction, direction)


def _style(i: int) -> dict[str, Any]:
    colour = theme.SERIES[i % len(theme.SERIES)]
    dash = "solid" if i == 0 else "dash"
    return {
        "mode": "lines+markers",
        "cliponaxis": False,
        "line": {"color": colour, "width": 2.5 if i == 0 else 2, "dash": dash},
        "marker": {"color": colour, "symbol": theme.SYMBOLS[i % len(theme.SYMBOLS)], "size": 7},
    }


def control_text(result: Result) -> str:
    """What steering is compared with."""
    if len(directions(result)) < 2:
        return "not run"
    return str(result.data.attrs.get("control", "random direction of the same norm"))


def _subtitle(result: Result, *more: str) -> str:
    attrs, n = result.data.attrs, result.data.sizes.get("prompt", 1)
    what = f"direction: {attrs['direction']}" if attrs.get("direction") else ""
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompt{'s' if n > 1 else ''}",
        units=f"{what} at {attrs['site']}" if what and attrs.get("site") else what,
        control=control_text(result),
        more=[note for note in more if note],
    )


def _finish(figure: go.Figure, title: str, under: str, y_title: str, height: int, rows: int = 1) -> go.Figure:
    made = theme.layout(title, under, plot_height=height, legend_rows=rows, right=LABEL)
    figure.update_layout(made, **HOVER)
    figure.update_xaxes(title={"text": "strength"}, **hover_title("strength", ""))
    figure.update_yaxes(title={"text": y_title})
    return figure


def score_figure(result: Result) -> go.Figure:
    """Mean score by strength."""
    data = result.data
    strengths = f32(data["strength"].values)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, direction in enumerate(directions(result)):
        at, name = data.sel(direction=direction), safe(_label(direction))
        low, high = at["score_low"].values, at["score_high"].values
        if direction == "random" and "random_score" in data:
            low, high = (getattr(data["random_score"].values, end)(axis=0) for end in ("min", "max"))
        for trace in band(strengths, low, high, theme.SERIES[i % len(theme.SERIES)], name):
            figure.add_trace(trace)
        interval = " [%{customdata[0]:.3f}, %{customdata[1]:.3f}]" if np.isfinite(low).any() else ""
        figure.add_scatter(
            x=strengths,
            y=f32(at["mean_score"].values),
            name=name,
            customdata=f32(np.stack([low, high], axis=-1)),
            hovertemplate=f"{name}: %{{y:.3f}}{interval}<extra></extra>",
            legendgroup=name,
            **_style(i),
        )
    shaded = _shaded(result) if data.sizes.get("prompt", 1) > 1 else ""
    under = _subtitle(result, shaded, *break_notes(result))
    _finish(figure, "Steering: score by strength", under, f"mean {safe(score_name(result))}", 340)
    shapes, notes = _zero(result)
    figure.update_layout(shapes=[*shapes, *_break_lines(result)], annotations=notes)
    return figure


def _shaded(result: Result) -> str:
    if "random_score" in result.data:
        return "Shaded: 95 % interval over prompts; of the random directions, from the lowest to the highest."
    return "Shaded: 95 % interval over prompts."


def breaks(result: Result) -> list[tuple[str, float, float, float, str]]:
    """(side, signed strength, and the ends of its interval, cause) of each side on which the direction breaks."""
    data, found = result.data, []
    if "break_strength" not in data:
        return found
    for side in data["side"].values:
        at = data.sel(side=side, direction="steered")
        sign = -1.0 if side == "negative" else 1.0
        values = [sign * float(at[name]) for name in ("break_strength", "break_low", "break_high")]
        if np.isfinite(values[0]):
            found.append((str(side), values[0], values[1], values[2], str(at["break_cause"].values)))
    return found


def break_notes(result: Result) -> list[str]:
    """One line on where quality breaks; none where no texts were measured."""
    if "break_strength" not in result.data:
        return []
    largest = float(np.abs(result.data["strength"].values).max())
    end = lambda x: number(x) if np.isfinite(x) else f"beyond {number(largest)}"  # noqa: E731
    parts = [
        f"{number(at)} [{end(low)}, {end(high)}] by {cause}" for _, at, low, high, cause in breaks(result)
    ]
    where = f"at strength {' and '.join(parts)} (dotted)" if parts else f"nowhere up to {number(largest)}"
    return [f"Quality breaks {where}: {result.data.attrs['quality']}."]


def _break_lines(result: Result) -> list[dict[str, Any]]:
    return [vertical(at) for _, at, *_ in breaks(result)]


def kl_figure(result: Result) -> go.Figure:
    """KL to the unsteered next-token distribution by strength."""
    data = result.data
    strengths = f32(data["strength"].values)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    several = data.sizes.get("prompt", 1) > 1
    for i, direction in enumerate(directions(result)):
        kl = data["kl"].sel(direction=direction).transpose("strength", ...).values
        name = safe(_label(direction))
        if several:
            low, high = np.nanquantile(kl, KL_RANGE, axis=1)
            for trace in band(strengths, low, high, theme.SERIES[i % len(theme.SERIES)], name):
                figure.add_trace(trace)
        figure.add_scatter(
            x=strengths,
            y=f32(np.nanmean(kl.reshape(len(strengths), -1), axis=1)),
            name=name,
            hovertemplate=f"{name}: %{{y:.3f}} nats<extra></extra>",
            legendgroup=name,
            **_style(i),
        )
    under = _subtitle(result, "Line: mean. Shaded: 10th to 90th percentile of prompts." if several else "")
    title = "Steering: change of the next-token distribution"
    figure = _finish(figure, title, under, "KL(unsteered‖steered) (nats)", 220)
    figure.update_layout(shapes=_break_lines(result))
    return figure.update_yaxes(rangemode="tozero")


def kl_of(result: Result) -> tuple[str, np.ndarray]:
    """(name of the axis, [direction, strength] mean KL): along the continuation where that was measured."""
    name = "kl_along" if "kl_along" in result.data else "kl"
    axis = (
        "KL along the unsteered continuation (nats per token)"
        if name == "kl_along"
        else "KL of the next token (nats)"
    )
    return axis, result.data[name].mean("prompt").transpose("direction", "strength").values


def by_kl_figure(result: Result) -> go.Figure:
    """Mean score against mean KL, one line for each side of strength 0."""
    data = result.data
    axis, kl = kl_of(result)
    strengths = data["strength"].values
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, direction in enumerate(directions(result)):
        for side, chosen in (("negative", strengths <= 0), ("positive", strengths >= 0)):
            if chosen.sum() < 2:
                continue
            at = data.sel(direction=direction).isel(strength=np.flatnonzero(chosen))
            order = np.argsort(np.abs(at["strength"].values))
            name = safe(f"{_label(direction)}, {side}")
            low, high = (f32(at[f"score_{end}"].values[order]) for end in ("low", "high"))
            style = _style(i)
            style["marker"] = {
                **style["marker"],
                "symbol": theme.SYMBOLS[i] + ("-open" if side == "negative" else ""),
            }
            figure.add_scatter(
                x=f32(kl[i, chosen][order]),
                y=(y := f32(at["mean_score"].values[order])),
                name=name,
                error_y=error_bars(y, low, high) if i == 0 and np.isfinite(low).any() else None,
                customdata=f32(at["strength"].values[order]),
                hovertemplate=(
                    f"{name}<br>strength %{{customdata:.3g}}<br>KL %{{x:.3f}}, score %{{y:.3f}}<extra></extra>"
                ),
                **style,
            )
    under = _subtitle(
        result, "Marks: the strengths measured; filled: positive. Bars: 95 % interval over prompts."
    )
    figure = _finish(
        figure,
        "Steering: score for what it costs",
        under,
        f"mean {safe(score_name(result))}",
        300,
        rows=2,
    )
    figure.update_layout(hovermode="closest", legend={"entrywidth": 170})
    shapes, notes = _zero(result)
    figure.update_layout(shapes=shapes, annotations=notes)
    return figure.update_xaxes(title={"text": axis}, rangemode="tozero", unifiedhovertitle=None)


PANELS = (("cross_entropy", "perplexity"), ("repetition", "repeated 4-grams"))


def quality_figure(result: Result) -> go.Figure:
    """Perplexity (log axis) above repetition, with the limits beyond which quality counts as broken."""
    data = result.data
    strengths = f32(data["strength"].values)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1)
    shapes, notes = [], []
    zero = int(np.flatnonzero(data["strength"].values == 0)[0])
    for row, (measure, shown) in enumerate(PANELS, start=1):
        at = data.sel(measure=measure)
        transform = np.exp if measure == "cross_entropy" else np.asarray
        for i, direction in enumerate(directions(result)):
            one, name = at.sel(direction=direction), safe(_label(direction))
            mean, low, high = (transform(one[n].values) for n in ("mean_value", "value_low", "value_high"))
            for trace in band(strengths, low, high, theme.SERIES[i], f"{name} {shown}", group=name):
                figure.add_trace(trace, row=row, col=1)
            hover = f"{name}: {shown} %{{y:.3g}}<extra></extra>"
            figure.add_scatter(
                x=strengths, y=f32(mean), name=name, legendgroup=name, showlegend=row == 1, hovertemplate=hover,
                row=row, col=1, **_style(i),
            )  # fmt: skip
        base = float(at["mean_value"].isel(direction=0, strength=zero))
        multiple, rise = (float(data.attrs[f"quality_{n}"]) for n in ("perplexity", "repetition"))
        limit = np.exp(base) * multiple if measure == "cross_entropy" else base + rise
        shape, note = level(limit, "limit", axis="" if row == 1 else "2")
        if measure == "cross_entropy":
            note[0]["y"] = np.log10(limit)  # annotations on a log axis are placed by the exponent
        shapes, notes = [*shapes, *shape], [*notes, *note]
    what = "Of greedy continuations, under the unsteered model. Shaded: 95 % interval over prompts."
    under = _subtitle(result, what, *break_notes(result))
    figure.update_layout(template=theme.TEMPLATES["light"])
    figure = _finish(figure, "Steering: quality by strength", under, "perplexity", 380)
    lines = [dict(line, yref="paper") for line in _break_lines(result)]
    figure.update_layout(shapes=[*shapes, *lines], annotations=notes)
    figure.update_xaxes(title={"text": ""}, row=1, col=1)
    figure.update_yaxes(type="log", row=1, col=1)
    return figure.update_yaxes(title={"text": "share of repeated 4-grams"}, rangemode="tozero", row=2, col=1)
