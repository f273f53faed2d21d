"""Shuffled batches from a store, against a raw memory map and against sae-lens' cached activations.

The same random rows (no model) lie on disk three times: as a store, as one flat file, and as the Arrow data set
that sae-lens' `CacheActivationsRunner` leaves behind. The runner itself would load a model and tokens; here
`datasets` writes the columns with the features the runner declares, and the runner's own `_consolidate_shards` makes
the folder of them. sae-lens' `ActivationsStore` serves that folder as in a training run; it keeps the model it is
given and never calls it for cached activations, so it is given None.

1. Check: an epoch of ours is every row of the source once, bit for bit. Each row that sae-lens serves is a row of the
   source; its mixing buffer keeps rows back for the next epoch, so an epoch's batches hold only a share of them.
2. How well a batch is mixed: how far neighbours in it are apart in the source. The median of a uniform shuffle is
   1 - 1/sqrt(2) = 0.293 of all rows.
3. Time, in turn. The first epoch begins anew: new maps, new buffers, and ours compares checksums unless
   `verify='never'`. Later epochs follow at once; ours then closes, so that nothing is read ahead while another side
   is timed. Files were just written, so they are in the page cache. `cpu` is the processor time of all threads: ours
   fills batches in two, so its wall time suffers more where other processes take the cores.

Raw gather: a new permutation of all rows each epoch, `map[rows]` for each batch, by numpy (one thread) and by torch
(all threads); in every round the faster of the two counts. The limit: the same by two threads of numpy, ahead, into
memory that is used again, which is all that a loader on two cores can do with rows that have to be copied once.

sae-lens shuffles in a mixing buffer, and the larger it is, the better it mixes and the slower it gets. `sae-lens`, to
which the goal refers, has a buffer as large as ours (and even so mixes less well). `sae-lens, small buffer` has
`n_batches_in_buffer=64`, as in many published configurations, of 256 tokens; beside ours over it stands the limit over
it. Both take 16 contexts at once, and are timed over one epoch. One epoch, not in turn, also with the smallest buffer
it accepts.

Goals, of later epochs at float32: `shuffled_over_saelens` >= 20 (rows/s of ours over those of sae-lens) and
`shuffled_over_raw_gather` >= 0.5.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Goal, Report, Timing, alternate, machine, main
from workbench.collection.to_store import ROWS_PER_SHARD
from workbench.store import (
    Manifest,
    PromptRecord,
    RowBlock,
    ShuffledLoader,
    SiteRecord,
    StoreWriter,
    open_store,
)
from workbench.store.raw import as_bytes, as_integers
from workbench.store.values import DTYPE

SITE = "blocks.15.hook_resid_post"
BATCH = 4096
BUFFER_BYTES = 256 << 20  # of ours; the loader's default
CONTEXT, CONTEXTS_AT_ONCE = 256, 16  # sae-lens: tokens of a context, contexts it reads at once
NEAR = 64  # rows of the source that count as close together
LATER = 4  # later epochs timed at once, but for sae-lens
_DIGITS = 4

Begin = Callable[[], Iterator[Tensor]]


def run(rows: int = 307_200, width: int = 576, repeats: int = 3, saelens_buffer: int = 64) -> Report:
    """All sides at float32, then ours and the raw gather at bfloat16.

    Args:
        rows: rows of the source, rounded down to whole batches (at least 16); by default three of our buffers.
        width: values of a row; 576 is smollm2-135m's residual stream.
        repeats: timed rounds, after one that is not.
        saelens_buffer: `n_batches_in_buffer`, its small mixing buffer in contexts.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows = max(rows // BATCH, 16) * BATCH
    report = Report(
        settings={
            **machine(),
            "rows": rows,
            "width": width,
            "batch": BATCH,
            "our buffer": f"{BUFFER_BYTES >> 20} MiB",
            "sae-lens' buffer": f"{_large_buffer(rows, width) * CONTEXT} rows",
            "sae-lens' small buffer": f"{saelens_buffer * CONTEXT} rows",
            "repeats": repeats,
        }
    )
    for stored, served in (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")):
        with tempfile.TemporaryDirectory(prefix="store-") as folder:
            source = Source(Path(folder), rows, width, stored)
            source.write(with_saelens=stored == "float32")
            _compare(source, DTYPE[served], repeats, saelens_buffer, report)
    report.rows.append({"side": "sae-lens", "stored": "bfloat16", "note": "Arrow has no bfloat16: not run"})
    return report


@dataclass(frozen=True)
class Source:
    """The same rows as a flat file, a store and a folder of sae-lens; the first values of a row are its number."""

    folder: Path
    rows: int
    width: int
    dtype: str

    def write(self, *, with_saelens: bool) -> None:
        """Write all of them, shard by shard."""
        sites = (SiteRecord(SITE, (self.width,), self.dtype),)
        manifest = Manifest(sites, ROWS_PER_SHARD, "none", "none", "none", {"rows": "random"})
        shards, together, flat_file = (self.folder / name for name in ("shards", "saelens", "flat.bin"))
        with StoreWriter.open(self.folder / "store", manifest) as writer, flat_file.open("wb") as flat:
            for number, first in enumerate(range(0, self.rows, ROWS_PER_SHARD)):
                values = self._values(first, min(first + ROWS_PER_SHARD, self.rows))
                flat.write(as_bytes(values))
                writer.append(_block(values, first), batch=number, window=number + 1, digest=str(number))
                if with_saelens:
                    _saelens_shard(values, shards / f"shard_{number:05d}")
            writer.finish(self.rows // CONTEXT, "random")
        if with_saelens:
            from sae_lens.cache_activations_runner import CacheActivationsRunner

            together.mkdir()
            CacheActivationsRunner._consolidate_shards(shards, together, copy_files=False)
        os.sync()  # so that the system writes nothing while sides are timed

    def mapped(self) -> Tensor:
        """[row, width] a new map of the flat file."""
        file, size = str(self.folder / "flat.bin"), self.rows * self.width
        return torch.from_file(file, size=size, dtype=DTYPE[self.dtype]).view(self.rows, self.width)

    def _values(self, first: int, last: int) -> Tensor:
        values = torch.randn((last - first, self.width), generator=torch.Generator().manual_seed(first))
        for digit in range(_DIGITS):  # to base 256: bfloat16 holds whole numbers up to 256 exactly
            values[:, digit] = (torch.arange(first, last) >> (8 * digit)) & 255
        return values.to(DTYPE[self.dtype])


def _block(values: Tensor, first: int) -> RowBlock:
    n = len(values)
    rows = np.arange(first, first + n, dtype=np.int64)
    return RowBlock(
        values={SITE: values},
        prompt=rows // CONTEXT,
        position=(rows % CONTEXT).astype(np.int32),
        token_id=np.zeros(n, np.int32),
        phase=np.zeros(n, np.int8),
        spans=[""] * n,
        prompts=[PromptRecord(p, f"doc-{p}", CONTEXT) for p in np.unique(rows // CONTEXT).tolist()],
    )


def _saelens_shard(values: Tensor, folder: Path) -> None:
    from datasets import Array2D, Dataset, Features, Sequence, Value
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    acts = values.reshape(-1, CONTEXT, values.shape[1])
    ids = Sequence(Value("int32"), length=CONTEXT)
    features = Features({SITE: Array2D(acts.shape[1:], "float32"), "token_ids": ids})
    columns = {SITE: acts, "token_ids": torch.zeros(acts.shape[:2], dtype=torch.int32)}
    Dataset.from_dict(columns, features=features).save_to_disk(str(folder), num_shards=1)


def _ours(source: Source, dtype: torch.dtype, **options: Any) -> ShuffledLoader:
    store = open_store(source.folder / "store", **options)
    return ShuffledLoader(store, SITE, BATCH, buffer_bytes=BUFFER_BYTES, dtype=dtype)


def _raw(source: Source, dtype: torch.dtype, *, by_torch: bool) -> Iterator[Tensor]:
    mapped = source.mapped()
    integers = as_integers(mapped)  # numpy knows no bfloat16
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(source.rows)
        for i in range(0, source.rows, BATCH):
            rows = order[i : i + BATCH]
            chosen = mapped[torch.from_numpy(rows)] if by_torch else torch.from_numpy(integers[rows])
            yield chosen.view(mapped.dtype).to(dtype)


def _limit(source: Source, dtype: torch.dtype) -> Iterator[Tensor]:
    """Two batches ahead, each by a thread, into four that are used again."""
    integers, threads = as_integers(source.mapped()), ThreadPoolExecutor(2)
    memory = [np.empty((BATCH, source.width), integers.dtype) for _ in range(4)]

    def gather(rows: np.ndarray, out: np.ndarray) -> Tensor:
        np.take(integers, rows, axis=0, out=out, mode="clip")
        return torch.from_numpy(out).view(dtype)

    ahead: deque[Future[Tensor]] = deque()
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(source.rows)
        for i in range(source.rows // BATCH):
            ahead.append(threads.submit(gather, order[i * BATCH : (i + 1) * BATCH], memory[i % 4]))
            if len(ahead) > 2:
                yield ahead.popleft().result()


def _large_buffer(rows: int, width: int) -> int:
    """sae-lens' mixing buffer in contexts: as many bytes as ours, or half of the source."""
    return min(BUFFER_BYTES // (width * 4), rows // 2) // CONTEXT


def _saelens(source: Source, batches_in_buffer: int) -> Iterator[Tensor]:
    from sae_lens.training.activations_store import ActivationsStore

    warnings.filterwarnings("ignore", message="All samples in the training dataset have been exhausted")
    return ActivationsStore(
        model=None,  # pyright: ignore[reportArgumentType]
        dataset=None,
        cached_activations_path=str(source.folder / "saelens"),
        hook_name=SITE,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=source.width,
        n_batches_in_buffer=batches_in_buffer,
        store_batch_size_prompts=CONTEXTS_AT_ONCE,
        train_batch_size_tokens=BATCH,
        total_training_tokens=source.rows,
        device=torch.device("cpu"),
        dtype="float32",
        streaming=False,
        prepend_bos=False,
        normalize_activations="none",
    )


class _Stream:
    """Batches drawn in whole epochs, the first of a new iterator or later ones; notes the processor time."""

    def __init__(self, begin: Begin, batches: int) -> None:
        self._begin, self._batches = begin, batches
        self._running: Iterator[Tensor] = iter(())
        self.cpu: dict[str, list[float]] = {"first": [], "later": []}

    def first(self) -> None:
        self._running = self._begin()
        self._draw("first", 1)

    def later(self, epochs: int) -> None:
        self._draw("later", epochs)
        if isinstance(self._running, ShuffledLoader):
            self._running.close()

    def _draw(self, which: str, epochs: int) -> None:
        started = time.process_time()
        for _ in range(self._batches * epochs):
            next(self._running)
        self.cpu[which].append((time.process_time() - started) / epochs)


def _compare(source: Source, dtype: torch.dtype, repeats: int, saelens_buffer: int, report: Report) -> None:
    n = source.rows // BATCH
    begin: dict[str, Begin] = {
        "raw, numpy": lambda: _raw(source, dtype, by_torch=False),
        "raw, torch": lambda: _raw(source, dtype, by_torch=True),
        "ours": lambda: _ours(source, dtype),
        "ours, verify='never'": lambda: _ours(source, dtype, verify="never"),
    }
    mixed = {name: begin[name] for name in ("raw, numpy", "ours")}
    if source.dtype == "float32":
        begin["limit"] = lambda: _limit(source, dtype)
        for name, buffer in (
            ("sae-lens", _large_buffer(source.rows, source.width)),
            ("sae-lens, small buffer", saelens_buffer),
        ):
            begin[name] = mixed[name] = partial(_saelens, source, buffer)
        mixed["sae-lens, smallest buffer"] = lambda: _saelens(source, BATCH // CONTEXT)
    settings = {"stored": source.dtype, "served": str(dtype).removeprefix("torch.")}
    for name, make in mixed.items():
        report.rows.append({"side": name, **settings, **_mixed(make(), source, exact="sae-lens" not in name)})
    streams = {name: _Stream(make, n) for name, make in begin.items()}
    epochs = {name: 1 if "sae-lens" in name else LATER for name in begin}
    sides: dict[str, Callable[[], Any]] = {}
    for name, stream in streams.items():
        sides[f"{name}: first"] = stream.first
        sides[f"{name}: later"] = partial(stream.later, epochs[name])
    seconds = alternate(sides, repeats=repeats, warm_up=1).seconds
    for epoch in ("first", "later"):
        per = {name: 1 if epoch == "first" else epochs[name] for name in begin}
        here = {name: [t / per[name] for t in seconds[f"{name}: {epoch}"]] for name in begin}
        raw = zip(here["raw, numpy"], here["raw, torch"], strict=True)
        timing = Timing({**here, "raw gather": [min(pair) for pair in raw]})
        for side in begin:
            cpu = round(statistics.median(streams[side].cpu[epoch][1:]), 4)
            more = {"epoch": epoch, "cpu": cpu, "rows_per_second": round(source.rows / timing.median(side))}
            report.rows.append(timing.row(side, "raw gather", **settings, **more))
    if source.dtype == "float32":  # `timing` is that of the later epochs
        for side in ("ours", "limit"):
            report.rows.append(
                timing.row("sae-lens, small buffer", side, **settings, epoch="later", what=f"{side} over it")
            )
        for name, side, goal in (("saelens", "sae-lens", 20), ("raw_gather", "raw gather", 0.5)):
            value = round(statistics.median(timing.ratios(side, "ours")), 4)
            report.goals.append(Goal.at_least(f"shuffled_over_{name}", value, goal))


def _mixed(batches: Iterator[Tensor], source: Source, *, exact: bool) -> dict[str, Any]:
    """An epoch's batches: are they the rows of the source, and how far are neighbours apart there?"""
    mapped, served, taken = source.mapped(), [], 0.0
    for _ in range(source.rows // BATCH):
        started = time.perf_counter()
        batch = next(batches)
        taken += time.perf_counter() - started
        served.append(_numbers(batch, mapped))
    share = len(np.unique(np.concatenate(served))) / source.rows
    if exact and share != 1:
        raise AssertionError(f"an epoch has {share:.4%} of the rows")
    apart = np.concatenate([np.abs(np.diff(rows)) for rows in served])
    uniform = sum(2 * (source.rows - k) for k in range(1, NEAR)) / (source.rows * (source.rows - 1))
    return {
        "share of the source in an epoch": round(share, 4),
        "median distance of neighbours / rows": round(float(np.median(apart)) / source.rows, 4),
        f"neighbours within {NEAR} rows, over uniform": round(float((apart < NEAR).mean()) / uniform, 2),
        "rows_per_second": round(source.rows / taken),
    }


def _numbers(batch: Tensor, mapped: Tensor) -> np.ndarray:
    """[row] int64: the rows of the source that a batch holds, each bit for bit."""
    numbers = (batch[:, :_DIGITS].long() * 256 ** torch.arange(_DIGITS)).sum(1)
    if not torch.equal(batch, mapped[numbers].to(batch.dtype)):
        raise AssertionError("a batch holds rows that are not in the source")
    return numbers.numpy()


if __name__ == "__main__":
    main(run, __doc__ or "", rows=307_200, width=576, repeats=3, saelens_buffer=64)
