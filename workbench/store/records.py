"""The records of finished shards: writing one, reading all of a store, and checking that their files are there.

A shard exists when its record does. Records are numbered from 0 without gaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from workbench.errors import DataError
from workbench.store.manifest import Cursor, Manifest, ShardRecord, shard_files
from workbench.store.sealed import read_sealed, write_sealed
from workbench.store.values import values_size

SHARD_FILE = re.compile(r"\d{5,}\.(safetensors|parquet|json)")
"""Names of the files of a shard, finished or not."""


def damaged(folder: Path, number: int, what: str) -> DataError:
    """The error for a shard that cannot be used: which, what is wrong with it, what to do."""
    return DataError(
        f"Shard {number} of {str(folder)!r} is damaged: {what}. Restore it from a copy or collect again; "
        f"`workbench store verify {folder}` checks all shards."
    )


def unreadable(folder: Path, number: int, name: str, error: OSError) -> DataError:
    """The error for a file of a shard that the system does not give: only where it is not there, that is damage."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return damaged(folder, number, f"{name}: it cannot be read ({error.strerror})")
    return DataError(
        f"Shard {number} of {str(folder)!r} cannot be read: {name}: {error.strerror or error}. This does not say that "
        "it is damaged: remove the cause and read again."
    )


def write_record(folder: Path, record: ShardRecord) -> None:
    """Make a shard exist."""
    write_sealed(folder / shard_files(record.number)["record"], asdict(record))


def read_record(folder: Path, number: int) -> ShardRecord:
    """The record of one shard. Raises `DataError` where it is damaged or belongs to another shard."""
    path = folder / shard_files(number)["record"]
    try:
        given = read_sealed(path)
        record = ShardRecord(cursor=Cursor(**given.pop("cursor")), **given)
    except OSError as error:
        raise unreadable(folder, number, path.name, error) from error
    except (DataError, KeyError, TypeError) as error:
        raise damaged(folder, number, f"its record {path.name} cannot be read ({error})") from error
    if record.number != number:
        raise damaged(folder, number, f"its record {path.name} is the one of shard {record.number}")
    return record


def record_numbers(folder: Path) -> list[int]:
    """Numbers of the shards that have a record, in order."""
    names = (path.name for path in (folder / "shards").glob("*.json"))
    return sorted(int(name.removesuffix(".json")) for name in names if SHARD_FILE.fullmatch(name))


def read_records(folder: Path, manifest: Manifest) -> tuple[ShardRecord, ...]:
    """The finished shards of a store, in order.

    Raises:
        DataError: a record is missing, damaged or does not go on where the one before it ended.
    """
    numbers = record_numbers(folder)
    if missing := set(range(len(numbers))) - set(numbers):
        raise damaged(folder, min(missing), f"it has no record, though shard {numbers[-1]} has one")
    records = tuple(read_record(folder, number) for number in numbers)
    for number, what in chain_faults(manifest, records):
        raise damaged(folder, number, what)
    return records


def chain_faults(manifest: Manifest, records: Sequence[ShardRecord]) -> Iterable[tuple[int, str]]:
    """Shard and what is wrong, where records do not follow each other or do not add up to the manifest."""
    first_row, before = 0, Cursor()
    for record in records:
        number, cursor = record.number, record.cursor
        short_at_the_end = number == records[-1].number and 0 < record.rows < manifest.rows_per_shard
        if record.first_row != first_row:
            yield number, f"its record says it begins at row {record.first_row}, not at {first_row}"
        if record.rows != manifest.rows_per_shard and not short_at_the_end:
            yield number, f"its record says it has {record.rows} rows, not {manifest.rows_per_shard}"
        goes_on = (
            (cursor.batch, cursor.row) > (before.batch, before.row)
            and cursor.window >= before.window
            and cursor.prompts >= before.prompts
        )
        if not goes_on:
            yield number, "its cursor does not go on from that of the shard before it"
        first_row, before = record.first_row + record.rows, cursor
    if manifest.complete and first_row != manifest.n_rows:
        yield (
            len(records),
            f"the store is complete with {manifest.n_rows} rows, but its shards hold {first_row}",
        )


def check_files(folder: Path, manifest: Manifest, record: ShardRecord) -> None:
    """Check that the files of a shard are there and its values have their size (cheap: no file is read).

    Raises:
        DataError: naming the shard and the file.
    """
    names = shard_files(record.number)
    for kind in ("values", "index", "prompts"):
        try:
            size = (folder / names[kind]).stat().st_size
        except OSError as error:
            raise unreadable(folder, record.number, names[kind], error) from error
        expected = values_size(manifest.sites, record.rows)
        if kind == "values" and size != expected:
            raise damaged(folder, record.number, f"{names[kind]} has {size} bytes, expected {expected}")
