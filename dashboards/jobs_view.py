"""The jobs drawer: every job of this process with its progress, and a button that stops it.

Jobs live in the worker, not in the browser, so a reloaded page or a second tab sees the same ones. One
interval in the shell looks at them while any runs; this module switches it off when the last one is over.
Rows are rebuilt only when a job appears or changes state; between that only bars and texts move, so that a
button under the pointer stays the same button.
"""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, html, no_update

from dashboards import following, ids
from dashboards.components import notify
from dashboards.components.aria import aria
from dashboards.components.clicks import clicked
from dashboards.state import AppState
from workbench.jobs import Job

SHOWN = 50
COLORS = {"queued": "gray", "running": "blue", "finished": "teal", "failed": "red", "cancelled": "gray"}
PAGES = {"lens": "/lens", "patch": "/patch", "probe": "/probes", "steer_direction": "/steer"}
"""Page that shows the runs of a kind; other kinds have their report."""


def layout() -> dmc.Drawer:
    """The drawer, closed."""
    return dmc.Drawer(
        id=ids.JOBS_DRAWER,
        title="Jobs",
        position="right",
        size="400px",
        children=html.Div(id=ids.JOBS_LIST, **aria(live="polite")),
        closeButtonProps=aria(label="Close jobs"),
    )


def percent(job: Job) -> float:
    """Length of a job's bar; full (and moving) where the number of items is not known."""
    if job.state == "running":
        return 100.0 * job.done / job.total if job.total else 100.0
    return 0.0 if job.state == "queued" else 100.0


def describe(job: Job) -> str:
    """Where a job is, in words."""
    if job.state == "queued":
        return "waiting for its turn"
    if job.state == "running":
        parts = [job.stage or "starting"]
        if job.total:
            parts.append(f"{job.done} of {job.total}")
        if (eta := job.eta) is not None:
            parts.append(f"about {seconds(eta)} left")
        return " · ".join(parts)
    taken = seconds(job.ended - job.started) if job.started and job.ended else ""
    if job.state == "failed":
        return job.error
    return f"{job.state} after {taken}" if taken else job.state


def seconds(value: float) -> str:
    """A time in words: `0.4 s`, `12 s`, `3 min 5 s`."""
    if value < 9.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def result_link(job: Job) -> str:
    """Where a finished job's result is shown."""
    page = PAGES.get(job.spec.kind)
    return f"{page}?run={job.run_id}" if page else f"/runs/{job.run_id}"


def row(job: Job) -> html.Div:
    """One job in the drawer."""
    running = job.state == "running"
    title = job.spec.title()
    buttons: list[Any] = []
    if not job.over:
        buttons.append(
            dmc.Button(
                "Cancel",
                id=ids.job("cancel", job.id),
                size="compact-sm",
                variant="light",
                color="red",
                **aria(label=f"Cancel {job.id}"),
            )
        )
    if job.state == "finished":
        buttons.append(dmc.Anchor("Open", href=result_link(job), size="sm", className="tap"))
    details = []
    if job.details:
        details.append(html.Details([html.Summary("Details"), html.Pre(job.details, className="code")]))
    return html.Div(
        [
            dmc.Group(
                [
                    dmc.Badge(job.spec.kind, variant="light", color="gray", size="sm"),
                    dmc.Text(title, size="sm", fw=500, truncate="end", flex=1, miw=0),
                    *buttons,
                ],
                gap="xs",
                wrap="nowrap",
            ),
            dmc.Progress(
                id=ids.job("bar", job.id),
                value=percent(job),
                color=COLORS[job.state],
                size="sm",
                animated=running,
                transitionDuration=200,
                **aria(label=f"Progress of {job.id}"),
            ),
            dmc.Text(
                describe(job),
                id=ids.job("text", job.id),
                size="sm",
                c="var(--mantine-color-error)" if job.state == "failed" else "dimmed",
            ),
            *details,
        ],
        className="job-row",
    )


