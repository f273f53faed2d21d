"""Colours, sizes and templates: one visual grammar for figures, reports and the dashboard.

- lines: Okabe & Ito's palette (2008), told apart without colour by dash and marker symbol as well;
- probabilities: Cividis (Nuñez et al. 2018, 10.1371/journal.pone.0199239), range fixed to 0–1;
- signed effects: ColorBrewer's PuOr, zero at white, symmetric range (purple positive, orange negative).

Two slim templates are registered, `workbench_light` and `workbench_dark` (Plotly's own is 6 KB in every
figure). All that depends on the scheme is in the template, so dark mode takes
`use_scheme` and nothing else.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

if TYPE_CHECKING:
    from workbench.results import Result

Scheme = Literal["light", "dark"]

OKABE_ITO: dict[str, str] = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky_blue": "#56B4E9",
    "bluish_green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "reddish_purple": "#CC79A7",
}
"""The eight colours. Lines use those in `SERIES`: black and yellow vanish on one of the schemes."""

SERIES: tuple[str, ...] = tuple(
    OKABE_ITO[name] for name in ("blue", "vermillion", "bluish_green", "reddish_purple", "orange", "sky_blue")
)
SYMBOLS: tuple[str, ...] = ("circle", "square", "diamond", "triangle-up", "cross", "x")

SEQUENTIAL = "Cividis"
_PUOR = (
    "7f3b08",
    "b35806",
    "e08214",
    "fdb863",
    "fee0b6",
    "f7f7f7",
    "d8daeb",
    "b2abd2",
    "8073ac",
    "542788",
    "2d004b",
)
DIVERGING: list[list[Any]] = [[i / 10, f"#{colour}"] for i, colour in enumerate(_PUOR)]
OUTLINE = OKABE_ITO["vermillion"]
"""Outline of marked cells; drawn over a wider white line so that it shows on every cell colour."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SIZE = {"title": 16, "subtitle": 12, "axis": 12, "tick": 11, "cell": 10}
SUBTITLE_WIDTH = 95
"""Characters of a subtitle line: what a figure 700 pixels wide holds."""


@dataclass(frozen=True)
class Tokens:
    """Colours of one scheme, for the templates, the report's CSS and the dashboard."""

    background: str
    surface: str
    text: str
    muted: str
    grid: str
    axis: str
    accent: str


TOKENS: dict[Scheme, Tokens] = {
    "light": Tokens("#ffffff", "#f6f7f9", "#1f2328", "#57606a", "#e4e7eb", "#8b949e", "#0068a3"),
    "dark": Tokens("#1e1f22", "#26282c", "#e8e9eb", "#a9b0b8", "#3a3d42", "#767d86", "#6cb8ea"),
}


def _template(scheme: Scheme) -> go.layout.Template:
    tokens = TOKENS[scheme]
    axis = {
        "gridcolor": tokens.grid,
        "linecolor": tokens.axis,
        "tickcolor": tokens.axis,
        "zeroline": False,
        "zerolinecolor": tokens.axis,
        "automargin": True,
        "tickfont": {"size": SIZE["tick"]},
        "title": {"standoff": 8, "font": {"size": SIZE["axis"]}},
    }
    bar = {
        "outlinewidth": 0,
        "thickness": 12,
        "ticklen": 4,
        "tickcolor": tokens.axis,
        "title": {"side": "right"},
    }
    bar["tickfont"] = {"size": SIZE["tick"]}
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": tokens.text},
            "title": {
                "font": {"size": SIZE["title"]},
                "subtitle": {"font": {"size": SIZE["subtitle"], "color": tokens.muted}},
            },
            "paper_bgcolor": tokens.background,
            "plot_bgcolor": tokens.background,
            "colorway": list(SERIES),
            "xaxis": axis,
            "yaxis": axis,
            "coloraxis": {"colorbar": bar},
            "hoverlabel": {
                "align": "left",
                "bgcolor": tokens.surface,
                "bordercolor": tokens.axis,
                "font": {"color": tokens.text},
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": tokens.axis, "activecolor": tokens.accent},
            "annotationdefaults": {"font": {"color": tokens.muted}, "showarrow": False},
            "shapedefaults": {"line": {"color": tokens.axis, "width": 1}},
        }
    )


TEMPLATES: dict[Scheme, str] = {"light": "workbench_light", "dark": "workbench_dark"}
for _scheme, _name in TEMPLATES.items():
    pio.templates[_name] = _template(_scheme)


def use_scheme(figure: go.Figure, scheme: Scheme) -> go.Figure:
    """The same figure, changed in place to the light or dark template."""
    return figure.update_layout(template=TEMPLATES[scheme])


def has_our_template(figure: go.Figure) -> bool:
    """Whether `use_scheme` may be applied without overriding someone else's look."""
    layout: Any = figure.layout
    return any(layout.template == pio.templates[name] for name in TEMPLATES.values())


def rgba(colour: str, opacity: float) -> str:
    """`#rrggbb` with an opacity, as Plotly's fills want it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def number(value: float, digits: int = 3) -> str:
    """A number for a sentence: `24,575`, `0.93`, `-1.25`; a dash for NaN."""
    if not np.isfinite(value):
        return "–"
    if abs(value) >= 1000 or (float(value).is_integer() and abs(value) >= 100):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    # More digits before the point than were asked for: `1.5e+02` is 150.
    return (f"{value:,.0f}" if "e+" in text else text).replace("-", "−")


def safe(text: str) -> str:
    """Text as it is, for Plotly: no tags, no `$…$` for a notebook's MathJax to typeset, no `%{…}` to fill in."""
    return escape(text, quote=False).replace("$", "&#36;").replace("%{", "&#37;{")


def subtitle(
    *, model: str = "", n: str = "", units: str = "", control: str = "", more: Iterable[str] = ()
) -> str:
    """The lines under a title: model, n, units and control on the first, then one per item of `more`.

    Plain text goes in; what comes out is wrapped and escaped for Plotly.
    """
    facts = [model, f"n = {n}" if n else "", units, f"control: {control}" if control else ""]
    lines = [" · ".join(fact for fact in facts if fact), *more]
    wrapped = [part for line in lines if line for part in textwrap.wrap(line, SUBTITLE_WIDTH)]
    return "<br>".join(safe(line) for line in wrapped)


def model_name(result: Result) -> str:
    """Name of the model that made a result, or an empty string."""
    return str(result.provenance.model.get("name", ""))


def layout(
    title: str, under: str, *, plot_height: int, bottom: int = 60, right: int = 20, legend_rows: int = 0
) -> dict[str, Any]:
    """Layout keys that all figures share. The height is that of the plot area plus header and footer."""
    top = 46 + 15 * (under.count("<br>") + 1) + 22 * legend_rows
    return {
        "template": TEMPLATES["light"],
        "title": {
            "text": safe(title),
            "subtitle": {"text": under},
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12},
        },
        "height": plot_height + top + bottom,
        "margin": {"t": top, "b": bottom, "l": 60, "r": right},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
        "showlegend": legend_rows > 0,
    }


def f32(values: Any) -> np.ndarray:
    """float32, so that it travels as a typed array and not as text."""
    return np.asarray(values, dtype=np.float32)
