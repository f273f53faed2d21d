"""Executing a spec: validate, compute, then write the run folder in one piece.

The folder appears only when everything is in it. An error or a cancel before that leaves nothing behind,
and a folder that cannot be written is found out before the work, not after it. What was computed is not lost to a
figure or a report that fails, also of another package: the run is kept without it, with a warning and what went wrong
in its log.
"""

from __future__ import annotations

import json
import secrets
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import Cancelled, RunError
from workbench.files import publish_folder, scratch_folder
from workbench.progress import Preview, Progress, Silent, preview
from workbench.runs.folder import Run, load_run, runs_folder
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class _Log:
    """Events with their time; also passes progress on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._start = time.perf_counter()
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, /, **details: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        seconds = round(time.perf_counter() - self._start, 3)
        self.events.append({"time": now, "seconds": seconds, "event": name, **details})

    def stage(self, name: str, total: int) -> None:
        self.event("stage", name=name, total=total)
        self._progress.stage(name, total)

    def advance(self, n: int = 1) -> None:
        self._progress.advance(n)

    def preview(self, seen: Preview) -> None:
        preview(self._progress, seen)


def run_spec(
    spec: Spec,
    *,
    runs: str | Path | None = None,
    model: LanguageModel | None = None,
    progress: Progress | None = None,
) -> Run:
    """Do what a spec asks and write the run folder.

    Args:
        spec: what is asked.
        runs: folder of the runs (default: see `runs_folder`).
        model: a model that is loaded already and fits `spec.model`; loaded here if None.
        progress: where to report; its `advance` may raise `Cancelled`.

    Raises:
        WorkbenchError: bad input or a folder that cannot be written; nothing is left behind.
        Cancelled: likewise.
    """
    folder = runs_folder(runs)
    log = _Log(progress or Silent())
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{spec.kind}-{secrets.token_hex(2)}"
    _check_writable(folder / run_id)
    log.event("start", id=run_id, kind=spec.kind)
    _check_datasets(spec)
    if model is None:
        model = spec.model.load()
        log.event("model", name=model.name, fingerprint=model.fingerprint)
    started = time.perf_counter()
    result = spec.run(model, log)
    seconds = time.perf_counter() - started
    log.event("computed", seconds_taken=round(seconds, 3))
    with publish_folder(folder / run_id) as temporary:
        _write(temporary, run_id, spec, result, seconds, log)
    return load_run(folder / run_id)


def _write(folder: Path, run_id: str, spec: Spec, result: Result, seconds: float, log: _Log) -> None:
    (folder / "spec.yaml").write_text(spec.to_yaml(), encoding="utf-8")
    result.save(folder / "result.zarr")
    figures = {}
    (folder / "figures").mkdir()
    with _kept(run_id, "its figures", log):
        figures = result.figures()
        for name, figure in figures.items():
            (folder / "figures" / f"{name}.json").write_text(figure.to_json(), encoding="utf-8")
    for entry in entry_points(group="workbench.reports"):
        with _kept(run_id, f"the report {entry.name!r}", log):
            entry.load()(folder, result, {"id": run_id, **spec.to_dict()}, figures)
    header = {
        "id": run_id,
        "kind": spec.kind,
        "title": spec.title(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "summary": result.summary,
        "provenance": result.provenance.to_dict(),
    }
    text = json.dumps(header, indent=1, ensure_ascii=False)
    (folder / "provenance.json").write_text(text, encoding="utf-8")
    log.event("written")
    lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in log.events)
    (folder / "log.jsonl").write_text(lines, encoding="utf-8")


@contextmanager
def _kept(run_id: str, what: str, log: _Log) -> Iterator[None]:
    """A failure of `what` is a warning and an event of the log; a disk that cannot be written stays an error."""
    try:
        yield
    except (OSError, Cancelled):
        raise
    except Exception as error:  # noqa: BLE001 - hours of work are behind it
        log.event("failed", what=what, error=repr(error), traceback=traceback.format_exc())
        warnings.warn(
            f"Run {run_id}: {what} could not be made ({error!r}). The result is saved; log.jsonl has the details.",
            RuntimeWarning,
            stacklevel=4,
        )


def _check_datasets(spec: Spec) -> None:
    """Find out before a model is loaded that a data set has another name, or a file is not there."""
    from workbench.datasets import check

    for field, value in spec:
        if "dataset" in field:
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str) and name:
                    check(name)


def _check_writable(target: Path) -> None:
    """Find out before the work that the folder cannot be written."""
    if target.parent.exists() and not target.parent.is_dir():
        raise RunError(
            f"{str(target.parent)!r} is a file, expected a folder for runs: choose another with --runs or "
            "$WORKBENCH_RUNS."
        )
    with scratch_folder(target):
        pass
