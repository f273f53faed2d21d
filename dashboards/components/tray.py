"""The tray: the named directions of the library, beside every page.

Search, compare, read as tokens, rename, delete, import and export. The library is a folder (`$WORKBENCH_DIRECTIONS`);
the tray holds nothing of its own, so what scripts and the command line save there appears when it is opened. `VERSION`
changes with every change made here, and pages that hold a `news` store are told.
"""

from __future__ import annotations

import time
from typing import Any, cast

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, ctx, dcc, html, no_update

from dashboards import following, ids
from dashboards.components import notify, tray_rows
from dashboards.components.aria import aria
from dashboards.components.clicks import clicked
from dashboards.components.icons import icon
from dashboards.components.tray_data import cosines, exported, imported, library, tokens_of
from dashboards.state import AppState
from workbench.errors import DataError
from workbench.specs import ModelSpec, parse_spec

PAGE = "tray"
BUTTON, DRAWER, LIST, SELECTED, SEARCH, FORCE, COMPARE, TOKENS, FIGURES, JOB, UPLOAD, DOWNLOAD, DIALOG, VERSION = (
    ids.of(PAGE, name)
    for name in (
        "button", "drawer", "list", "selected", "search", "force", "compare", "tokens", "figures", "job", "upload",
        "download", "dialog", "version",
    )
)  # fmt: skip


CLOSE: Any = aria(label="Close")


def news(page: str) -> dict[str, str]:
    """Id of a store on a page that changes when the library does."""
    return {"type": "tray-news", "page": page}


def button() -> dmc.Button:
    """Opens the tray; stands in the header."""
    return dmc.Button("Directions", id=BUTTON, leftSection=icon("tray"), variant="default", size="xs")


