"""Which job a page of this browser tab waits for, and what it does when that job ends. Plain functions.

Two stores of the shell hold it. A form writes `SUBMITTED`, its last job: `{"page": "lens", "job": "job-3",
"search": "?run=…"}`, with the query that was shown then. The watcher alone writes `FOLLOWING`, per page the
entry `{"job": "job-3", "search": "?run=…", "done": false}`, and takes a newer `SUBMITTED` over an older entry at
every look, so that it does not matter which of two answers the browser gets first. Both are empty after a
reload; then a page takes up the newest unfinished job of its kind, once.

A tab may outlive the server: jobs are numbered from 1 again, so what the tab waits for is first put through `current`,
which forgets entries of an earlier start.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlencode

from dashboards.state import AppState
from workbench.jobs import Job
from workbench.specs import Spec

Entry = dict[str, Any]
NONE: Entry = {"job": "", "search": "", "done": True}


def address(run_id: str) -> str:
    """The query that shows a run."""
    return f"?{urlencode({'run': run_id})}"


def run_of(search: str | None) -> str | None:
    """The run a query asks for."""
    return next(iter(parse_qs((search or "").removeprefix("?")).get("run", [])), None)


def submit(state: AppState, spec: Spec, page: str, search: str | None = "") -> Entry:
    """Queue a spec that `page` waits for: the value of `SUBMITTED`."""
    return {"page": page, "job": state.submit(spec).id, "search": search or ""}


def current(state: AppState, following: dict[str, Entry] | None) -> dict[str, Entry]:
    """What this tab waits for, without entries of an earlier start of the server: of jobs that are not here, or that
    are other jobs by the same number. One such entry, and none is of this start."""
    known = following or {}
    return {} if any(_earlier(state, one) for one in known.values()) else known


def _earlier(state: AppState, one: Entry) -> bool:
    if not one["job"]:
        return False
    job = state.job(one["job"])
    return job is None or (one["done"] and (not job.over or job.run_id != one.get("run", job.run_id)))


def entry(page: str, following: dict[str, Entry] | None, submitted: Entry | None) -> Entry | None:
    """What a page waits for; None if it has not waited for anything yet in this tab."""
    known = (following or {}).get(page)
    if (
        submitted
        and submitted["page"] == page
        and _number(submitted["job"]) > _number((known or NONE)["job"])
    ):
        return {"job": submitted["job"], "search": submitted["search"], "done": False}
    return known


def step(
    state: AppState, kind: str, mine: Entry | None, search: str | None
) -> tuple[Job | None, Entry, str | None]:
    """One look: the job to show progress of, the entry from now on, and the query to go to if there is one."""
    if mine is None:
        active = state.active(kind)
        mine = {"job": active[0].id, "search": search or "", "done": False} if active else NONE
    job = state.job(mine["job"])
    if job is None or mine["done"]:
        return None, mine, None
    if not job.over:
        return job, mine, None
    # Who has gone on to another run meanwhile wants that one.
    stayed = run_of(mine["search"]) == run_of(search)
    there = address(job.run_id) if job.state == "finished" and stayed else None
    return None, {**mine, "done": True, "run": job.run_id}, there


def appears(mine: Entry, search: str | None) -> bool:
    """Whether the result of what the page waits for is or will be on the screen without more ado."""
    return run_of(search) in (run_of(mine["search"]), mine.get("run"))


def own(mine: Entry | None, run_id: str) -> bool:
    """Whether a run is the one that a page's own form asked for last."""
    return mine is not None and mine.get("run") == run_id


def _number(job_id: str) -> int:
    """Jobs are numbered as they are submitted."""
    return int(job_id.removeprefix("job-") or 0)
