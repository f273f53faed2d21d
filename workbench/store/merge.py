"""`merge`: several stores become one on disk, with the same rows and prompts numbered on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from workbench.errors import DataError
from workbench.files import publish_folder
from workbench.progress import Progress, Silent
from workbench.store.joined import joined_manifest
from workbench.store.reader import Store, concatenate, open_store
from workbench.store.rows import PromptRecord, RowBlock
from workbench.store.writer import StoreWriter


def merge(
    folders: Sequence[Path | str],
    target: Path | str,
    *,
    rows_per_shard: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """Write one store with the rows of several, in the order given. The target appears when it is complete.

    Every row keeps its bytes; prompts of later stores are numbered on; `settings["merged"]` says what went in.

    Args:
        folders: complete stores of the same sites, dtypes, model and tokenizer.
        target: a folder that does not exist.
        rows_per_shard: of the new store; None: as in the first.
        progress: one item per shard that is read.

    Raises:
        DataError: a store is incomplete or damaged, they differ (what differs is named), or `rows_per_shard` is
            below 1.
        WorkbenchError: the target exists, or the system refuses to write.

    Example:
        >>> merge(["acts-1", "acts-2"], "acts")
        Store('acts', 80,000 rows of 1,024 prompts, 3 sites, complete)
    """
    target, progress = Path(target), progress or Silent()
    if rows_per_shard is not None and not (isinstance(rows_per_shard, int) and rows_per_shard >= 1):
        raise DataError(
            f"rows_per_shard={rows_per_shard!r}: give 1 or more, or None for as many as in the first."
        )
    stores = [open_store(folder) for folder in folders]
    for store in stores:
        if not store.complete:
            raise DataError(f"{store!r} cannot be merged: finish it first by running its collection again.")
    manifest = joined_manifest([store.manifest for store in stores])
    manifest = replace(manifest, rows_per_shard=rows_per_shard or manifest.rows_per_shard)
    source = concatenate(stores)
    with publish_folder(target) as folder, StoreWriter.open(folder, manifest) as writer:
        progress.stage("merge", source.info["n_shards"])
        first, batch = 0, 0
        for part in source.parts:
            for record in part.records:
                block = _block(source, first, first + record.rows)
                writer.append(block, batch=batch, window=0, digest="")
                first, batch = first + record.rows, batch + 1
                progress.advance()
        writer.finish(manifest.n_prompts or 0, manifest.dataset_fingerprint or "")
    return open_store(target)


def _block(source: Store, first: int, last: int) -> RowBlock:
    """Rows `first` to `last` (exclusive), with the records of all prompts that have rows among them."""
    index = source.index
    numbers = index.prompt[first:last]
    order = numbers[np.sort(np.unique(numbers, return_index=True)[1])]
    table = source.prompts.take(np.searchsorted(source.prompts["number"].to_numpy(), order))
    return RowBlock(
        values={site: source[site][first:last] for site in source.sites},
        prompt=numbers,
        position=index.position[first:last],
        token_id=index.token_id[first:last],
        phase=index.phase[first:last],
        spans=index.spans[first:last].to_pylist(),
        prompts=[
            PromptRecord(row["number"], row["id"], row["n_tokens"], json.loads(row["labels"]))
            for row in table.to_pylist()
        ],
    )
