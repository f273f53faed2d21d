"""Figures of an input attribution.

`tokens`     the prompts as strips of tokens, line by line: colour and number are the attribution (PuOr, zero at white,
             symmetric range); the thin strip under a line is the control's root mean square over its draws, on the
             same range.
`positions`  where several prompts have one length: the mean over them with its interval, beside the control.
`curves`     deletion and insertion, where they were measured: the share of the metric kept, beside random orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from dashboards.figures import grid, theme
from dashboards.figures.theme import f32, number, safe
from dashboards.figures.token_curves import curves_figure, ends_sentence, positions_figure, subtitle, words

if TYPE_CHECKING:
    from workbench.results import Result

PROMPTS = 8
"""So many prompts are drawn,"""
LINES = 60
"""so many lines of tokens in all,"""
COLUMNS = 12
"""and so many tokens a line at most."""
PITCH, CELL, STRIP = 46, 31, 8
"""Pixels from line to line, and the heights of a line of tokens and of its control."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`tokens`, and `positions` and `curves` where the result has them."""
    made = {"tokens": tokens_figure(result)}
    if "mean_attribution" in result.data:
        made["positions"] = positions_figure(result)
    if "deletion" in result.data:
        made["curves"] = curves_figure(result)
    return made


def control_rms(data: Any) -> np.ndarray | None:
    """[prompt, position] root mean square of the control over its draws; None if it was not run."""
    if "control_attribution" not in data:
        return None
    return np.sqrt((data["control_attribution"].values ** 2).mean(1))


@dataclass(frozen=True)
class Line:
    """A piece of a prompt."""

    prompt: int
    start: int
    stop: int
    label: str


def lines_of(data: Any) -> tuple[list[Line], int, str]:
    """The lines that are drawn, how many tokens each holds, and a sentence if something is left out."""
    lengths = data["length"].values.tolist()
    columns = ceil(max(lengths) / ceil(max(lengths) / COLUMNS))
    found: list[Line] = []
    for prompt, length in enumerate(lengths[:PROMPTS]):
        for start in range(0, length, columns):
            stop = min(start + columns, length)
            where = f"{start}–{stop - 1}" if length > columns else ""
            name = f"prompt {prompt}" if len(lengths) > 1 or not where else ""
            found.append(Line(prompt, start, stop, ", ".join(part for part in (name, where) if part)))
    drawn = found[:LINES]
    notes = []
    if len(lengths) > PROMPTS:
        notes.append(f"The first {PROMPTS} of {len(lengths)} prompts")
    if len(found) > LINES:
        last = drawn[-1]
        notes.append(f"up to token {last.stop} of {lengths[last.prompt]} of prompt {last.prompt}")
    text = ", ".join(notes)
    return drawn, columns, f"{text[0].upper()}{text[1:]} are drawn; the result holds all." if text else ""


