"""What the tray shows of a direction: a row of the list, what it is in words, and whether it fits a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

import dash_mantine_components as dmc
from dash import html

from dashboards.components.aria import aria, focused
from dashboards.state import AppState
from workbench.errors import RunError

if TYPE_CHECKING:
    from workbench.directions import Entry

Fit = Literal["same", "other", "unknown"]
SHOWN = 200
"""Rows of the list; it says so where there are more."""
EXPORTS = {"safetensors": "our format", "gguf": "GGUF control vector", "json": "JSON by layer"}


def words(text: str | None) -> list[str]:
    """`"probe, layer 14"` -> its parts."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def fingerprint_of(state: AppState, model: str | None) -> str:
    """Fingerprint of a model by the name it is asked for, if it was used since the start; else empty."""
    for job in state.worker.jobs():
        if job.state == "finished" and job.spec.model.name == model:
            try:
                recorded = state.run(job.run_id).provenance["provenance"]
            except RunError:  # deleted meanwhile
                continue
            if found := (recorded.get("model") or {}).get("fingerprint"):
                return str(found)
    return ""


def fit_of(state: AppState, entry: Entry, model: str | None) -> Fit:
    """Whether a direction was made on a model: by fingerprint where both are known, else by name.

    The run itself compares fingerprints and refuses another model's direction, whatever is said here.
    """
    known = fingerprint_of(state, model)
    if entry.fingerprint and known:
        return "same" if entry.fingerprint == known else "other"
    if entry.model and model:
        return "same" if entry.model in (model, Path(model).name) else "other"
    return "unknown"


def made_on(entry: Entry) -> str:
    """The model that made it, in a word."""
    return entry.model or (f"model {entry.fingerprint[:8]}" if entry.fingerprint else "unknown model")


def facts(entry: Entry) -> str:
    """Site, how it was made, model and scale."""
    scale = "" if entry.scale is None else f"scale {entry.scale:.4g}"
    several = f"{entry.n} directions" if entry.kind == "set" else ""
    parts = [
        several,
        entry.site,
        entry.source.replace("_", " "),
        made_on(entry),
        scale,
        f"width {entry.width}",
    ]
    return " · ".join(part for part in parts if part)


def about(entry: Entry, fit: Fit, *, force: bool) -> html.Div:
    """What a chosen direction is, and what stands in the way of using it."""
    parts: list[Any] = [dmc.Text(facts(entry), size="sm", c="dimmed")]
    if fit == "other":
        told = f"Made on another model ({made_on(entry)}). "
        told += (
            "It will be applied all the same, since Force is on."
            if force
            else "It is refused unless Force is on."
        )
        parts.append(dmc.Alert(told, color="orange", variant="light", p="xs", className="tray-other"))
    return html.Div(parts)


def row(entry: Entry, fit: Fit) -> html.Div:
    """One direction: choose it, steer with it, or more."""
    if entry.problem:
        head = [
            dmc.Text(entry.name, fw=500, size="sm"),
            dmc.Badge("damaged", color="red", variant="light", size="sm"),
        ]
        told = dmc.Text(entry.problem, size="xs", c="var(--mantine-color-error)", className="tray-facts")
        return html.Div(
            [dmc.Group(head, gap="xs"), told, _menu(entry.name, exports=False)], className="tray-row"
        )
    badges = []
    if fit == "other":
        badges.append(dmc.Badge("another model", color="orange", variant="light", size="sm"))
    badges += [dmc.Badge(tag, color="gray", variant="light", size="sm") for tag in entry.tags]
    head = dmc.Group(
        [
            dmc.Checkbox(label=entry.name, value=entry.name, size="sm", className="tray-name"),
            *badges,
            html.Div(className="spacer"),
            dmc.Anchor(
                "Steer", href=f"/steer?{urlencode({'direction': entry.name})}", size="sm", className="tap",
                **aria(label=f"Steer with {entry.name}"),
            ),
            _menu(entry.name),
        ],
        gap="xs",
    )  # fmt: skip
    told = dmc.Text(facts(entry), size="xs", c="dimmed", className="tray-facts")
    return html.Div([head, told], className="tray-row")


def rows(found: Sequence[tuple[Entry, Fit]], total: int) -> list[Any]:
    """The list, and how many of how many it shows."""
    if not total:
        told = "Nothing here yet. Save a direction on the pages Steer and Probes, or import a file."
        return [dmc.Text(told, c="dimmed", size="sm")]
    shown = found[:SHOWN]
    count = f"{len(shown)} of {total} direction{'s' if total > 1 else ''}"
    told = html.Div(dmc.Text(count, c="dimmed", size="sm"), role="status")
    return [told, *(row(e, fit) for e, fit in shown)]


def confirmation(what: str, name: str) -> list[Any]:
    """The inside of the dialogue that asks before a direction is renamed or deleted."""
    ids = {"name": name}
    keep = dmc.Button("Cancel", id={"type": "tray-keep", **ids}, variant="default")
    if what == "delete":
        return [
            dmc.Text(
                f"Delete {name!r} for good? The file is removed from the tray; runs keep their own copy.",
                size="sm",
            ),
            dmc.Group(
                [dmc.Button("Delete", id={"type": "tray-confirm", "what": what, **ids}, color="red"), keep],
                mt="md",
            ),
        ]
    return [
        dmc.TextInput(id={"type": "tray-new-name", **ids}, label="New name", value=name, **focused()),
        dmc.Group([dmc.Button("Rename", id={"type": "tray-confirm", "what": what, **ids}), keep], mt="md"),
    ]


def _menu(name: str, *, exports: bool = True) -> dmc.Menu:
    """Rename, delete, export."""

    def item(label: str, what: str, **more: Any) -> dmc.MenuItem:
        return dmc.MenuItem(label, id={"type": "tray-do", "what": what, "name": name}, n_clicks=0, **more)

    target = dmc.Button("More", size="compact-sm", variant="default", **aria(label=f"More for {name}"))
    items = [item("Rename …", "rename")]
    items += [item(f"Export: {label}", suffix) for suffix, label in EXPORTS.items()] if exports else []
    items.append(item("Delete …", "delete", color="red"))
    return dmc.Menu(
        [dmc.MenuTarget(target), dmc.MenuDropdown(items)], position="bottom-end", withinPortal=True
    )
