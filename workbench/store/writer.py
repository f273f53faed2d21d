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
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import DataError, WorkbenchError
from workbench.files import cannot_write, locked
from workbench.store.buffer import ShardBuffer, check_block, flush_folder
from workbench.store.cutting import ShardCutter, beginnings
from workbench.store.manifest import LOCK, LOG, MANIFEST, PARTS, Cursor, Manifest, ShardRecord, shard_files
from workbench.store.opening import (
    FOLDERS,
    RefuseToWait,
    check_manifest,
    nothing_in,
    other_data,
    refuse_difference,
    refuse_existing,
    remove_leftovers,
)
from workbench.store.parts import Part
from workbench.store.records import check_files, read_records
from workbench.store.rows import RowBlock


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
        self._cutter = ShardCutter(manifest, self.cursor, self._publish)
        self._resumed = bool(records)
        self._unusable = ""
        self._not_finite: dict[str, int] = {}
        for record in records:
            self._count_not_finite(record)

    @classmethod
    def open(
        cls, folder: Path | str, manifest: Manifest, *, resume: bool = True, keep_parts: bool = False
    ) -> StoreWriter:
        """Begin a store, or go on with one.

        Args:
            folder: a new or empty folder, or a store that was begun with the same manifest. One that was begun and
                has nothing in it yet, neither rows nor parts, is begun anew.
            manifest: what the store is to hold and what makes it (counts and data set are not compared).
            resume: whether an existing store may be gone on with.
            keep_parts: leave what other workers wrote beside the store (`workbench.store.parts`).

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
                existing = Manifest.read(folder) if (folder / MANIFEST).exists() else None
                if existing is not None and nothing_in(folder, existing):
                    existing = None
                if existing is not None:
                    refuse_difference(folder, existing, manifest)
                    records = read_records(folder, existing)
                    for record in records:
                        check_files(folder, existing, record)
                    manifest = existing
                else:
                    records = ()
                remove_leftovers(folder, len(records), keep_parts=keep_parts)
                for name in FOLDERS:
                    (folder / name).mkdir(exist_ok=True)
                if existing is None:
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
        counts = (self._not_finite, self._cutter.not_finite)
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
        begins = beginnings(block, skip, self._cutter.last_prompt)
        with self._busy():
            self._refuse_gap(batch, window, digest, skip, len(block))
            if len(block) > skip:
                self._refuse_after_the_end()
            self._cutter.add(block, begins, Cursor(batch, skip, window, digest))

    def confirm(self, at: Cursor, batch: int, rows: int, window: int, digest: str) -> None:
        """On a resume without `append`: the data have the batch that the shards up to `at` ended in, of `rows` rows.

        Raises:
            DataError: the data are not those the store was begun with.
        """
        self._refuse_other(at, batch, at.row, window, digest, rows)

    def adopt(self, part: Part) -> None:
        """Move the shards of a finished part in, which go on where the store ends.

        Raises:
            DataError: they do not go on there, or are damaged.
            WorkbenchError: the system refuses to move them.
        """
        with self._busy():
            for record in part.records():
                self._refuse_after_the_end()
                at, here = record.cursor, self.cursor
                if (record.number, record.first_row) != (len(self.records), self.n_rows) or (
                    (at.batch, at.row) <= (here.batch, here.row) and self.records
                ):
                    raise DataError(
                        f"Shard {record.number}, which begins at row {record.first_row}, does not go on where "
                        f"{str(self.folder)!r} ends: with {len(self.records)} shards of {self.n_rows} rows."
                    )
                check_files(part.folder, self.manifest, record)
                for name in record.sha256:
                    (part.folder / name).replace(self.folder / name)
                for name in FOLDERS:
                    flush_folder(self.folder / name)
                entry = shard_files(record.number)["record"]
                (part.folder / entry).replace(self.folder / entry)
                flush_folder((self.folder / entry).parent)
                self._count_not_finite(record)
                self.records = (*self.records, record)
        shutil.rmtree(part.folder, ignore_errors=True)

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
            if self._resumed or n_prompts < self._cutter.prompts:
                raise other_data(
                    self.folder,
                    f"{n_prompts} prompts, no batch {self.cursor.batch}",
                    f"{self.cursor.prompts} prompts with rows, up to batch {self.cursor.batch}",
                )
            self._cutter.rest()
            manifest = replace(
                self.manifest,
                n_rows=self.n_rows,
                n_prompts=n_prompts,
                dataset_fingerprint=dataset_fingerprint,
            )
            manifest.write(self.folder)
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)
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

    def _publish(self, buffer: ShardBuffer, at: Cursor) -> None:
        record = buffer.publish(self.folder, len(self.records), self.n_rows, at)
        self._count_not_finite(record)
        self.records = (*self.records, record)

    def _count_not_finite(self, record: ShardRecord) -> None:
        for site, n in record.not_finite.items():
            self._not_finite[site] = self._not_finite.get(site, 0) + n

    def _refuse_gap(self, batch: int, window: int, digest: str, skip: int, n_rows: int) -> None:
        """On a resume the first batch is the cursor's, of the same data; after that batches follow each other."""
        at, here = self._cutter.at, str(self.folder)
        if not self._resumed:
            if skip or (batch <= at.batch and at != Cursor()):
                raise DataError(f"Batch {batch} (skip {skip}) does not follow batch {at.batch} in {here!r}.")
            return
        self._refuse_other(at, batch, skip, window, digest, n_rows)

    def _refuse_other(self, at: Cursor, batch: int, skip: int, window: int, digest: str, n_rows: int) -> None:
        here = str(self.folder)
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