def rows(jobs: list[Job]) -> list[Any]:
    """What the drawer holds: the newest jobs, and how many there are."""
    if not jobs:
        return [dmc.Text("Nothing has been run since this dashboard was started.", c="dimmed", size="sm")]
    more = (
        [dmc.Text(f"The newest {SHOWN} of {len(jobs)} jobs.", c="dimmed", size="sm")]
        if len(jobs) > SHOWN
        else []
    )
    return [row(job) for job in jobs[:SHOWN]] + more


def news(jobs: list[Job], seen: dict[str, str], shown: str = "") -> list[dict[str, Any]]:
    """Notifications for jobs that ended since they were last seen; none for `shown`, whose result appears.

    Two callbacks on their way at once both find a job unseen, so a job's notification has an identifier of its own.
    """
    notes = []
    for job in reversed(jobs):
        if not job.over or seen.get(job.id) == job.state:
            continue
        about, kind = f"job-{job.id}", job.spec.kind
        if job.state == "failed":
            notes.append(notify.error(job.error, f"The {kind} run failed", about=about))
        elif job.state == "cancelled":
            notes.append(notify.info("Nothing was written.", f"The {kind} run was cancelled", about=about))
        elif job.id != shown:
            link = dmc.Anchor("Open its report", href=f"/runs/{job.run_id}", size="sm")
            notes.append(notify.info(link, f"The {kind} run is finished", about=about))
    return notes


def idle(jobs: list[Job], seen: dict[str, str]) -> bool:
    """Whether the interval may stop: nothing runs now, and what ended had been seen to end before.

    The extra look is for the callbacks of the page, which may have been served just before the end.
    """
    return all(job.over and seen.get(job.id) == job.state for job in jobs)


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: keep the drawer, its count and the interval up to date; cancel."""

    @app.callback(
        Output(ids.JOBS_LIST, "children"),
        Output({"type": "job-bar", "job": ALL}, "value"),
        Output({"type": "job-text", "job": ALL}, "children"),
        Output(ids.JOBS_COUNT, "label"),
        Output(ids.JOBS_COUNT, "disabled"),
        Output(ids.POLL, "disabled"),
        Output(ids.SEEN, "data"),
        Output({"type": "news", "page": ALL}, "data"),
        Input(ids.POLL, "n_intervals"),
        Input(ids.SUBMITTED, "data"),
        Input(ids.JOBS_DRAWER, "opened"),
        State(ids.SEEN, "data"),
        State({"type": "job-bar", "job": ALL}, "id"),
        State({"type": "news", "page": ALL}, "data"),
        State(ids.FOLLOWING, "data"),
        State(ids.LOCATION, "pathname"),
        State(ids.LOCATION, "search"),
    )
    def look(_ticks, submitted, _opened, seen, bars, told, known, pathname, search):
        jobs = state.worker.jobs()
        now: dict[str, str] = {job.id: job.state for job in jobs}
        if seen is None:  # this tab has just been opened: what is over is old news
            seen = {job.id: job.state for job in jobs if job.over}
            fresh = True
        else:
            fresh = False
        waiting = following.current(state, known)
        mine = following.entry((pathname or "").strip("/"), waiting, submitted)
        shown = mine["job"] if mine is not None and following.appears(mine, search) else ""
        notify.show(*news(jobs, seen, shown))
        by_id = {job.id: job for job in jobs}
        listed = [by_id[bar["job"]] for bar in bars if bar["job"] in by_id]
        n_active = sum(not job.over for job in jobs)
        if fresh or now != seen or len(listed) != len(bars):
            moved: tuple[Any, list[Any], list[Any]] = (
                rows(jobs),
                [no_update] * len(bars),
                [no_update] * len(bars),
            )
        else:
            moved = no_update, [percent(j) for j in listed], [describe(j) for j in listed]
        known = no_update if not fresh and now == seen else now
        return *moved, n_active, n_active == 0, idle(jobs, seen), known, [known] * len(told)

    @app.callback(
        Output(ids.JOBS_DRAWER, "opened"), Input(ids.JOBS_BUTTON, "n_clicks"), prevent_initial_call=True
    )
    def open_drawer(_clicks):
        return True

    @app.callback(Input({"type": "job-cancel", "job": ALL}, "n_clicks"), prevent_initial_call=True)
    def cancel(_clicks):
        if (job_id := clicked("job")) is not None:
            state.worker.cancel(job_id)
