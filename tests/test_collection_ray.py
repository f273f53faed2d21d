"""The engine on Ray: one small cluster on this machine for all tests of the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
from conftest import tiny_model
from test_collection_engine import SITES, same_bytes, texts

import workbench as wb
from workbench.collection.generation import Generation
from workbench.collection.units import units
from workbench.errors import Cancelled, DataError, ModelError, PositionError, WorkbenchError
from workbench.store.manifest import PARTS, Cursor

ray = pytest.importorskip("ray")
SIZES = {"rows_per_shard": 17, "tokens_per_batch": 24}


@pytest.fixture(scope="module")
def cluster():
    """Two slots; workers are started in this folder, so that they find the tests' modules."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama").hf.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def here(folder):
    """The same model in this process, on one thread as the workers are: sums in another order end in other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield wb.load_model(folder, device="cpu")
    torch.set_num_threads(threads)


def test_two_workers_write_the_bytes_of_one_process(cluster, folder, here, tmp_path):
    wb.collect_to(tmp_path / "one", here, texts(60), SITES, **SIZES)
    store = wb.collect_with_ray(
        tmp_path / "two", folder, texts(60), SITES, workers=2, shards_per_unit=2, **SIZES
    )
    assert store.complete and same_bytes(tmp_path / "one", tmp_path / "two") == []
    assert not (tmp_path / "two" / PARTS).exists()
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["engine"] == "ray"
    assert wb.collect_with_ray(tmp_path / "two", folder, texts(60), SITES, **SIZES).complete  # nothing to do
    for other in (texts(60, seed=1), texts(59)):
        with pytest.raises(DataError, match="begun with another data set"):
            wb.collect_with_ray(tmp_path / "two", folder, other, SITES, **SIZES)


def test_selected_positions_with_prompts_and_batches_without_rows(cluster, folder, here, tmp_path):
    rule = f"match:{texts(1)[0].split()[0]}"
    wb.collect_to(tmp_path / "one", here, texts(60), SITES, rule, **SIZES)
    wb.collect_with_ray(tmp_path / "two", folder, texts(60), SITES, rule, shards_per_unit=1, **SIZES)
    assert same_bytes(tmp_path / "one", tmp_path / "two") == []


def test_generated_rows_are_those_of_one_process(cluster, folder, here, tmp_path):
    how = {"generate": Generation(max_new_tokens=4, temperature=1.0, prompt_rows=True), **SIZES}
    wb.collect_to(tmp_path / "one", here, texts(20), SITES, **how)
    wb.collect_with_ray(tmp_path / "two", folder, texts(20), SITES, workers=2, **how)
    assert same_bytes(tmp_path / "one", tmp_path / "two") == []


def workers() -> list[int]:
    """Process ids of the actors of this process's own cluster; others may run on this machine."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"MapWorker" in (folder / "cmdline").read_bytes():
                actors.append(pid)
        except OSError:
            continue

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in actors if ours(pid)]


def test_a_killed_worker_loses_and_doubles_nothing(cluster, folder, here, tmp_path):
    wb.collect_to(tmp_path / "one", here, texts(400), SITES, **SIZES)
    killed: list[int] = []

    def kill() -> None:
        target = tmp_path / "two"
        while not list((target / "shards").glob("00003.json")):
            time.sleep(0.005)
        for pid in workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(len(list((target / "shards").glob("*.json"))))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    wb.collect_with_ray(tmp_path / "two", folder, texts(400), SITES, workers=2, shards_per_unit=1, **SIZES)
    total = len(list((tmp_path / "two" / "shards").glob("*.json")))
    assert killed and killed[0] < total, "the worker was killed after the work was done"
    assert same_bytes(tmp_path / "one", tmp_path / "two") == []


DRIVER = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import workbench as wb
    from test_collection_engine import SITES, texts
    class Watch:
        n = 0
        def stage(self, name, total): pass
        def advance(self, n=1):
            Watch.n += n
            if Watch.n > 60:
                os.kill(os.getpid(), signal.SIGKILL)
    wb.collect_with_ray({folder!r}, {model!r}, texts(200), SITES, workers=1, shards_per_unit=2,
                        progress=Watch(), rows_per_shard=17, tokens_per_batch=24)
