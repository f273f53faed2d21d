"""Jobs: specs executed one after another by one thread of this process, with progress and cancel.

The model lives in this process (and perhaps on a GPU), so a second process would need a second copy of it and
a forked one could not use CUDA. One worker thread therefore does all the work in turn; callers only look on.
Cancelling is cooperative: the next `advance` of the running analysis raises `Cancelled`, and its hooks are
removed on the way out like on any other.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workbench.errors import Cancelled, RunError, WorkbenchError
from workbench.progress import Preview

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.specs import ModelSpec, Spec

State = Literal["queued", "running", "finished", "failed", "cancelled"]


@dataclass
class Job:
    """A run being executed.

    Attributes:
        id: `job-1`, `job-2`, …
        spec: what was asked.
        state: queued, running, finished, failed or cancelled.
        stage: the part it is in.
        done, total: items of that part.
        error: one line for the user, if it failed.
        run_id: the run it became, once finished.
        preview: what is known so far, of analyses that say so.
    """

    id: str
    spec: Spec
    state: State = "queued"
    stage: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    details: str = ""
    run_id: str = ""
    preview: Preview | None = None
    started: float = 0.0
    ended: float = 0.0
    _stage_started: float = 0.0
    _cancel: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def eta(self) -> float | None:
        """Seconds left in the present stage, by its pace so far; None before the first item."""
        if self.state != "running" or not self.done or not self.total:
            return None
        pace = (time.monotonic() - self._stage_started) / self.done
        return pace * (self.total - self.done)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("finished", "failed", "cancelled")


class _JobProgress:
    def __init__(self, job: Job) -> None:
        self._job = job

    def stage(self, name: str, total: int) -> None:
        self._job.stage, self._job.done, self._job.total = name, 0, total
        self._job._stage_started = time.monotonic()
        self.advance(0)

    def advance(self, n: int = 1) -> None:
        self._job.done += n
        if self._job._cancel.is_set():
            raise Cancelled

    def preview(self, seen: Preview) -> None:
        self._job.preview = seen


class JobWorker:
    """Runs specs in turn in one thread; keeps the last model loaded.

    Example:
        >>> worker = JobWorker(runs="runs")
        >>> job = worker.submit(LensSpec(prompt="The capital of France is"))
        >>> worker.wait(job.id).state
        'finished'
    """

    def __init__(
        self, runs: str | Path | None = None, *, load: Callable[[ModelSpec], LanguageModel] | None = None
    ) -> None:
        self.runs = runs
        self._load = load or (lambda spec: spec.load())
        self._jobs: dict[str, Job] = {}
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._model: tuple[ModelSpec, LanguageModel] | None = None
        self._thread = threading.Thread(target=self._work, name="workbench-jobs", daemon=True)
        self._thread.start()

    def submit(self, spec: Spec) -> Job:
        """Queue a spec; returns at once."""
        with self._lock:
            job = Job(f"job-{next(self._numbers)}", spec)
            self._jobs[job.id] = job
        self._queue.put(job)
        return job

    def get(self, job_id: str) -> Job:
        """A job by id; raises `RunError` if there is none."""
        job = self._jobs.get(job_id)
        if job is None:
            raise RunError(f"No job {job_id!r} here: it belongs to an earlier start of this program.")
        return job

    def jobs(self) -> list[Job]:
        """All jobs of this process, newest first."""
        return list(reversed(self._jobs.values()))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop: a queued one at once, a running one at its next item."""
        job = self.get(job_id)
        job._cancel.set()
        with self._lock:
            if job.state == "queued":
                job.state, job.ended = "cancelled", time.monotonic()
        return job

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Block until a job is over (for scripts and tests)."""
        job = self.get(job_id)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not job.over:
            if deadline is not None and time.monotonic() > deadline:
                raise RunError(f"Job {job_id} is still {job.state} after {timeout} s.")
            time.sleep(0.02)
        return job

    def model(self, spec: ModelSpec) -> LanguageModel:
        """The loaded model for a spec, loading it if another or none is loaded."""
        with self._lock:
            held = self._model
        if held is None or held[0] != spec:
            held = (spec, self._load(spec))
            with self._lock:
                self._model = held
        return held[1]

    def close(self) -> None:
        """Stop after the present job."""
        for job in self.jobs():
            if not job.over:
                self.cancel(job.id)
        self._queue.put(None)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            with self._lock:
                if job.state != "queued":
                    continue
                job.state, job.started = "running", time.monotonic()
            self._execute(job)
            job.ended, job.preview = time.monotonic(), None

    def _execute(self, job: Job) -> None:
        from workbench.runs.execute import run_spec

        progress = _JobProgress(job)
        try:
            progress.stage("load model", 0)
            model = self.model(job.spec.model)
            run = run_spec(job.spec, runs=self.runs, model=model, progress=progress)
            job.run_id = run.id
            job.state = "finished"
        except Cancelled:
            job.state = "cancelled"
        except WorkbenchError as error:
            job.error, job.state = str(error), "failed"
        except Exception as error:  # noqa: BLE001 - the worker must outlive a bug in an analysis; it is shown
            job.error = (
                f"Internal error: {type(error).__name__}: {error}. This is a bug; the log has its details."
            )
            job.details = traceback.format_exc()
            job.state = "failed"
