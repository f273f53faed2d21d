"""`StoreWriter`: rows go in batch by batch, shards come out, and a kill at any moment loses at most one shard of work.

1. Rows gather in memory. Whenever there are `rows_per_shard` of them, they become a shard: values, index and prompts
   are written and flushed, then the record, in one step. A shard without its record does not exist.
2. The record's cursor says in which batch the shard ended and how many rows of it are in. A resume computes that
   batch again, leaves out these rows and goes on. Nothing else is remembered, so the bytes come out the same.
3. Opening an existing store takes its lock, compares what it was begun with to what is asked for now, and removes
   what is left of an unfinished shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import DataError, WorkbenchError
from workbench.files import cannot_write, locked
from workbench.store.buffer import ShardBuffer, check_block, flush_folder
from workbench.store.manifest import LOCK, LOG, MANIFEST, Cursor, Manifest, ShardRecord
from workbench.store.opening import (
    FOLDERS,
    RefuseToWait,
    check_manifest,
    other_data,
    refuse_difference,
    refuse_existing,
    remove_leftovers,
)
from workbench.store.records import check_files, read_records
from workbench.store.rows import PromptRecord, RowBlock


class StoreWriter:
    """The one writer of a store. Calls may come from any thread, one at a time.

    Attributes:
        folder: where the store lies.
        manifest: what the store says of itself; with counts and fingerprint once it is complete.
        records: the finished shards.

    Example:
        >>> with StoreWriter.open("acts", manifest) as writer:  # doctest: +SKIP
        ...     start = writer.cursor
        ...     for b, block in batches(start.batch):
        ...         skip = start.row if b == start.batch else 0
        ...         writer.append(block, batch=b, window=w, digest=d, skip=skip)
        ...     writer.finish(n_prompts, fingerprint)
    """

    def __init__(
        self, folder: Path, manifest: Manifest, records: tuple[ShardRecord, ...], lock: ExitStack
    ) -> None:
        """Use `StoreWriter.open`."""
        self.folder, self.manifest, self.records = folder, manifest, records
        self._lock = lock
        self._buffer = ShardBuffer(manifest)
        self._resumed = bool(records)
        self._at = self.cursor
        self._prompts = self.cursor.prompts
        self._last_prompt: int | None = None
        self._unusable = ""
        self._not_finite: dict[str, int] = {}
        for record in records:
            self._count_not_finite(record)

    @classmethod
    def open(cls, folder: Path | str, manifest: Manifest, *, resume: bool = True) -> StoreWriter:
        """Begin a store, or go on with one.

        Args:
            folder: a new or empty folder, or a store that was begun with the same manifest.
            manifest: what the store is to hold and what makes it (counts and data set are not compared).
            resume: whether an existing store may be gone on with.

        Raises:
            DataError: another writer is at work there; the store there was made by something else (named, with
                both values); it is damaged; it exists and `resume` is false; the folder holds other things.
            WorkbenchError: the system refuses to write there.
        """
        folder = Path(folder)
        check_manifest(manifest)
        manifest = replace(manifest, n_rows=None, n_prompts=None, dataset_fingerprint=None)
        refuse_existing(folder, resume=resume)
        with ExitStack() as stack:
            stack.enter_context(locked(folder / LOCK, progress=RefuseToWait(folder)))
            try:
                refuse_existing(folder, resume=resume)
                if (folder / MANIFEST).exists():
                    existing = Manifest.read(folder)
                    refuse_difference(folder, existing, manifest)
                    records = read_records(folder, existing)
                    for record in records:
                        check_files(folder, existing, record)
                    manifest = existing
                else:
                    records = ()
                remove_leftovers(folder, len(records))
                for name in FOLDERS:
                    (folder / name).mkdir(exist_ok=True)
                if not (folder / MANIFEST).exists():
                    manifest.write(folder)
                flush_folder(folder)
            except OSError as error:
                raise cannot_write(folder, error) from error
            return cls(folder, manifest, records, stack.pop_all())

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder. Rows that do not fill a shard yet are dropped; a resume computes them again."""
        self._lock.close()
        self._unusable = (
            self._unusable or f"The writer of {str(self.folder)!r} is closed: open the store again."
        )

    @property
    def cursor(self) -> Cursor:
        """Where the last finished shard ended; `Cursor()` where there is none."""
        return self.records[-1].cursor if self.records else Cursor()

    @property
    def complete(self) -> bool:
        """Whether the store was finished: there is nothing to be done."""
        return self.manifest.complete

    @property
    def n_rows(self) -> int:
        """Rows in finished shards."""
        return self.records[-1].first_row + self.records[-1].rows if self.records else 0

    @property
    def not_finite(self) -> dict[str, int]:
        """Site -> rows with NaN or infinite values, of the whole store and of rows not yet in a shard."""
        counts = (self._not_finite, self._buffer.not_finite)
        return {s.name: n for s in self.manifest.sites if (n := sum(c.get(s.name, 0) for c in counts))}

    def append(self, block: RowBlock, *, batch: int, window: int, digest: str, skip: int = 0) -> None:
        """Take the rows of one batch; they are copied, so the block may be used again.

        A batch may go on with the prompt the one before it ended with; otherwise each prompt lies in one batch.

        Args:
            block: all rows of the batch, in the order in which they are to lie.
            batch: its number; higher than that of the batch before.
            window: windows of prompts drawn from the source up to this batch (it included).
            digest: SHA-256 over the token ids of those windows' prompts.
            skip: rows at the front that are in the store already. On a resume the first batch is
                `cursor.batch` with `skip=cursor.row`, also where these are all of its rows.

        Raises:
            DataError: the block does not fit the manifest; the batch does not follow the one before; on a resume
                the data are not those the store was begun with.
            WorkbenchError: the system refuses to write (a full disk, for instance). The store stays valid up to
                its last shard, and a resume goes on from there.
        """
        if self.complete:
            raise DataError(
                f"{str(self.folder)!r} is complete: collect more into another folder and merge them."
            )
        check_block(self.manifest, block)
        starts, begins = _beginnings(block, skip, self._last_prompt)
        with self._busy():
            self._refuse_gap(batch, window, digest, skip, len(block))
            if len(block) > skip:
                self._refuse_after_the_end()
                self._last_prompt = int(block.prompt[-1])
            self._at = Cursor(batch, skip, window, digest, self._prompts)
            done = skip
            while done < len(block):
                end = done + min(self._buffer.room, len(block) - done)
                here = slice(*np.searchsorted(starts, [done, end]))
                self._buffer.add(block, done, end, begins[here])
                done, self._prompts = end, self._prompts + len(begins[here])
                self._at = Cursor(batch, done, window, digest, self._prompts)
                if not self._buffer.room:
                    self._publish()

    def finish(self, n_prompts: int, dataset_fingerprint: str) -> Manifest:
        """Write the rows that are left as a last, short shard and call the store complete.

        Args:
            n_prompts: prompts that were read, also those without a row in the store.
            dataset_fingerprint: SHA-256 over the token ids of all prompts, in order.

        Raises:
            DataError: the store was complete and made of other data.
            WorkbenchError: the system refuses to write.
        """
        if self.complete:
            had = (self.manifest.n_prompts, self.manifest.dataset_fingerprint)
            if had != (n_prompts, dataset_fingerprint):
                raise other_data(
                    self.folder,
                    f"{n_prompts} prompts, fingerprint {dataset_fingerprint}",
                    f"{had[0]}, {had[1]}",
                )
            return self.manifest
        with self._busy():
            if self._resumed or n_prompts < self._prompts:
                raise other_data(
                    self.folder,
                    f"{n_prompts} prompts, no batch {self.cursor.batch}",
                    f"{self.cursor.prompts} prompts with rows, up to batch {self.cursor.batch}",
                )
            if self._buffer.rows:
                self._publish()
            manifest = replace(
                self.manifest,
                n_rows=self.n_rows,
                n_prompts=n_prompts,
                dataset_fingerprint=dataset_fingerprint,
            )
            manifest.write(self.folder)
            self.manifest = manifest
        return manifest

    def log(self, event: Mapping[str, Any]) -> None:
        """Add a line to `log.jsonl`: the time and what happened."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **event})
        try:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise cannot_write(self.folder / LOG, error) from error

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Whatever interrupts the block leaves a writer that is to be opened again: what it holds may be half."""
        if self._unusable:
            raise WorkbenchError(self._unusable)
        self._unusable = f"The writer of {str(self.folder)!r} was interrupted: open the store again to go on."
        try:
            yield
        except (OSError, WorkbenchError) as error:
            reason = cannot_write(self.folder, error) if isinstance(error, OSError) else error
            self._unusable = f"{reason} The store holds its first {self.n_rows} rows: open it again to go on."
            if reason is error:
                raise
            raise WorkbenchError(self._unusable) from error
        self._unusable = ""

    def _publish(self) -> None:
        record = self._buffer.publish(self.folder, len(self.records), self.n_rows, self._at)
        self._count_not_finite(record)
        self.records = (*self.records, record)

    def _count_not_finite(self, record: ShardRecord) -> None:
        for site, n in record.not_finite.items():
            self._not_finite[site] = self._not_finite.get(site, 0) + n

    def _refuse_gap(self, batch: int, window: int, digest: str, skip: int, n_rows: int) -> None:
        """On a resume the first batch is the cursor's, of the same data; after that batches follow each other."""
        at, here = self._at, str(self.folder)
        if not self._resumed:
            if skip or (batch <= at.batch and at != Cursor()):
                raise DataError(f"Batch {batch} (skip {skip}) does not follow batch {at.batch} in {here!r}.")
            return
        if (batch, skip) != (at.batch, at.row) or skip > n_rows:
            raise DataError(
                f"{here!r} goes on with batch {at.batch} of which {at.row} rows are stored; given was batch {batch} "
                f"of {n_rows} rows with skip={skip}: the data or the batching have changed."
            )
        if (window, digest) != (at.window, at.digest):
            raise other_data(
                self.folder, f"window {window}, digest {digest}", f"window {at.window}, digest {at.digest}"
            )
        self._resumed = False

    def _refuse_after_the_end(self) -> None:
        if self.records and self.records[-1].rows < self.manifest.rows_per_shard:
            raise DataError(
                f"{str(self.folder)!r} was at its end with {self.n_rows} rows, and now there are more: the data set "
                "has grown. Give the same data, or collect into another folder."
            )


def _beginnings(block: RowBlock, skip: int, last: int | None) -> tuple[np.ndarray, list[PromptRecord]]:
    """Rows from `skip` on at which a prompt begins, and their records; `last` is the prompt before the block."""
    if not len(block):
        return np.empty(0, np.int64), []
    all_starts = np.flatnonzero(np.diff(block.prompt, prepend=block.prompt[0] - 1))
    numbers = block.prompt[all_starts].tolist()
    by_number = {record.number: record for record in block.prompts}
    if len(set(numbers)) != len(numbers) or len(by_number) != len(block.prompts):
        raise DataError("The rows of a prompt do not lie next to each other, or a prompt is given twice.")
    if set(numbers) != set(by_number):
        odd = sorted(set(numbers) ^ set(by_number))
        raise DataError(f"The block has rows or records, but not both, of prompts {odd[:10]}.")
    starts = all_starts[all_starts >= skip]
    if last is not None and len(starts) and starts[0] == 0 and numbers[0] == last:
        starts = starts[1:]
    return starts, [by_number[int(n)] for n in block.prompt[starts]]