"""


def test_a_killed_driver_leaves_a_store_that_either_engine_finishes(cluster, folder, here, tmp_path):
    wb.collect_to(tmp_path / "one", here, texts(200), SITES, **SIZES)
    tests = str(Path(__file__).parent)
    code = textwrap.dedent(DRIVER).format(tests=tests, folder=str(tmp_path / "two"), model=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    begun = wb.open_store(tmp_path / "two")
    assert not begun.complete and 0 < len(begun) < 1300
    subprocess.run(["cp", "-r", str(tmp_path / "two"), str(tmp_path / "three")], check=True)
    wb.collect_with_ray(tmp_path / "two", folder, texts(200), SITES, shards_per_unit=2, **SIZES)
    wb.collect_to(tmp_path / "three", here, texts(200), SITES, **SIZES)
    assert same_bytes(tmp_path / "one", tmp_path / "two") == []
    assert same_bytes(tmp_path / "one", tmp_path / "three") == []


def test_cancelled_with_finished_parts_goes_on(cluster, folder, here, tmp_path):
    wb.collect_to(tmp_path / "one", here, texts(120), SITES, **SIZES)

    class Stop:
        n = 0

        def stage(self, name, total):
            pass

        def advance(self, n=1):
            Stop.n += n
            if Stop.n > 40:
                raise Cancelled("stop")

    options = {"workers": 2, "shards_per_unit": 2, **SIZES}
    with pytest.raises(Cancelled):
        wb.collect_with_ray(tmp_path / "two", folder, texts(120), SITES, progress=Stop(), **options)
    assert not wb.open_store(tmp_path / "two").complete
    with pytest.raises(DataError, match="data is not what the store was begun with"):
        wb.collect_with_ray(tmp_path / "two", folder, texts(120, seed=5), SITES, **options)
    wb.collect_with_ray(tmp_path / "two", folder, texts(120), SITES, **options)
    assert same_bytes(tmp_path / "one", tmp_path / "two") == []


def test_errors_come_out_as_they_are(cluster, folder, tmp_path):
    with pytest.raises(ModelError, match="Did you mean"):
        wb.collect_with_ray(tmp_path / "s", "smollm2-135", texts(3), SITES)
    with pytest.raises(PositionError, match="zebra"):
        wb.collect_with_ray(tmp_path / "s", folder, texts(3), SITES, "match:zebra", **SIZES)
    with pytest.raises(DataError, match="cannot travel"):
        wb.collect_with_ray(tmp_path / "t", folder, (t for t in texts(3)), SITES)
    with pytest.raises(WorkbenchError, match="ask for fewer"):
        wb.collect_with_ray(tmp_path / "t", folder, texts(3), SITES, workers=64)
    with pytest.raises(DataError, match="1 or more"):
        wb.collect_with_ray(tmp_path / "t", folder, texts(3), SITES, workers=0)


def test_a_worker_with_another_model_is_refused(cluster, folder, tmp_path):
    """The files change after the store was begun."""
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(folder, copy)

    class Stop:
        n = 0

        def stage(self, name, total):
            pass

        def advance(self, n=1):
            Stop.n += n
            if Stop.n > 30:
                raise Cancelled("stop")

    with pytest.raises(Cancelled):
        wb.collect_with_ray(
            tmp_path / "s", copy, texts(80), SITES, progress=Stop(), shards_per_unit=1, **SIZES
        )
    tiny_model("llama", seed=7).hf.save_pretrained(copy)
    with pytest.raises(DataError, match="model_fingerprint"):
        wb.collect_with_ray(tmp_path / "s", copy, texts(80), SITES, **SIZES)


@pytest.mark.parametrize("shards_per_unit", [1, 2, 5])
@pytest.mark.parametrize("begin", [0, 3])
def test_units_cover_every_row_once(here, begin, shards_per_unit):
    from workbench.collection.request import Request
    from workbench.collection.sources import open_source
    from workbench.collection.tasks import tasks
    from workbench.model.text_side import TextSide

    request = Request(sites=SITES, **SIZES)
    contexts = list(request.contexts(TextSide.of(here), open_source(texts(50))))

    def rows_of(some):
        return [len(c.ids) for c in some]

    plain = list(tasks(contexts, 24))
    ends = [(t.number, r) for t in plain for r in range(sum(rows_of(t.contexts)))]
    at = ends[begin * 17 - 1] if begin else None
    start = Cursor() if at is None else Cursor(at[0], at[1] + 1, plain[at[0]].window, plain[at[0]].digest, 0)
    made = list(
        units(
            tasks(contexts, 24, start), rows_of, start=start, first=begin, rows_per_shard=17,
            shards_per_unit=shards_per_unit,
        )
    )  # fmt: skip
    covered = []
    for unit in made:
        rows = [(t.number, r) for t in unit.tasks for r in range(t.skip, sum(rows_of(t.contexts)))]
        covered += rows if unit.last else rows[: 17 * unit.shards]
        assert unit.first_row == 17 * unit.first
        assert unit.last or (unit.first + unit.shards) % shards_per_unit == 0
    assert covered == ends[begin * 17 :]
