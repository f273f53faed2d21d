"""Progress of the job a page waits for, with a button that stops it, and the way to its result.

`FOLLOWING` keeps, per page, the job of this tab: `{"lens": {"job": "job-3", "done": false}}`. It is empty
after a reload; then the page takes up the newest unfinished job of its kind, if there is one. When the job
is finished the address becomes `?run=<id>`, and everything that shows a result listens to the address.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlencode

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, ctx, html, no_update

from dashboards import ids
from dashboards.components.aria import aria
from dashboards.components.clicks import clicked
from dashboards.jobs_view import describe, percent
from dashboards.state import AppState
from workbench.jobs import Job
from workbench.specs import Spec

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


def submit(
    state: AppState, spec: Spec, page: str, following: dict[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Queue a spec and follow it from `page`: values for `SUBMITTED` and `FOLLOWING`."""
    job = state.submit(spec)
    return job.id, {**(following or {}), page: {"job": job.id, "done": False}}


def submitting() -> list[Output]:
    """The outputs that take what `submit` returns."""
    return [
        Output(ids.SUBMITTED, "data", allow_duplicate=True),
        Output(ids.FOLLOWING, "data", allow_duplicate=True),
    ]


def address(run_id: str) -> str:
    """The query that shows a run."""
    return f"?{urlencode({'run': run_id})}"


def run_of(search: str | None) -> str | None:
    """The run a query asks for."""
    return next(iter(parse_qs((search or "").removeprefix("?")).get("run", [])), None)


def own(following: dict[str, Any] | None, page: str, run_id: str) -> bool:
    """Whether a run is the one this page's own form has just asked for."""
    return ((following or {}).get(page) or {}).get("run") == run_id


def register(app: dash.Dash, state: AppState, kinds: dict[str, str]) -> None:
    """Callbacks of the panel of whichever page is there; `kinds` says what each page runs."""

    @app.callback(
        Output({"type": "panel-box", "page": ALL}, "style"),
        Output({"type": "panel-text", "page": ALL}, "children"),
        Output({"type": "panel-bar", "page": ALL}, "value"),
        Output(ids.FOLLOWING, "data", allow_duplicate=True),
        Output(ids.LOCATION, "search", allow_duplicate=True),
        Input(ids.POLL, "n_intervals"),
        Input(ids.SUBMITTED, "data"),
        State({"type": "panel-box", "page": ALL}, "id"),
        State(ids.FOLLOWING, "data"),
        State(ids.LOCATION, "search"),
        prevent_initial_call="initial_duplicate",
    )
    def watch(_ticks, _submitted, panels, following, search):
        if not panels:
            return [], [], [], no_update, no_update
        page = panels[0]["page"]
        job, mine, there = step(state, page, kinds[page], following, search, mounted=ctx.triggered_id is None)
        now = no_update if (following or {}).get(page, {}) == mine else {**(following or {}), page: mine}
        if job is None or job.over:
            return [HIDDEN], [no_update], [no_update], now, there or no_update
        return [{}], [describe(job)], [percent(job)], now, no_update

    @app.callback(
        Input({"type": "panel-cancel", "page": ALL}, "n_clicks"),
        State(ids.FOLLOWING, "data"),
        prevent_initial_call=True,
    )
    def cancel(_clicks, following):
        page = clicked("page")
        job = state.job(((following or {}).get(page) or {}).get("job", ""))
        if job is not None:
            state.worker.cancel(job.id)


def step(
    state: AppState,
    page: str,
    kind: str,
    following: dict[str, Any] | None,
    search: str | None,
    *,
    mounted: bool,
) -> tuple[Job | None, dict[str, Any], str | None]:
    """What a page waits for now: the job, its entry in `FOLLOWING`, and where to go if it is finished."""
    mine = dict((following or {}).get(page) or {})
    if not mine and mounted:
        active = state.active(kind)
        mine = {"job": active[0].id, "done": False} if active else {}
    job = state.job(mine.get("job", ""))
    if job is None or mine["done"]:
        return None, mine, None
    if not job.over:
        return job, mine, None
    # Someone who comes to the page by a link to another run wants that one, not the job's.
    asked_for_another = mounted and run_of(search) is not None
    there = address(job.run_id) if job.state == "finished" and not asked_for_another else None
    return job, mine | {"done": True, "run": job.run_id}, there
