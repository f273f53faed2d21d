"""Graphs: a figure of `dashboards.figures` in the colours of the page, with its description in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dash
import plotly.io as pio
from dash import ALL, Input, Output, Patch, State, dcc, html

from dashboards import ids
from dashboards.components.aria import aria
from dashboards.figures import KINDS, describe, figures
from dashboards.figures.theme import TEMPLATES, Scheme, use_scheme

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.results import Result

CONFIG: Any = {
    "displaylogo": False,
    "showSendToCloud": False,  # plotly.js 4 offers by default to upload the chart to plotly.com
    "plotlyServerURL": "",
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    "toImageButtonOptions": {"format": "svg"},
}


def graphs(result: Result, page: str, scheme: str | None) -> dict[str, html.Div]:
    """Every figure of a result as a component, by name; none for a kind that nothing draws."""
    if result.kind not in KINDS:
        return {}
    words = describe(result)
    return {
        name: graph(page, name, drawn, words.get(name, name), scheme)
        for name, drawn in figures(result).items()
    }


def graph(page: str, name: str, drawn: go.Figure, words: str, scheme: str | None) -> html.Div:
    """One figure. Its words are its name for screen readers."""
    use_scheme(drawn, scheme_of(scheme))
    inner = dcc.Graph(
        id=ids.figure(page, name),
        figure=drawn,
        config=CONFIG,
        style={"height": f"{drawn['layout']['height'] or 420}px"},
    )
    return html.Div(inner, role="figure", className="graph", **aria(label=words))


def scheme_of(scheme: str | None) -> Scheme:
    """The scheme to draw in; light until the browser has said otherwise."""
    return "dark" if scheme == "dark" else "light"


def register(app: dash.Dash) -> None:
    """Callback: graphs change with the page between light and dark, by their template alone."""

    @app.callback(
        Output({"type": "figure", "page": ALL, "name": ALL}, "figure"),
        Input(ids.SCHEME, "computedColorScheme"),
        State({"type": "figure", "page": ALL, "name": ALL}, "id"),
        prevent_initial_call=True,
    )
    def recolour(scheme, shown):
        template = pio.templates[TEMPLATES[scheme_of(scheme)]].to_plotly_json()
        changes = []
        for _ in shown:
            change = Patch()
            change["layout"]["template"] = template
            changes.append(change)
        return changes
