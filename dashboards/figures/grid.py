"""What heatmaps over layer × position (or head) share: labels, axes, marked cells, and limits on size.

Token texts go into Plotly's pseudo-HTML, so each is escaped exactly once, here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import unescape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, sequential

from dashboards.figures.theme import OUTLINE, SIZE, safe

TEXT_COLUMNS = 20
"""Up to so many columns the cells carry text; with more it would not fit, and hover has it."""
HOVER_TOKENS = 30_000
"""How many of the top-k tokens a figure carries for its hover, over all cells (at least one per cell)."""
HOVER_LINES = 10
"""And at most so many per cell: more would not be read."""
DRAWN_CELLS = 25_000
"""Up to so many cells a figure draws, which keeps it under 2 MB. Beyond, the last positions are drawn, and
the subtitle says so."""


def visible(token: str) -> str:
    """A token as it is drawn in a cell: leading spaces as `·`, what cannot be printed escaped."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
    if not text.strip(" "):
        return repr(text)
    stripped = text.lstrip(" ")
    return "·" * (len(text) - len(stripped)) + stripped


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, the last one an ellipsis where something was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def fits(n_columns: int) -> bool:
    """Whether cells are wide enough for texts."""
    return n_columns <= TEXT_COLUMNS


def cut(texts: np.ndarray) -> np.ndarray:
    """Texts of the cells [layer, column], cut to the width of a cell. Escaped."""
    limit = max(4, min(14, 98 // max(texts.shape[1], 1)))
    flat = [safe(shorten(str(text), limit)) for text in texts.ravel()]
    return np.array(flat, dtype=object).reshape(texts.shape)


def text_colours(values: np.ndarray) -> np.ndarray:
    """Black or white for text on Cividis cells of 0–1, whichever contrasts more (at least 4.5 to 1)."""
    stops = np.array([hex_to_rgb(colour) for colour in sequential.Cividis], dtype=float) / 255
    where = np.linspace(0, 1, len(stops))
    rgb = np.stack([np.interp(values, where, channel) for channel in stops.T], axis=-1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    # Contrast with black exceeds that with white above this luminance: (L + 0.05)² = 1.05 · 0.05.
    return np.where(luminance > 0.1791, "#000", "#fff").astype(object)


def text_trace(
    columns: Sequence[str], rows: Sequence[str], text: np.ndarray, values: np.ndarray
) -> go.Scatter:
    """Texts of the cells of a Cividis heatmap of 0–1. Its own text is grey on the middle colours: not readable."""
    return go.Scatter(
        x=np.tile(np.array(columns, dtype=object), len(rows)),
        y=np.repeat(np.array(rows, dtype=object), len(columns)),
        mode="text",
        text=text.ravel(),
        textfont={"size": SIZE["cell"], "color": text_colours(values).ravel()},
        hoverinfo="skip",
        showlegend=False,
    )


def token_label(position: int, token: str, other: str | None = None) -> str:
    """Label of a column: `3 ' Mary'`, or `10 ' John'→' Mary'` where the other run has another token (`∅`: none)."""
    label = f"{position} {_quoted(token)}"
    if other is not None and other != token:
        label += f"→{_quoted(other)}"
    return safe(label)


def _quoted(token: str) -> str:
    return shorten(repr(token), 14) if token else "∅"


def unique(labels: Sequence[str]) -> list[str]:
    """Labels of a category axis, where two that are equal would be one category: later ones get a number."""
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found


def layer_labels(layers: Iterable[int]) -> list[str]:
    """Layers as categories, so that a subset of layers has rows of equal height."""
    return [str(int(layer)) for layer in layers]


def last_columns(n_layers: int, n_columns: int) -> tuple[slice, str]:
    """Which columns fit the budget, and a sentence that says so where not all do (else an empty one)."""
    fitting = max(1, DRAWN_CELLS // n_layers)
    if n_columns <= fitting:
        return slice(None), ""
    return slice(n_columns - fitting, None), (
        f"The last {fitting} of {n_columns} positions are drawn; the result holds all."
    )


def row_height(n_layers: int, with_text: bool) -> int:
    """Pixels of the plot area: 18 per layer with text, 12 without, within reason."""
    return int(np.clip(n_layers * (18 if with_text else 12), 200, 1800))


def axes(x_title: str, labels: Sequence[str], rows: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Category axes for columns and layers. Plotly thins labels that touch and restores them on zoom."""
    thinned = " (zoom or hover for all labels)" if len(labels) > 60 else ""
    common = {"type": "category", "showgrid": False, "ticks": "outside", "ticklen": 3}
    # Given ranges: text in cells would otherwise widen them by a margin.
    x = {**common, "title": {"text": x_title + thinned}, "tickangle": -angle(labels)}
    y = {**common, "title": {"text": "layer"}, "range": [-0.5, len(rows) - 0.5]}
    return {**x, "range": [-0.5, len(labels) - 0.5]}, y


def angle(labels: Sequence[str]) -> int:
    """Degrees that labels are turned by, so that they fit side by side."""
    if len(labels) <= 6 or max(map(len, labels), default=0) <= 3:
        return 0
    return 90 if len(labels) > 30 else 45


def bottom(labels: Sequence[str]) -> int:
    """Bottom margin that holds the labels at their angle, and the title of the axis."""
    longest = max((len(unescape(label)) for label in labels), default=0) * 6.2
    return int(48 + longest * np.sin(np.radians(angle(labels))))


def gaps(n_columns: int) -> dict[str, float]:
    """Hairlines between cells, where cells are wide enough to spare them."""
    return {"xgap": 0.5, "ygap": 0.5} if n_columns <= 60 else {}


def outline(x0: int, x1: int, y0: int, y1: int, **axis: str) -> list[dict[str, Any]]:
    """Shapes around the cells of columns x0..x1 and rows y0..y1 (indices, both ends included)."""
    box = {"type": "rect", "x0": x0 - 0.5, "x1": x1 + 0.5, "y0": y0 - 0.5, "y1": y1 + 0.5, **axis}
    return [
        {**box, "line": {"color": "#ffffff", "width": 5}},
        {**box, "line": {"color": OUTLINE, "width": 2.5}},
    ]


def last_runs(is_so: np.ndarray) -> list[int | None]:
    """For each column of [layer, column]: the first row of the run of True that ends in the last row."""
    starts: list[int | None] = []
    for column in is_so.T:
        if not column[-1]:
            starts.append(None)
            continue
        broken = np.flatnonzero(~column)
        starts.append(int(broken[-1]) + 1 if len(broken) else 0)
    return starts


def at(labels: Sequence[str], index: int) -> str:
    """A label as plain text, for sentences."""
    return unescape(labels[index])
