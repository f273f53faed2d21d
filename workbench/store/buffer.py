"""Rows on their way into a shard: they gather in memory until there are enough, then become its files."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from workbench.errors import DataError
from workbench.store.manifest import Cursor, Manifest, ShardRecord, shard_files
from workbench.store.raw import copy_rows, not_finite_rows
from workbench.store.records import write_record
from workbench.store.rows import PromptRecord, RowBlock
from workbench.store.tables import index_table, labels_json, prompts_table, write_table
from workbench.store.values import DTYPE, write_values


class ShardBuffer:
    """Up to `rows_per_shard` rows of every site, in the manifest's dtypes.

    Its memory (one shard) is taken once and used again for each shard.

    Attributes:
        rows: how many rows are in it.
        not_finite: site -> rows in it that hold NaN or infinite values; sites without any are left out.
    """

    def __init__(self, manifest: Manifest) -> None:
        n = manifest.rows_per_shard
        self._sites = manifest.sites
        self._values = {s.name: torch.empty((n, *s.shape), dtype=DTYPE[s.dtype]) for s in manifest.sites}
        self._prompt = np.empty(n, np.int64)
        self._position = np.empty(n, np.int32)
        self._token_id = np.empty(n, np.int32)
        self._phase = np.empty(n, np.int8)
        self._spans: list[str] = []
        self._prompts: list[PromptRecord] = []
        self.rows = 0
        self.not_finite: dict[str, int] = {}

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return len(self._prompt) - self.rows

    def add(self, block: RowBlock, first: int, last: int, begins: list[PromptRecord]) -> None:
        """Copy rows `first` to `last` (exclusive) of a block; `begins` are the prompts that begin in them."""
        here = slice(self.rows, self.rows + last - first)
        for site in self._sites:
            rows = self._values[site.name][here]
            copy_rows(block.values[site.name][first:last].contiguous(), rows)
            if bad := not_finite_rows(rows):
                self.not_finite[site.name] = self.not_finite.get(site.name, 0) + bad
        self._prompt[here] = block.prompt[first:last]
        self._position[here] = block.position[first:last]
        self._token_id[here] = block.token_id[first:last]
        self._phase[here] = block.phase[first:last]
        self._spans += block.spans[first:last]
        self._prompts += begins
        self.rows += last - first

    def publish(self, folder: Path, number: int, first_row: int, cursor: Cursor) -> ShardRecord:
        """Write what is in the buffer as shard `number` and empty it. The record comes last, so the shard
        exists with all its files or not at all; on an error its files are removed again and the rows stay.

        Raises:
            OSError, WorkbenchError: the system refuses to write.
        """
        n, files = self.rows, shard_files(number)
        try:
            sha256 = {
                files["values"]: write_values(folder / files["values"], self._sites, n, self._values),
                files["index"]: write_table(
                    folder / files["index"],
                    index_table(
                        self._prompt[:n], self._position[:n], self._token_id[:n], self._phase[:n], self._spans
                    ),
                ),
                files["prompts"]: write_table(folder / files["prompts"], prompts_table(self._prompts)),
            }
            for name in ("shards", "index", "prompts"):
                flush_folder(folder / name)
            record = ShardRecord(number, n, first_row, sha256, cursor, dict(sorted(self.not_finite.items())))
            write_record(folder, record)
        except BaseException:
            if not (folder / files["record"]).exists():
                for kind in ("values", "index", "prompts"):
                    with suppress(OSError):
                        (folder / files[kind]).unlink()
            raise
        self.rows, self.not_finite, self._spans, self._prompts = 0, {}, [], []
        return record


def check_block(manifest: Manifest, block: RowBlock) -> None:
    """Refuse a block that does not fit the manifest.

    Raises:
        DataError: a site is missing, has another shape or too few rows; the index columns differ in length; or
            labels cannot be stored.
    """
    n, sites = len(block), {site.name: site for site in manifest.sites}
    if not n and not block.values:
        return  # a batch in which no token was asked for was not run
    if set(block.values) != set(sites):
        odd = sorted(set(block.values) ^ set(sites))
        raise DataError(
            f"The rows are of sites {sorted(block.values)}, the store of {sorted(sites)}: {odd} differ."
        )
    for name, site in sites.items():
        if (shape := tuple(block.values[name].shape)) != (n, *site.shape):
            raise DataError(
                f"Rows at {name!r} have shape {shape}, expected {(n, *site.shape)}: one row for each line of the index."
            )
    for prompt in block.prompts:
        labels_json(prompt)
    for column in ("position", "token_id", "phase", "spans"):
        if (length := len(getattr(block, column))) != n:
            raise DataError(f"The index column {column!r} has {length} entries for {n} rows.")


def flush_folder(folder: Path) -> None:
    """Make the names in a folder last (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
