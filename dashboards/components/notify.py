"""Notifications, and the one place where errors of callbacks end.

An error of what was asked (`WorkbenchError`) is shown with its own message and stays until it is closed.
Anything else is a bug of ours: it is logged with its traceback and shown in general words.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

import dash

from dashboards import ids
from workbench.errors import WorkbenchError

log = logging.getLogger("dashboards")
BUG = "This is a bug in the dashboard. Nothing was written; the log in the terminal has the details."


def error(message: str, title: str = "That did not work", *, about: str = "") -> dict[str, Any]:
    """A red notification that stays until it is closed.

    Args:
        message, title: what it says.
        about: what it is about, where it may be sent twice: of one thing the page shows one notification at a time.
    """
    return _note(title, message, "red", about, auto_close=False)


def info(message: Any, title: str, *, about: str = "") -> dict[str, Any]:
    """A quiet notification that goes by itself; as `error`."""
    return _note(title, message, "teal", about, auto_close=6000)


def show(*notes: dict[str, Any]) -> None:
    """Show notifications from inside a callback."""
    if notes:
        dash.set_props(ids.NOTIFICATIONS, {"sendNotifications": list(notes)})


def on_error(raised: Exception) -> None:
    """The error boundary of every callback (`Dash(on_error=...)`): notify and leave the page as it is."""
    if isinstance(raised, WorkbenchError):
        show(error(str(raised)))
    else:
        log.error("Callback failed", exc_info=raised)
        show(error(BUG, title=f"Internal error ({type(raised).__name__})"))


def _note(title: str, message: Any, color: str, about: str, *, auto_close: int | bool) -> dict[str, Any]:
    return {
        "action": "show",
        "id": f"note-{about or secrets.token_hex(4)}",
        "title": title,
        "message": message,
        "color": color,
        "autoClose": auto_close,
        "withBorder": True,
    }
