"""What the tray does with directions of the library, as plain functions: compare, tokens, import, export."""

from __future__ import annotations

import base64
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc

from dashboards.components import graphs
from dashboards.state import AppState
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.directions import Direction, DirectionSet, Library
    from workbench.jobs import Job

PAGE = "tray"
_NOT_IN_NAMES = re.compile(r"[^\w .+=@,()-]+")


def library() -> Library:
    """The user's library; imported late, since it brings torch."""
    from workbench.directions import library

    return library()


def cosines(names: list[str], scheme: str | None, *, force: bool) -> list[Any]:
    """The cosine matrix of the chosen ones, beside random directions.

    Raises:
        DataError: fewer than two, other widths, or other models without `force`.
    """
    from dashboards.figures import directions as figures

    if not names:
        raise DataError("No direction is chosen: tick at least two in the list (or a set) to compare them.")
    from workbench.directions import direction_cosines
    from workbench.directions.named import members_named

    result = direction_cosines(members_named(names, library()), force=force)
    said = figures.describe(result)
    drawn = figures.figures(result)
    shown = [graphs.graph(PAGE, "cosines", drawn["cosines"], said["cosines"], scheme)]
    return [*shown, dmc.Text(figures.control_statement(result), size="sm", c="dimmed")]


def tokens_of(job: Job, state: AppState, scheme: str | None) -> list[Any]:
    """What came of a tokens job."""
    if job.state != "finished":
        return [
            dmc.Text(
                f"{job.spec.title()}: {job.error or job.state}", size="sm", c="var(--mantine-color-error)"
            )
        ]
    from dashboards.figures import directions as figures

    result = state.run(job.run_id).result
    said = figures.describe(result)
    shown = [
        graphs.graph(PAGE, name, drawn, said[name], scheme) for name, drawn in figures.figures(result).items()
    ]
    link = dmc.Anchor("Report of this run", href=f"/runs/{job.run_id}", size="sm", className="tap")
    return [dmc.Text(figures.control_statement(result), size="sm", c="dimmed"), *shown, link]


def imported(contents: str, filename: str) -> tuple[str, DirectionSet | Direction]:
    """Save an uploaded file into the library under a name that is free; the name and what it is.

    Raises:
        DataError: no direction file, or one that is refused (pickles are).
    """
    from workbench.directions import read

    head, _, data = contents.partition(",")
    if not head.endswith(";base64"):
        raise DataError(f"{filename!r} did not arrive as a file: try again.")
    stem = _NOT_IN_NAMES.sub("-", Path(filename).stem).strip(" .-_") or "imported"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / (_NOT_IN_NAMES.sub("-", Path(filename).name).lstrip(".") or "file")
        file.write_bytes(base64.b64decode(data))
        found = read(file)
    mine = library()
    taken = {name.casefold() for name in mine.names()}
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 10_000))) if n.casefold() not in taken)
    mine.save(name, found, tags=["imported"])
    return name, found


def exported(name: str, suffix: str) -> dict[str, Any]:
    """A direction as a download. Raises `DataError` where it does not fit the format."""
    from workbench.directions import Direction, DirectionSet, write

    held = library().load(name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"direction.{suffix}"
        if suffix == "safetensors":
            held.save(file)
        else:
            write(DirectionSet([held]) if isinstance(held, Direction) else held, file)
        data = base64.b64encode(file.read_bytes()).decode()
    return {
        "content": data,
        "filename": f"{name}.{suffix}",
        "type": "application/octet-stream",
        "base64": True,
    }
