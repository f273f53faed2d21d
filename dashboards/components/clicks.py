"""Which of many buttons was clicked."""

from __future__ import annotations

from dash import ctx


def clicked(key: str) -> str | None:
    """The entry `key` in the id of the button that calls back; None if it has only just appeared."""
    triggered = ctx.triggered_id
    if not isinstance(triggered, dict) or not ctx.triggered[0]["value"]:
        return None
    return triggered[key]
