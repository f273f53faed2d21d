"""ARIA attributes. Their names have hyphens, so they are passed as `**aria(label="…")`."""

from __future__ import annotations

from typing import Any


def aria(**values: str) -> dict[str, Any]:
    """`aria(label="Close")` -> `{"aria-label": "Close"}`."""
    return {f"aria-{name}": value for name, value in values.items()}


def focused() -> dict[str, Any]:
    """For the input of a dialogue that is to have the focus when it opens."""
    return {"data-autofocus": "true"}
