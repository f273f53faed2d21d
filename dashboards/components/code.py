"""Text to copy: YAML, Python, a command line."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import html

from dashboards.components.aria import aria


def block(text: str, label: str) -> html.Div:
    """Monospaced text with a button that copies it."""
    return html.Div(
        [
            dmc.CopyButton(
                f"Copy {label}",
                value=text,
                copiedChildren="Copied",
                size="compact-sm",
                variant="default",
                className="copy-button",
            ),
            html.Pre(text, className="code", tabIndex=0, **aria(label=label)),
        ],
        className="code-block",
    )
