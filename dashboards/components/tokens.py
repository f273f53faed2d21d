"""The token strip: a prompt as the model's tokens, in HTML, so that it can be selected and read aloud."""

from __future__ import annotations

from collections.abc import Sequence

from dash import html

from dashboards.components.aria import aria

SHOWN = 300
"""So many tokens a strip shows; it says so where there are more."""


def visible(token: str) -> str:
    """A token with its spaces and line breaks to be seen."""
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "→") or "∅"


def strip(tokens: Sequence[str], *, label: str = "Tokens", differs: Sequence[bool] = ()) -> html.Ol:
    """Each token with its position, up to `SHOWN`; those that differ from a partner are marked."""
    items = []
    for position, token in enumerate(tokens[:SHOWN]):
        marked = bool(differs) and differs[position]
        items.append(
            html.Li(
                [
                    html.Span(visible(token), className="token-text"),
                    html.Span(position, className="token-position"),
                ],
                className="token token-differs" if marked else "token",
                title=f"position {position}: {token!r}" + (" (differs)" if marked else ""),
            )
        )
    if len(tokens) > SHOWN:
        items.append(html.Li(f"… the first {SHOWN} of {len(tokens)} tokens", className="token-more"))
    return html.Ol(items, className="token-strip", **aria(label=f"{label}: {len(tokens)}"))