def layout() -> html.Div:
    """The drawer, closed, its dialogue and its stores."""
    tools = dmc.Group(
        [
            dmc.TextInput(
                id=SEARCH, label="Search name, site, source, model or tag", value="", debounce=200, flex=1, miw=220
            ),
            dcc.Upload(dmc.Button("Import file", variant="default"), id=UPLOAD, className="tray-upload"),
        ],
        align="end",
        gap="sm",
    )  # fmt: skip
    chosen = dmc.Group(
        [
            dmc.Text("Chosen:", size="sm", c="dimmed"),
            dmc.Button("Cosines", id=COMPARE, size="xs", variant="light"),
            dmc.Button("Tokens", id=TOKENS, size="xs", variant="light"),
            dmc.Switch(id=FORCE, label="Force (other models')", checked=False, size="sm"),
        ],
        gap="sm",
        my="sm",
    )
    listed = dmc.CheckboxGroup(
        html.Div(id=LIST), id=SELECTED, value=[], **aria(label="Directions of the tray")
    )
    drawer = dmc.Drawer(
        [tools, chosen, html.Div(id=FIGURES, className="stack", **aria(live="polite")), listed],
        id=DRAWER,
        title="Directions",
        position="right",
        size="min(680px, 100vw)",
        keepMounted=True,
        closeButtonProps=CLOSE,
    )
    dialog = dmc.Modal(
        id=DIALOG,
        title="",
        children=[],
        centered=True,
        zIndex=400,
        closeButtonProps=cast("Any", aria(label="Close dialogue")),
    )
    return html.Div([drawer, dialog, dcc.Download(id=DOWNLOAD), dcc.Store(id=VERSION), dcc.Store(id=JOB)])


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: open, list, change, import and export, compare, tokens."""

    @app.callback(
        Output(DRAWER, "opened"),
        Input(BUTTON, "n_clicks"),
        Input(ids.LOCATION, "pathname"),
        Input(ids.LOCATION, "search"),
        prevent_initial_call=True,
    )
    def open_drawer(_clicks, _pathname, _search):
        return ctx.triggered_id == BUTTON  # going to a page closes it

    @app.callback(
        Output(LIST, "children"),
        Output(SELECTED, "value"),
        Input(DRAWER, "opened"),
        Input(SEARCH, "value"),
        Input(VERSION, "data"),
        State(SELECTED, "value"),
        prevent_initial_call=True,
    )
    def list_directions(opened, text, _version, chosen):
        if not opened:
            return no_update, no_update
        mine = library()
        used = state.model_in_use()
        model = used.name if used else state.model
        found: list[Any] = [(e, tray_rows.fit_of(state, e, model)) for e in mine.search(text or "")]
        names = mine.names()
        return tray_rows.rows(found, len(names)), [n for n in chosen or [] if n in names]

    @app.callback(
        Output({"type": "tray-news", "page": ALL}, "data"), Input(VERSION, "data"), prevent_initial_call=True
    )
    def tell_pages(version):
        return [version] * len(ctx.outputs_list)

    _register_changes(app)
    _register_figures(app, state)


def _register_changes(app: dash.Dash) -> None:
    @app.callback(
        Output(DIALOG, "opened"),
        Output(DIALOG, "title"),
        Output(DIALOG, "children"),
        Output(DOWNLOAD, "data"),
        Input({"type": "tray-do", "what": ALL, "name": ALL}, "n_clicks"),
        Input({"type": "tray-keep", "name": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def choose(_clicks, _kept):
        if (name := clicked("name")) is None or ctx.triggered_id is None:
            return [no_update] * 4
        if ctx.triggered_id["type"] == "tray-keep":
            return False, no_update, no_update, no_update
        what = ctx.triggered_id["what"]
        if what in tray_rows.EXPORTS:
            return no_update, no_update, no_update, exported(name, what)
        return True, f"{what.capitalize()} {name}", tray_rows.confirmation(what, name), no_update

    @app.callback(
        Output(VERSION, "data", allow_duplicate=True),
        Output(DIALOG, "opened", allow_duplicate=True),
        Input({"type": "tray-confirm", "what": ALL, "name": ALL}, "n_clicks"),
        State({"type": "tray-new-name", "name": ALL}, "value"),
        prevent_initial_call=True,
    )
    def change(_clicks, new_names):
        if (name := clicked("name")) is None or ctx.triggered_id is None:
            return no_update, no_update
        if ctx.triggered_id["what"] == "delete":
            library().delete(name)
            notify.show(notify.info("It is gone from the library.", title=f"{name!r} was deleted"))
        else:
            library().rename(name, (new_names[0] if new_names else "").strip())
        return time.time_ns(), False

    @app.callback(
        Output(VERSION, "data"),
        Input(UPLOAD, "contents"),
        State(UPLOAD, "filename"),
        prevent_initial_call=True,
    )
    def take_in(contents, filename):
        if not contents:
            return no_update
        name, found = imported(contents, filename or "file")
        notify.show(notify.info(repr(found), title=f"{name!r} is in the tray"))
        return time.time_ns()


def _register_figures(app: dash.Dash, state: AppState) -> None:
    @app.callback(
        Output(FIGURES, "children"),
        Output(JOB, "data"),
        Output(ids.SUBMITTED, "data", allow_duplicate=True),
        Input(COMPARE, "n_clicks"),
        Input(TOKENS, "n_clicks"),
        State(SELECTED, "value"),
        State(FORCE, "checked"),
        State(ids.SCHEME, "computedColorScheme"),
        prevent_initial_call=True,
    )
    def look_at(compare, tokens, chosen, force, scheme):
        if not (compare if ctx.triggered_id == COMPARE else tokens):
            return no_update, no_update, no_update
        if ctx.triggered_id == COMPARE:
            return cosines(chosen or [], scheme, force=bool(force)), None, no_update
        if len(chosen or []) != 1:
            raise DataError(
                f"Tokens are of one direction, {len(chosen or [])} are chosen: tick exactly one in the list."
            )
        model = state.model_in_use() or ModelSpec(name=state.model)
        asked = {
            "kind": "direction_tokens",
            "model": model.model_dump(),
            "direction": chosen[0],
            "force": bool(force),
        }
        submitted = following.submit(state, parse_spec(asked, source="The tray"), PAGE)
        told = f"Working on the tokens of {chosen[0]} with {model.name}; progress is under Jobs."
        return dmc.Text(told, size="sm", c="dimmed"), submitted["job"], submitted

    @app.callback(
        Output(FIGURES, "children", allow_duplicate=True),
        Output(JOB, "data", allow_duplicate=True),
        Input(ids.SEEN, "data"),
        State(JOB, "data"),
        State(ids.SCHEME, "computedColorScheme"),
        prevent_initial_call=True,
    )
    def show_tokens(_seen, waiting, scheme):
        job = state.job(waiting) if waiting else None
        if job is None or not job.over:
            return no_update, no_update
        return tokens_of(job, state, scheme), None
