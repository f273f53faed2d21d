"""What the callbacks share: the job worker, the folder of runs and the default model.

There is one `AppState` per app, handed to each page when it registers its callbacks. Run ids come from
the address bar, so they are looked up as names inside the folder of runs and never used as paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from workbench.errors import RunError
from workbench.jobs import Job, JobWorker
from workbench.runs import Run, RunInfo, list_runs, load_run, runs_folder
from workbench.specs import ModelSpec, Spec

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")


@dataclass(frozen=True)
class AppState:
    """What one app works with."""

    worker: JobWorker
    runs: Path
    model: str

    @classmethod
    def make(cls, runs: str | Path | None, worker: JobWorker | None, model: str) -> AppState:
        """A worker of its own unless one is given, and the worker's folder of runs unless one is given."""
        folder = runs_folder(
            runs if runs is not None else worker.runs if worker is not None else None
        ).absolute()
        return cls(worker or JobWorker(folder), folder, model)

    def submit(self, spec: Spec) -> Job:
        """Queue a spec."""
        return self.worker.submit(spec)

    def job(self, job_id: str) -> Job | None:
        """A job of this process; None if it belongs to an earlier start."""
        return next((job for job in self.worker.jobs() if job.id == job_id), None)

    def active(self, kind: str | None = None) -> list[Job]:
        """Jobs that are queued or running, newest first."""
        return [j for j in self.worker.jobs() if not j.over and kind in (None, j.spec.kind)]

    def list_runs(self) -> list[RunInfo]:
        """Every folder of runs, newest first; broken ones with their problem."""
        return list_runs(self.runs)

    def run(self, run_id: str) -> Run:
        """A run by id (or its unambiguous beginning), inside the folder of runs only.

        Raises:
            RunError: no such run, not an id, or a run that cannot be read.
        """
        if not RUN_ID.fullmatch(run_id):
            raise RunError(f"{run_id!r} is not the id of a run: ids look like 20261122-014512-lens-3f2a.")
        folder = self.runs / run_id
        if not folder.is_dir():
            folder = load_run(run_id, self.runs).path
        if folder.resolve().parent != self.runs.resolve():
            raise RunError(
                f"Run {run_id!r} is a link to a folder outside {str(self.runs)!r}: open it from there."
            )
        return _opened(folder)

    def model_in_use(self) -> ModelSpec | None:
        """The model the worker loaded last, as far as its jobs tell."""
        for job in self.worker.jobs():
            if job.started and job.stage not in ("", "load model"):
                return job.spec.model
        return None


@lru_cache(maxsize=8)
def _opened(folder: Path) -> Run:
    """Runs never change once written, so the last few stay open: a click on a cell reads no disk."""
    return load_run(folder)
