"""`verify`: read every byte of a store and compare it with what was recorded.

1. The manifest and the records of the shards fit their own checksums, are numbered without gaps and add up.
2. Each shard's files are there; index and prompts have the SHA-256 that was recorded when they were written, so has the
   header of the values, and every 64 rows of the values have the xxh3 that stands in it.
3. The values have the size and header that sites and rows ask for; the index has one line per row.
4. Each prompt begins once, its rows lie next to each other, and the prompts' tables list those that begin in the shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import DataError
from workbench.files import sha256_of
from workbench.progress import Progress, Silent
from workbench.store.manifest import MANIFEST, Cursor, Manifest, ShardRecord, shard_files
from workbench.store.records import chain_faults, check_files, read_record, record_numbers
from workbench.store.tables import INDEX, PROMPTS, read_table
from workbench.store.values import check_values


@dataclass(frozen=True)
class Fault:
    """Something that is wrong."""

    shard: int | None
    """Number of the shard; None: the store as a whole."""
    what: str


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    folder: str
    complete: bool
    """Whether the store says it holds everything that was asked for."""
    n_shards: int
    n_rows: int
    """Rows in shards that have a record."""
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. An incomplete store without faults is fine: it can be resumed."""
        return not self.faults

    @property
    def bad_shards(self) -> list[int]:
        """Numbers of the shards with faults."""
        return sorted({fault.shard for fault in self.faults if fault.shard is not None})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "ok": self.ok, "bad_shards": self.bad_shards}


def verify(folder: Path | str, *, progress: Progress | None = None) -> Report:
    """Check a whole store; it takes about as long as reading it.

    Args:
        folder: of the store.
        progress: one item per shard.

    Raises:
        DataError: the folder holds no store. Damage is not raised but reported.

    Example:
        >>> verify("acts").bad_shards
        []
    """
    folder, progress = Path(folder), progress or Silent()
    if not (folder / MANIFEST).is_file():
        Manifest.read(folder)
    numbers = record_numbers(folder)
    try:
        manifest = Manifest.read(folder)
    except DataError as error:
        return Report(str(folder), False, len(numbers), 0, (Fault(None, str(error)),))
    faults, records = [], []
    expected = range(_expected_shards(manifest, numbers))
    for number in expected:
        if number not in numbers:
            faults.append(Fault(number, f"its record {shard_files(number)['record']} is missing"))
            continue
        try:
            records.append(read_record(folder, number))
        except DataError as error:
            faults.append(Fault(number, str(error)))
    if not faults:
        faults += [Fault(number, what) for number, what in chain_faults(manifest, records)]
    progress.stage("verify", len(records))
    seen: set[int] = set()
    before: ShardRecord | None = None
    last: int | None = None
    for record in records:
        if before is not None and before.number != record.number - 1:
            before, last = None, None
        known = Cursor() if record.number == 0 else before and before.cursor
        try:
            found, last = _shard_faults(folder, manifest, record, known, last, seen)
        except DataError as error:
            found, last = [str(error)], None
        except OSError as error:
            found, last = [f"it cannot be read, which need not be damage: {error}"], None
        faults += [Fault(record.number, what) for what in found]
        before = record
        progress.advance()
    if manifest.n_prompts is not None and any(number >= manifest.n_prompts for number in seen):
        faults.append(
            Fault(None, f"prompts are numbered up to {max(seen)}, but there are {manifest.n_prompts} in all")
        )
    rows = sum(record.rows for record in records)
    return Report(str(folder), manifest.complete, len(records), rows, tuple(faults))


def _expected_shards(manifest: Manifest, numbers: list[int]) -> int:
    found = numbers[-1] + 1 if numbers else 0
    return found if manifest.n_rows is None else max(found, -(-manifest.n_rows // manifest.rows_per_shard))


def _shard_faults(
    folder: Path,
    manifest: Manifest,
    record: ShardRecord,
    before: Cursor | None,
    last: int | None,
    seen: set[int],
) -> tuple[list[str], int | None]:
    """What is wrong with a shard, and the prompt it ends with.

    Args:
        folder, manifest, record: the shard.
        before: cursor of the shard before it, None where that is not known.
        last: prompt the shard before it ends with, None where that is not known.
        seen: numbers of prompts that began already; those that begin here are added.

    Raises:
        DataError: files that are missing, too short or damaged. OSError: files that cannot be read.
    """
    check_files(folder, manifest, record)
    files = shard_files(record.number)
    faults = [
        f"{files[kind]} has another checksum than when it was written"
        for kind in ("index", "prompts")
        if sha256_of(folder / files[kind]) != record.sha256.get(files[kind])
    ]
    if faults:
        return faults, None
    values = folder / files["values"]
    try:
        check_values(values, manifest.sites, record.rows, record.sha256[files["values"]])
    except (DataError, KeyError) as error:
        return [f"{files['values']}: {error}"], None
    rows = read_table(folder / files["index"], INDEX, ["prompt"], None)["prompt"].to_numpy()
    listed = read_table(folder / files["prompts"], PROMPTS, ["number"], None)["number"].to_numpy()
    faults += _prompt_faults(record, rows, listed, before, last, seen)
    return faults, int(rows[-1]) if len(rows) else None


def _prompt_faults(
    record: ShardRecord,
    rows: np.ndarray,
    listed: np.ndarray,
    before: Cursor | None,
    last: int | None,
    seen: set[int],
) -> Iterator[str]:
    if len(rows) != record.rows:
        yield f"its index has {len(rows)} lines for {record.rows} rows"
        return
    begins = rows[np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))].tolist()
    if begins[0] == last or (last is None and begins[0] not in listed):
        begins = begins[1:]  # it began in the shard before
    twice = sorted(number for number, n in Counter(begins).items() if n > 1 or number in seen)
    if twice:
        yield f"rows of prompts {twice[:5]} do not lie next to each other"
    if begins != listed.tolist():
        yield f"{len(begins)} prompts begin in it, but its table of prompts lists {len(listed)}, or others"
    if before is not None and record.cursor.prompts != before.prompts + len(begins):
        yield f"its cursor counts {record.cursor.prompts} prompts, but {before.prompts} + {len(begins)} have rows"
    seen.update(begins)
