"""Icons: shapes in `assets/style.css`, drawn with the colour of the text around them."""

from __future__ import annotations

from dash import html

from dashboards.components.aria import aria


def icon(name: str) -> html.Span:
    """A shape by name (`start`, `lens`, `patch`, `probes`, `steer`, `tray`, `runs`, `jobs`, …), not read aloud."""
    return html.Span(className=f"icon icon-{name}", **aria(hidden="true"))