def tokens_figure(result: Result) -> go.Figure:
    """The strips."""
    data, rms = result.data, control_rms(result.data)
    lines, columns, cut = lines_of(data)
    lines = lines[::-1]  # the first one is drawn at the top
    values, control = _laid_out(data["attribution"].values, lines, columns), None
    labels, across = [line.label for line in lines], [str(i) for i in range(columns)]
    said, customdata, template = _hover(data, rms, lines, columns)
    common = {"x": across, "y": labels, "coloraxis": "coloraxis", "customdata": customdata, "hovertext": said}
    common |= {"hovertemplate": template, "hoverongaps": False, "xgap": 1}
    names = _names(data, lines, columns)
    cells = go.Heatmap(name="attribution", z=f32(values), ygap=PITCH - CELL, **common)
    figure = go.Figure(cells.update(text=np.vectorize(safe, otypes=[object])(names)))
    if rms is not None:
        control = _laid_out(rms, lines, columns)
        name = f"control (root mean square of {data.sizes['draw']} draws)"
        figure.add_heatmap(name=name, z=f32(control), ygap=PITCH - STRIP, yaxis="y2", **common)
    limit = max(_largest(values), _largest(control)) or 1.0
    figure.add_trace(_texts(data, lines, names, across, labels, values / limit))
    notes = [ends_sentence(data), _error_sentence(data), strongest_sentence(data), cut]
    same = ", = for a token that the baseline has as well" if not data["moved"].values.all() else ""
    strip = " Thin strips: root mean square of the control's draws." if rms is not None else ""
    notes += [f"In cells, · stands for a leading space{same}.", strip.strip()]
    title = f"Input attribution: {data.attrs['metric']}"
    made = theme.layout(title, subtitle(result, *notes), plot_height=PITCH * len(lines) + 6, bottom=46)
    figure.update_layout(made)
    bar = {"lenmode": "pixels", "len": max(PITCH * len(lines) + 6, 2 * PITCH)}
    n, down = len(lines), (CELL / 2 + 1.5 + STRIP / 2) / PITCH
    below = 6 / PITCH
    axis = {
        "type": "category",
        "showgrid": False,
        "ticks": "outside",
        "tickcolor": "rgba(0,0,0,0)",
        "dtick": 1,
    }
    figure.update_layout(
        coloraxis={
            "colorscale": theme.DIVERGING,
            "cmin": -limit,
            "cmax": limit,
            "cmid": 0,
            "colorbar": {"title": {"text": "metric's units"}, "nticks": 5, "y": 1, "yanchor": "top", **bar},
        },
        xaxis={**axis, "title": {"text": _x_title(lines, columns)}, "range": [-0.5, columns - 0.5]},
        yaxis={**axis, "title": {"text": ""}, "range": [-0.5 - below, n - 0.5]},
        yaxis2={
            **axis,
            "overlaying": "y",
            "range": [-0.5 - below + down, n - 0.5 + down],
            "showticklabels": False,
        },
    )
    wrapped = any(line.start for line in lines)
    return figure.update_xaxes(showticklabels=not wrapped)


def _x_title(lines: list[Line], columns: int) -> str:
    if not any(line.start for line in lines):
        return "position"
    return f"tokens, {columns} a line"


def _laid_out(values: np.ndarray, lines: list[Line], columns: int, missing: Any = np.nan) -> np.ndarray:
    """[prompt, position, ...] as [line, column, ...]."""
    shape = (len(lines), columns, *values.shape[2:])
    found = np.full(shape, missing, dtype=values.dtype)
    for i, line in enumerate(lines):
        found[i, : line.stop - line.start] = values[line.prompt, line.start : line.stop]
    return found


