"""Progress of the job a page waits for, with a button that stops it, and the way to its result.

`FOLLOWING` keeps, per page, the job of this tab: `{"lens": {"job": "job-3", "done": false}}`. It is empty after
a reload; then the page takes up the newest unfinished job of its kind, if there is one. When the job is
finished the address becomes `?run=<id>`, and everything that shows a result listens to the address.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlencode

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, ctx, html, no_update

from dashboards import ids
from dashboards.jobs_view import describe, percent
from dashboards.state import AppState
from workbench.specs import Spec

HIDDEN = {"display": "none"}


def layout(page: str) -> html.Div:
    """The panel, hidden until a job is followed."""
    return html.Div(
        [
            dmc.Text(id=ids.of(page, "job-text"), size="sm", className="job-text"),
            dmc.Progress(
                id=ids.of(page, "job-bar"),
                value=0,
                size="md",
                animated=True,
                flex=1,
                **{"aria-label": "Progress"},
            ),
            dmc.Button(
                "Cancel", id=ids.of(page, "job-cancel"), size="compact-sm", variant="light", color="red"
            ),
        ],
        id=ids.of(page, "job-panel"),
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


def _following(following: dict[str, Any] | None, page: str, mine: dict[str, Any]) -> Any:
    """The store with this page's entry, or no update where it is there already."""
    before = following or {}
    return no_update if before.get(page) == mine else {**before, page: mine}


def register(app: dash.Dash, state: AppState, page: str, kind: str) -> None:
    """Callbacks of one page's panel."""

    @app.callback(
        Output(ids.of(page, "job-panel"), "style"),
        Output(ids.of(page, "job-text"), "children"),
        Output(ids.of(page, "job-bar"), "value"),
        Output(ids.FOLLOWING, "data", allow_duplicate=True),
        Output(ids.LOCATION, "search", allow_duplicate=True),
        Input(ids.POLL, "n_intervals"),
        Input(ids.SUBMITTED, "data"),
        State(ids.FOLLOWING, "data"),
        State(ids.LOCATION, "search"),
        prevent_initial_call="initial_duplicate",
    )
    def watch(_ticks, _submitted, following, search):
        mounted = ctx.triggered_id is None
        mine = dict((following or {}).get(page) or {})
        if not mine and mounted:
            active = state.active(kind)
            mine = {"job": active[0].id, "done": False} if active else {}
        job = state.job(mine.get("job", ""))
        if job is None or mine["done"]:
            return HIDDEN, no_update, no_update, no_update, no_update
        if not job.over:
            return {}, describe(job), percent(job), _following(following, page, mine), no_update
        # Someone who comes to the page by a link to another run wants that one, not the job's.
        asked_for_another = mounted and run_of(search) is not None
        show = job.state == "finished" and not asked_for_another
        mine |= {"done": True, "run": job.run_id}
        there = address(job.run_id) if show else no_update
        return HIDDEN, no_update, no_update, _following(following, page, mine), there

    @app.callback(
        Input(ids.of(page, "job-cancel"), "n_clicks"), State(ids.FOLLOWING, "data"), prevent_initial_call=True
    )
    def cancel(n_clicks, following):
        job = state.job(((following or {}).get(page) or {}).get("job", ""))
        if n_clicks and job is not None:
            state.worker.cancel(job.id)
