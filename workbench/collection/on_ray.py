"""`collect_with_ray`: the work of `collect_to` on a Ray cluster, into the same store, byte for byte.

Ray Data does reading, scheduling, retries and autoscaling. One read task goes through the data, makes token ids and
groups them into units (`units.py`); a pool of actors, each with a model of its own, computes units and writes their
shards beside the store; this process moves finished shards in, in order, and is the only one that changes the store.
A unit whose worker died is done again by another, into another folder, so no row is lost or doubled.

What a prompt generates is not known beforehand, so with `generate` workers send rows back and this process writes
them.

Folder, data and model must be where every worker can read them: a shared file system, or the hub.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.collection.ray_cluster import Cluster, running
from workbench.collection.ray_source import drawn_from, read_units
from workbench.collection.ray_worker import Described, Job, Worker, described
from workbench.collection.request import Request
from workbench.collection.sources import Source, open_source
from workbench.collection.to_store import interruptible
from workbench.errors import Cancelled, DataError, WorkbenchError
from workbench.progress import Progress, Silent
from workbench.store.manifest import Cursor, Manifest
from workbench.store.parts import Part, finished_parts
from workbench.store.reader import Store, open_store
from workbench.store.writer import StoreWriter

SHARDS_PER_UNIT = 4


def collect_with_ray(
    folder: str | Path,
    model: str | Path,
    data: Any,
    sites: str | Iterable[str] = "blocks.*.hook_resid_post",
    positions: Any = "all",
    *,
    workers: int | tuple[int, int] = 1,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    address: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    shards_per_unit: int = SHARDS_PER_UNIT,
    text_column: str = "text",
    resume: bool = True,
    progress: Progress | None = None,
    **request: Any,
) -> Store:
    """Stream prompts through several models at once and write their activations to one store.

    Args:
        folder: the store, on a file system that all workers share. One that was begun, with or without Ray, is gone
            on with.
        model: name, hub id or folder; every worker loads it (`load_model`).
        data: as in `collect_to`, except that a generator cannot travel to where it is read.
        sites, positions: as in `collect_to`.
        workers: so many models at once; a pair lets Ray start more, up to the second, where the cluster has room.
        cpus_per_worker: also the number of threads a worker computes with.
        gpus_per_worker: 1 where each worker has a GPU; more with `model_options={"device_map": "auto"}` for a model
            that is larger than one.
        address: of a running cluster, `"auto"` for the one of this machine; None starts one here for this call.
        model_options: to `load_model`: `dtype`, `device`, `device_map`, `revision`.
        shards_per_unit: shards a worker writes in one go; also what is done again when it dies.
        text_column: field of the data that holds the text.
        resume: go on with a store that was begun. `False` makes an existing one an error.
        progress: where to report, one item per prompt.
        **request: `dtype`, `special`, `context`, `overlap`, `pack`, `generate`, `limit`, `rows_per_shard`,
            `tokens_per_batch`, `strict`, as in `collect_to`.

    Returns:
        The complete store, opened. It has the bytes that `collect_to` would have written on such a machine
        with as many threads (another number of threads, or another processor, may add up in another order).

    Raises:
        DataError, ModelError, …: as in `collect_to` and `load_model`, whichever process met them.
        Cancelled: after a cancel or Ctrl-C; the same call goes on, and finished shards are kept.
        WorkbenchError: Ray is not installed, or the cluster has not what a worker needs.

    Example:
        >>> wb.collect_with_ray("acts/", "smollm2-135m", "texts.jsonl", context=256, workers=2)  # doctest: +SKIP
        Store('acts', 80,000 rows of 1,024 prompts, 30 sites, complete)
    """
    cluster = Cluster(workers, cpus_per_worker, gpus_per_worker, address)
    asked = Request(sites=sites, positions=positions, **request)
    folder, progress, options = Path(folder).absolute(), progress or Silent(), dict(model_options or {})
    source = open_source(data, text_column=text_column, limit=asked.limit)
    if source.rows.one_shot:
        raise DataError(
            f"{source.name} cannot travel to the worker that reads it: give a file, a list, or a function that "
            "makes it."
        )
    if shards_per_unit < 1:
        raise DataError(f"shards_per_unit is {shards_per_unit}; expected 1 or more.")
    with running(cluster) as ray:
        progress.stage("load", 1)
        about: Described = _outcome(
            lambda: ray.get(
                ray.remote(described).options(**cluster.resources).remote(str(model), options, asked)
            )
        )
        progress.advance()
        with StoreWriter.open(folder, about.manifest, resume=resume, keep_parts=True) as writer:
            if writer.complete:  # of this data? `finish` compares
                count = ray.remote(drawn_from).options(**cluster.resources)
                drawn = _outcome(lambda: ray.get(count.remote(source, asked, about.text_side)))
                writer.finish(drawn.prompts, drawn.digest)
                return open_store(folder)
            job = Job(str(model), options, asked, about.manifest, str(folder))
            run = _Run(ray, writer, job, cluster, source, about, shards_per_unit, progress)
            _outcome(run.all)
    return open_store(folder)


@dataclass
class _Run:
    """One call's work, seen from the process that owns the store."""

    ray: Any
    writer: StoreWriter
    job: Job
    cluster: Cluster
    source: Source
    about: Described
    shards_per_unit: int
    progress: Progress

    def all(self) -> None:
        """Compute what is missing and finish the store."""
        writer, start = self.writer, self.writer.cursor
        waiting: dict[int, Part] = {}
        left: dict[int, Part] = {}  # by an earlier run: of this data only where the reader says so
        if self.job.request.generate is None:
            parts = finished_parts(writer.folder, writer.manifest, self._fits(writer.manifest))
            left = {part.first: part for part in parts}
        if writer.n_rows:
            writer.log({"event": "resumed", "rows": writer.n_rows, "batch": writer.cursor.batch})
        self.progress.stage("collect", self.source.length or 0)
        self.progress.advance(writer.cursor.prompts)
        began, tokens = time.monotonic(), 0
        units = read_units(
            self.ray,
            self.source,
            self.job.request,
            self.about.text_side,
            start=start,
            first=len(writer.records),
            shards_per_unit=self.shards_per_unit,
            done={(p.first, p.shards): p.records()[-1].cursor for p in left.values()},
        )
        units.context.execution_options.preserve_order = self.job.request.generate is not None
        results = units.map_batches(
            Worker,
            fn_constructor_args=(self.job,),
            batch_size=1,
            compute=self._pool(),
            **self.cluster.resources,
        )
        with interruptible() as interrupted:
            for row in results.iter_rows():
                given = row["result"]
                if given.get("end"):
                    self._end(given, start)
                    continue
                if "kept" in given:
                    waiting[given["kept"]] = left.pop(given["kept"])
                    self._adopt(waiting)
                    self.progress.advance(given["prompts"])
                    continue
                for event in given["events"]:
                    writer.log(event)
                for block, task in given["blocks"]:
                    writer.append(block, batch=task[0], window=task[1], digest=task[2], skip=task[3])
                if given["part"] is not None:
                    part = Part(Path(given["part"][0]), *given["part"][1:])
                    waiting[part.first] = part
                    if part.first in left:
                        shutil.rmtree(left.pop(part.first).folder, ignore_errors=True)
                    self._adopt(waiting)
                tokens += given["tokens"]
                self.progress.advance(given["prompts"])
                if interrupted:
                    raise Cancelled(
                        "Stopped; finished shards are kept, and the same command goes on from there."
                    )
        if waiting:
            raise WorkbenchError(
                f"Shards from {min(waiting)} on were computed, but those before them were not."
            )
        if self._ended is None:
            raise WorkbenchError("The reader ended without saying so: run the same command again.")
        seconds = round(time.monotonic() - began, 3)
        writer.log({"event": "collected", "tokens": tokens, "seconds": seconds, "engine": "ray"})
        writer.finish(*self._ended)

    _ended: tuple[int, str] | None = None

    def _end(self, given: Mapping[str, Any], start: Cursor) -> None:
        if start != Cursor() and self.job.request.generate is None:
            batch, rows, window, digest = given["first"] or (-1, 0, 0, "")
            self.writer.confirm(start, batch, rows, window, digest)
        self._ended = (given["prompts"], given["digest"])

    def _adopt(self, waiting: dict[int, Part]) -> None:
        """Move in what goes on where the store ends."""
        while (part := waiting.pop(len(self.writer.records), None)) is not None:
            self.writer.adopt(part)

    def _fits(self, manifest: Manifest) -> Any:
        """Whether a part has the borders of one unit of this run: multiples, or where the store ends."""
        m, have = self.shards_per_unit, len(self.writer.records)

        def known(part: Part) -> bool:
            begins = part.first == have or (part.first > have and part.first % m == 0)
            whole = all(r.rows == manifest.rows_per_shard for r in part.records())
            return begins and whole and part.shards == m - part.first % m

        return known

    def _pool(self) -> Any:
        from ray.data import ActorPoolStrategy

        least, most = self.cluster.range
        return ActorPoolStrategy(min_size=least, max_size=most)


def _outcome(call: Any) -> Any:
    """What a call gives; an error that a worker met comes out as itself, without Ray's layers around it."""
    try:
        return call()
    except WorkbenchError:
        raise
    except Exception as error:
        found = _ours(error)
        if found is not None:
            raise found from None
        raise


def _ours(error: BaseException | None) -> WorkbenchError | None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, WorkbenchError) and type(error).__module__ == WorkbenchError.__module__:
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
