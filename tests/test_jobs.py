"""Jobs: one worker, progress, cancel, failures that are shown and do not stop the worker."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from conftest import hooks_left, tiny_model

from workbench.errors import RunError
from workbench.jobs import JobWorker
from workbench.lens.spec import LensSpec
from workbench.progress import Preview, preview
from workbench.runs import list_runs
from workbench.specs import Spec

PROMPT = "Mary went to the store and John gave a drink to"


class SlowSpec(Spec):
    kind: ClassVar[str] = "lens"

    def run(self, model, progress):
        progress.stage("wait", 1000)
        for _ in range(1000):
            time.sleep(0.01)
            progress.advance()
        raise AssertionError("was not cancelled")


class BrokenSpec(Spec):
    kind: ClassVar[str] = "lens"

    def run(self, model, progress):
        raise ZeroDivisionError("a bug")


@pytest.fixture
def worker(tmp_path):
    loads = []

    def load(spec):
        loads.append(spec)
        return tiny_model("llama")

    made = JobWorker(tmp_path, load=load)
    made.loads = loads
    yield made
    made.close()


def test_a_sweep_shows_what_it_has_so_far():
    """Every preview holds what the last had and more, up to the result's own numbers."""
    from workbench.patching.specs.sweep import PatchSpec
    from workbench.progress import Silent

    class Seen(Silent):
        def __init__(self):
            self.grids = []

        def preview(self, seen):
            assert (seen.rows, seen.columns) == ("layer", "position") and "pair 1 of 1" in seen.title
            self.grids.append(seen.values.copy())

    seen, clean = Seen(), PROMPT
    spec = PatchSpec(clean=clean, corrupt=clean.replace("John", "Anna"), answer="Mary", wrong="Tom")
    metric = spec.run(tiny_model("llama"), seen).data["metric"].values[0]
    assert len(seen.grids) == metric.shape[1]
    for before, after in pairwise(seen.grids):
        known = np.isfinite(before)
        assert np.isfinite(after).sum() == known.sum() + len(metric)
        np.testing.assert_array_equal(before[known], after[known])
    np.testing.assert_array_equal(seen.grids[-1], metric)


def test_the_preview_of_a_job_is_there_while_it_runs(worker):
    class Shows(Spec):
        kind: ClassVar[str] = "lens"

        def run(self, model, progress):
            preview(progress, Preview("half", np.array([[1.0, np.nan]]), "layer", "position"))
            progress.stage("wait", 1000)
            for _ in range(1000):
                time.sleep(0.01)
                progress.advance()

    job = worker.submit(Shows())
    while job.stage != "wait":
        time.sleep(0.01)
    assert job.preview is not None and job.preview.title == "half"
    worker.cancel(job.id)
    assert worker.wait(job.id, timeout=60).state == "cancelled"
    time.sleep(0.1)
    assert job.preview is None


def test_a_job_becomes_a_run_and_the_model_is_loaded_once(worker, tmp_path):
    jobs = [worker.submit(LensSpec(prompt=PROMPT)) for _ in range(3)]
    for job in jobs:
        assert worker.wait(job.id, timeout=60).state == "finished", job.error
    assert {info.id for info in list_runs(tmp_path)} == {job.run_id for job in jobs}
    assert len(worker.loads) == 1
    assert [job.id for job in worker.jobs()] == ["job-3", "job-2", "job-1"]


def test_a_running_job_shows_progress_and_stops_within_a_second_of_cancel(worker, tmp_path):
    job = worker.submit(SlowSpec())
    deadline = time.monotonic() + 20
    while job.done < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.state == "running" and job.stage == "wait" and job.total == 1000
    assert job.eta is not None and job.eta > 0
    asked = time.monotonic()
    worker.cancel(job.id)
    worker.wait(job.id, timeout=5)
    assert job.state == "cancelled" and time.monotonic() - asked < 1
    assert list_runs(tmp_path) == []
    assert hooks_left(worker.model(job.spec.model)) == 0


def test_a_queued_job_is_cancelled_at_once_and_never_runs(worker):
    running, queued = worker.submit(SlowSpec()), worker.submit(BrokenSpec())
    worker.cancel(queued.id)
    assert queued.state == "cancelled"
    worker.cancel(running.id)
    worker.wait(running.id, timeout=20)
    assert queued.state == "cancelled" and queued.error == ""


def test_a_bad_request_fails_with_its_message_and_a_bug_does_not_stop_the_worker(worker):
    bad = worker.submit(LensSpec(prompt=PROMPT, target="Mary went"))
    bug = worker.submit(BrokenSpec())
    good = worker.submit(LensSpec(prompt=PROMPT))
    assert worker.wait(good.id, timeout=60).state == "finished"
    assert bad.state == "failed" and "is 2 tokens" in bad.error
    assert bug.state == "failed" and "Internal error: ZeroDivisionError" in bug.error
    assert "Traceback" in bug.details


def test_an_unknown_job_is_an_error(worker):
    with pytest.raises(RunError, match="No job 'job-9'"):
        worker.get("job-9")
