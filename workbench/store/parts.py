"""Shards that several workers write at once, and how they come into the store.

    FOLDER/parts/00000012-9f2c01ab/     one run of shards, written by one worker
        shards/ index/ prompts/         as in a store, with the numbers the shards will have there
        part.json                       written last: what is in it. A part without it does not exist

Whoever holds the store's lock moves finished parts in, shard by shard and in order (`StoreWriter.adopt`); a part that
comes too early waits. A worker that dies leaves an unfinished part that nobody looks at, and two that do the same work
do not touch each other's files.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import DataError
from workbench.store.buffer import ShardBuffer, check_block
from workbench.store.cutting import ShardCutter, beginnings
from workbench.store.manifest import PARTS, Cursor, Manifest, ShardRecord
from workbench.store.opening import FOLDERS, PART_FILE
from workbench.store.records import check_files, read_record
from workbench.store.rows import RowBlock
from workbench.store.sealed import read_sealed, write_sealed


@dataclass(frozen=True)
class Part:
    """A finished run of shards beside a store."""

    folder: Path
    first: int
    """Number of its first shard."""
    shards: int

    def records(self) -> list[ShardRecord]:
        """The records of its shards."""
        return [read_record(self.folder, number) for number in range(self.first, self.first + self.shards)]


class PartWriter:
    """Writes one part. Use it as a context manager: leaving it without `finish` removes what was written.

    Args:
        store: folder of the store.
        manifest: of the store.
        first: number of the first shard.
        first_row: rows in the shards before it.
        start: where the shard before it ended.
        most: how many shards are written at most; rows after them are dropped.
    """

    def __init__(
        self, store: Path, manifest: Manifest, *, first: int, first_row: int, start: Cursor, most: int
    ) -> None:
        self.folder = store / PARTS / f"{first:08d}-{secrets.token_hex(4)}"
        self._manifest, self._first, self._row, self._most = manifest, first, first_row, most
        self._cutter = ShardCutter(manifest, start, self._publish)
        self.records: list[ShardRecord] = []

    def __enter__(self) -> PartWriter:
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        if not (self.folder / PART_FILE).exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def full(self) -> bool:
        """Whether all its shards are written."""
        return len(self.records) >= self._most

    def append(self, block: RowBlock, cursor: Cursor) -> None:
        """Take the rows of a batch from row `cursor.row` on."""
        check_block(self._manifest, block)
        begins = beginnings(block, cursor.row, None)
        self._cutter.add(block, begins, cursor, until=lambda: self.full)

    def finish(self, *, last: bool) -> Part:
        """Make the part exist. `last`: the data ends here, so rows that are left make a short shard."""
        if last and not self.full:
            self._cutter.rest()
        write_sealed(self.folder / PART_FILE, {"first": self._first, "shards": len(self.records)})
        return Part(self.folder, self._first, len(self.records))

    def _publish(self, buffer: ShardBuffer, at: Cursor) -> None:
        record = buffer.publish(self.folder, self._first + len(self.records), self._row, at)
        self._row += record.rows
        self.records.append(record)


def finished_parts(store: Path, manifest: Manifest, known: Callable[[Part], bool]) -> list[Part]:
    """The finished parts of a store that `known` knows, by their first shard; all others are removed.

    Parts that are damaged, or written a second time, are removed too: their work is done again.
    """
    found: dict[int, Part] = {}
    for folder in sorted((store / PARTS).glob("*")):
        part = _read(folder, manifest)
        if part is None or part.first in found or not known(part):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            found[part.first] = part
    return [found[first] for first in sorted(found)]


def _read(folder: Path, manifest: Manifest) -> Part | None:
    try:
        given = read_sealed(folder / PART_FILE)
        part = Part(folder, int(given["first"]), int(given["shards"]))
        for record in part.records():
            check_files(folder, manifest, record)
    except (DataError, OSError, KeyError, TypeError, ValueError):
        return None
    return part
