"""Progress of the job a page waits for, with a button that stops it, and the way to its result.

When the job is finished the address becomes `?run=<id>`; what shows a result listens to the address.
"""

from __future__ import annotations

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, html, no_update

from dashboards import following, ids
from dashboards.components.aria import aria
from dashboards.components.clicks import clicked
from dashboards.jobs_view import describe, percent
from dashboards.state import AppState

HIDDEN = {"display": "none"}


def layout(page: str) -> html.Div:
    """The panel, hidden until a job is followed."""
    return html.Div(
        [
            dmc.Text(id=ids.panel("text", page), size="sm", className="job-text"),
            dmc.Progress(
                id=ids.panel("bar", page),
                value=0,
                size="md",
                animated=True,
                flex=1,
                **aria(label="Progress"),
            ),
            dmc.Button(
                "Cancel", id=ids.panel("cancel", page), size="compact-sm", variant="light", color="red"
            ),
        ],
        id=ids.panel("box", page),
        className="job-panel",
        style=HIDDEN,
        role="status",
    )


def register(app: dash.Dash, state: AppState, kinds: dict[str, str]) -> None:
    """Callbacks of the panel of whichever page is there; `kinds` says what each page runs."""

    @app.callback(
        Output({"type": "panel-box", "page": ALL}, "style"),
        Output({"type": "panel-text", "page": ALL}, "children"),
        Output({"type": "panel-bar", "page": ALL}, "value"),
        Output(ids.FOLLOWING, "data"),
        Output(ids.LOCATION, "search", allow_duplicate=True),
        Input(ids.POLL, "n_intervals"),
        Input(ids.SUBMITTED, "data"),
        State({"type": "panel-box", "page": ALL}, "id"),
        State(ids.FOLLOWING, "data"),
        State(ids.LOCATION, "search"),
        prevent_initial_call="initial_duplicate",
    )
    def watch(_ticks, submitted, panels, known, search):
        if not panels:
            return [], [], [], no_update, no_update
        page, before = panels[0]["page"], known
        known = following.current(state, known)
        mine = following.entry(page, known, submitted)
        job, mine, there = following.step(state, kinds[page], mine, search)
        known = {**known, page: mine}
        now = no_update if known == before else known
        if job is None:
            return [HIDDEN], [no_update], [no_update], now, there or no_update
        return [{}], [describe(job)], [percent(job)], now, no_update

    @app.callback(
        Input({"type": "panel-cancel", "page": ALL}, "n_clicks"),
        State(ids.FOLLOWING, "data"),
        State(ids.SUBMITTED, "data"),
        prevent_initial_call=True,
    )
    def cancel(_clicks, known, submitted):
        mine = following.entry(clicked("page") or "", following.current(state, known), submitted)
        if mine is not None and (job := state.job(mine["job"])) is not None:
            state.worker.cancel(job.id)
