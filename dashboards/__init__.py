"""Dashboards: the Dash app, and the pure Plotly figures it shares with notebooks and reports.

    from dashboards import figure

    figure(result)        # any result -> its main Plotly figure

Names are imported when first used: this line alone loads neither Plotly nor Dash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["figure"]

if TYPE_CHECKING:
    from dashboards.figures import figure


def __getattr__(name: str) -> Any:
    if name == "figure":
        from dashboards.figures import figure

        return figure
    raise AttributeError(f"module 'dashboards' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
