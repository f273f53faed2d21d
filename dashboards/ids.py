"""Ids of the shell, and how pages and components make theirs.

A component that stands once on the page has a string id, one that stands many times a dictionary id whose
`type` names it. Pages make theirs with `of(page, name)`, so that two pages never share one.
"""

from __future__ import annotations

LOCATION = "location"
"""The one address bar: `pathname` decides the page, `search` the run it shows."""
ROUTE = "route"
"""What the page is made for: `{"path": …, "scheme": "light" | "dark"}`, filled in by the browser."""
CONTENT = "content"
"""Where the page stands."""
SCHEME = "scheme"
"""The light/dark button; its `computedColorScheme` is what is shown."""
NOTIFICATIONS = "notifications"
NAVBAR_SHOWN = "navbar-shown"
SHELL = "shell"

POLL = "poll"
"""The one interval; it ticks only while a job runs."""
SUBMITTED = "submitted"
"""The job this tab submitted last; see `dashboards.following`, also for the next."""
FOLLOWING = "following"
"""Per page, the job whose result this tab waits for."""
SEEN = "seen"
"""State of each job when this tab last looked."""

JOBS_BUTTON = "jobs-button"
JOBS_COUNT = "jobs-count"
JOBS_DRAWER = "jobs-drawer"
JOBS_LIST = "jobs-list"


def of(page: str, name: str) -> str:
    """Id of something that stands once on a page."""
    return f"{page}-{name}"


def figure(page: str, name: str) -> dict[str, str]:
    """Id of a graph."""
    return {"type": "figure", "page": page, "name": name}


def job(part: str, job_id: str) -> dict[str, str]:
    """Id of a part of a job's row in the drawer: `bar`, `text` or `cancel`."""
    return {"type": f"job-{part}", "job": job_id}


def panel(part: str, page: str) -> dict[str, str]:
    """Id of a part of a page's progress panel: `box`, `text`, `bar` or `cancel`."""
    return {"type": f"panel-{part}", "page": page}


def query(page: str) -> dict[str, str]:
    """Id of the store on a page that holds the query of its address and the scheme to draw in.

    Pages listen to this and not to the address bar, which is there when they are not: Dash reports a callback
    whose input exists and whose output does not.
    """
    return {"type": "query", "page": page}


def news(page: str) -> dict[str, str]:
    """Id of a store on a page that changes when a job does."""
    return {"type": "news", "page": page}


def example(page: str, name: str) -> dict[str, str]:
    """Id of a button that fills a page's form."""
    return {"type": f"{page}-example", "name": name}
