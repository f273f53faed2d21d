"""`Shard`: a finished shard as it is read.

Values are memory-mapped. Each block of 64 rows is checked against its xxh3-64 once, when it is first touched; the
tables are checked against their SHA-256.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from torch import Tensor

from workbench.errors import DataError
from workbench.store.manifest import Manifest, ShardRecord, shard_files
from workbench.store.raw import as_bytes, gather_rows
from workbench.store.records import damaged, unreadable
from workbench.store.tables import INDEX, PROMPTS, read_table
from workbench.store.values import (
    BLOCK_ROWS,
    check_of,
    map_values,
    n_blocks,
    places,
    read_checks,
)

Verify = Literal["first", "never"]
"""`first`: what is read is checked the first time it is touched. `never`: nothing is checked."""


class Shard:
    """Reads one finished shard.

    Attributes:
        folder: of the store it belongs to.
        record: its record.
        rows: how many rows it has.
    """

    def __init__(self, folder: Path, manifest: Manifest, record: ShardRecord, verify: Verify) -> None:
        self.folder, self.record, self.rows = folder, record, record.rows
        self._verify: Verify = verify
        self._sites = {site.name: site for site in manifest.sites}
        self._files = shard_files(record.number)
        self._path = folder / self._files["values"]
        self._checks: dict[str, list[str]] = {}
        self._places = places(manifest.sites, record.rows)
        self._maps: dict[str, Tensor] = {}
        self._checked: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict:
        """Maps do not travel to another process; it makes its own."""
        return {**self.__dict__, "_maps": {}, "_checked": {}}

    def view(self, site: str, first: int, last: int) -> Tensor:
        """[row, ...] rows `first` to `last` (exclusive) of a site, memory-mapped and checked.

        Raises:
            DataError: their bytes are not those that were written.
        """
        rows = self._map(site)
        if self._verify == "first" and last > first:
            self._check(site, np.arange(first // BLOCK_ROWS, n_blocks(last)))
        return rows[first:last]

    def take(self, site: str, rows: np.ndarray, out: Tensor) -> None:
        """Copy some rows of a site, in any order, into `out` ([row, ...], contiguous), checked."""
        mapped = self._map(site)
        self.check(site, rows)
        gather_rows(mapped, rows, out)

    def check(self, site: str, rows: np.ndarray) -> None:
        """Compare the blocks with these rows, in any order, with their checks, but for those that were compared before.

        Raises:
            DataError: their bytes are not those that were written.
        """
        if self._verify == "first" and len(rows) and not self._expected(site)[1].all():
            self._check(site, np.unique(rows // BLOCK_ROWS))

    def read_runs(self, site: str, runs: Sequence[tuple[int, int, int]], out: Tensor) -> None:
        """Read stretches of rows into `out`, file order, by `pread`: no page stays mapped.

        Args:
            site: name of the site.
            runs: (first, last, at): rows `first` to `last` (exclusive) go to `out[at:...]`.
            out: contiguous [row, ...] CPU tensor of the site's dtype.

        Raises:
            DataError: the bytes are not those that were written, or the file ends before.
        """
        place, target = self._places[site], as_bytes(out)
        row = place.row_bytes
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                for first, last, at in runs:
                    piece = target[at * row : (at + last - first) * row]
                    done = 0
                    while done < len(piece):
                        got = os.preadv(descriptor, [piece[done:]], place.start + first * row + done)
                        if not got:
                            raise self._damaged("values", "it ends before its rows do")
                        done += got
                    if self._verify == "first":
                        self._check_read(site, first, last, piece)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unreadable("values", error) from error

    def table(self, kind: Literal["index", "prompts"], columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns (None: all) of the shard's index or prompts."""
        sha256 = self.record.sha256[self._files[kind]] if self._verify == "first" else None
        schema = INDEX if kind == "index" else PROMPTS
        try:
            table = read_table(self.folder / self._files[kind], schema, columns, sha256)
        except OSError as error:
            raise self._unreadable(kind, error) from error
        except DataError as error:
            raise self._damaged(kind, str(error)) from error
        if kind == "index" and len(table) != self.rows:
            raise self._damaged(kind, f"it has {len(table)} lines for {self.rows} rows")
        return table

    def _map(self, site: str) -> Tensor:
        if site not in self._maps:
            try:
                self._maps[site] = map_values(self._path, self._sites[site], self._places[site], self.rows)
            except OSError as error:
                raise self._unreadable("values", error) from error
            except ValueError as error:  # the file is too short
                raise self._damaged("values", f"it cannot be mapped ({error})") from error
        return self._maps[site]

    def _expected(self, site: str) -> tuple[list[str], np.ndarray]:
        """The checks of a site's blocks, and which of the blocks were found right already."""
        if not self._checks:
            try:
                self._checks = read_checks(self._path, list(self._sites.values()), self.rows)
            except OSError as error:
                raise self._unreadable("values", error) from error
            except DataError as error:
                raise self._damaged("values", str(error)) from error
        return self._checks[site], self._checked.setdefault(site, np.zeros(n_blocks(self.rows), bool))

    def _check(self, site: str, blocks: np.ndarray) -> None:
        checks, checked = self._expected(site)
        missing = blocks[~checked[blocks]].tolist()
        if not missing:
            return
        raw, size = as_bytes(self._map(site)), BLOCK_ROWS * self._places[site].row_bytes
        for block in missing:
            self._compare(site, block, raw[block * size : (block + 1) * size], checks)
            checked[block] = True

    def _check_read(self, site: str, first: int, last: int, piece: memoryview) -> None:
        """Check rows just read: whole blocks where they lie, blocks at the edges through the map."""
        checks, checked = self._expected(site)
        touched = np.arange(first // BLOCK_ROWS, n_blocks(last))
        row = self._places[site].row_bytes
        for block in touched[~checked[touched]].tolist():
            begins, ends = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self.rows)
            if first <= begins and ends <= last:
                self._compare(site, block, piece[(begins - first) * row : (ends - first) * row], checks)
                checked[block] = True
            else:
                self._check(site, np.array([block]))

    def _compare(self, site: str, block: int, data: memoryview, checks: list[str]) -> None:
        if check_of(data) != checks[block]:
            first = block * BLOCK_ROWS
            last = min(first + BLOCK_ROWS, self.rows) - 1
            raise self._damaged("values", f"rows {first}–{last} at {site!r} are not what was written")

    def _unreadable(self, kind: str, error: OSError) -> DataError:
        return unreadable(self.folder, self.record.number, self._files[kind], error)

    def _damaged(self, kind: str, what: str) -> DataError:
        return damaged(self.folder, self.record.number, f"{self._files[kind]}: {what}")