def _largest(values: np.ndarray | None) -> float:
    return 0.0 if values is None else float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _hover(
    data: Any, rms: np.ndarray | None, lines: list[Line], columns: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """[line, column] sentences, [line, column, number], and the template that holds both."""
    numbers, says = [data["attribution"].values], ["attribution %{customdata[0]:.4f}"]
    if "attribution_se" in data:
        numbers.append(data["attribution_se"].values)
        says[0] += " ± %{customdata[1]:.4f} (standard error over samples)"
    if rms is not None:
        says.append(f"control %{{customdata[{len(numbers)}]:.4f}} (root mean square)")
        numbers.append(rms)
    tokens, moved = data["token"].values, data["moved"].values
    others = data["baseline_token"].values if "baseline_token" in data else None
    said = np.full(tokens.shape, "", dtype=object)
    for prompt, position in _drawn(lines):
        text = f"prompt {prompt}, position {position}: {str(tokens[prompt, position])!r}"
        if not moved[prompt, position]:
            text += ", the same in the baseline"
        elif others is not None:
            text += f", baseline {str(others[prompt, position])!r}"
        said[prompt, position] = safe(text)
    template = f"<b>%{{hovertext}}</b><br>{'<br>'.join(says)}<extra></extra>"
    stacked = f32(np.stack(numbers, axis=-1))
    return _laid_out(said, lines, columns, ""), _laid_out(stacked, lines, columns), template


def _names(data: Any, lines: list[Line], columns: int) -> np.ndarray:
    """[line, column] tokens as they can be seen."""
    tokens = data["token"].values
    names = np.full(tokens.shape, "", dtype=object)
    for at in _drawn(lines):
        names[at] = grid.visible(str(tokens[at]))
    return _laid_out(names, lines, columns, "")


def _drawn(lines: list[Line]) -> Iterator[tuple[int, int]]:
    """Prompt and position of each token that is drawn: of thousands of prompts only those need words."""
    return ((line.prompt, position) for line in lines for position in range(line.start, line.stop))


def _texts(
    data: Any, lines: list[Line], names: np.ndarray, across: list[str], labels: list[str], share: np.ndarray
) -> go.Scatter:
    """Token and number of each cell, in black or white."""
    columns, names = len(across), grid.cut(names)
    values = _laid_out(data["attribution"].values, lines, columns)
    moved = _laid_out(data["moved"].values, lines, columns, False)
    text = np.full(names.shape, "", dtype=object)
    for at in zip(*np.nonzero(np.isfinite(values)), strict=True):
        text[at] = f"{names[at]}<br>{number(float(values[at]), 2) if moved[at] else '='}"
    return go.Scatter(
        x=np.tile(np.array(across, dtype=object), len(labels)),
        y=np.repeat(np.array(labels, dtype=object), columns),
        mode="text",
        text=text.ravel(),
        textfont={"size": theme.SIZE["cell"], "color": text_colours(share).ravel()},
        hoverinfo="skip",
        showlegend=False,
    )


def text_colours(share: np.ndarray) -> np.ndarray:
    """Black or white for text on the diverging colours of -1 to 1, whichever contrasts more (at least 4.5 to 1)."""
    stops = np.array([hex_to_rgb(colour) for _, colour in theme.DIVERGING], dtype=float) / 255
    where = np.linspace(-1, 1, len(stops))
    flat = np.nan_to_num(share)
    rgb = np.stack([np.interp(flat, where, channel) for channel in stops.T], axis=-1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(luminance > 0.1791, "#000", "#fff").astype(object)


def _error_sentence(data: Any) -> str:
    """How far the sum is from what it should be."""
    error, relative = np.abs(data["completeness_error"].values), data["relative_error"].values
    worst = int(error.argmax())
    largest = "Largest completeness error" if len(error) > 1 else "Completeness error"
    text = f"{largest} {number(float(error[worst]), 2)}"
    if np.isfinite(relative).any():
        text += f", {number(100 * float(np.nanmax(relative)), 2)} % of metric − baseline metric"
    used, n = data["steps"].values, int(data["converged"].sum())
    if data.attrs["method"] != "gradient_x_input":
        steps = str(used[0]) if len(set(used.tolist())) == 1 else f"{used.min()} to {used.max()}"
        text += f", after {steps} {'samples' if data.attrs['method'] == 'expected_gradients' else 'steps'}"
    within = f"{n} of {len(used)} within {number(100 * float(data.attrs['tolerance']), 2)} %"
    return f"{text}; {within}."


def strongest_sentence(data: Any) -> str:
    """The token of largest |attribution|, with its control."""
    values, rms = data["attribution"].values, control_rms(data)
    at = np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)
    where = f"position {at[1]} {str(data['token'].values[at])!r}"
    where = f"prompt {at[0]}, {where}" if len(values) > 1 else where
    control = "" if rms is None else f" (control {number(float(rms[at]), 2)})"
    return f"Strongest: {where}: {number(float(values[at]))}{control}."


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data, n = result.data, result.data.sizes["prompt"]
    made = {
        "tokens": (
            f"{n} prompt{'s' if n > 1 else ''} as strips of tokens, coloured by their attribution to "
            f"{data.attrs['metric']}. {ends_sentence(data)} {strongest_sentence(data)} {_error_sentence(data)} "
            f"{lines_of(data)[2]}"
        ).strip()
    }
    return made | words(result)


def control_statement(result: Result) -> str:
    """What the attribution was compared with, and what came out."""
    data, rms = result.data, control_rms(result.data)
    if rms is None:
        return "No control was run: how much any answer would get cannot be judged."
    own = number(_largest(data["attribution"].values))
    return (
        f"Control: {data.attrs['control']}. Largest |attribution| {own}; largest root mean square of the control "
        f"{number(_largest(rms))}."
    )
