"""Synthetic rows for the store's tests: the same for every process that asks for the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from workbench.store import Manifest, PromptRecord, RowBlock, SiteRecord, StoreWriter

SITES = (
    SiteRecord("blocks.0.hook_resid_post", (5,), "bfloat16"),
    SiteRecord("blocks.1.attn.hook_z", (2, 3), "float32"),
    SiteRecord("blocks.3.hook_resid_post", (7,), "float16"),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def manifest(rows_per_shard: int = 16, sites: tuple[SiteRecord, ...] = SITES, **changes) -> Manifest:
    given = {
        "sites": sites,
        "rows_per_shard": rows_per_shard,
        "model": "tiny",
        "model_fingerprint": "m0",
        "tokenizer_hash": "t0",
        "settings": {"positions": "all", "contexts": {"length": 8, "overlap": 0}},
    }
    return Manifest(**{**given, **changes})


def block(number: int, lengths: list[int], first_prompt: int, sites=SITES, seed: int = 0) -> RowBlock:
    """Batch `number`: prompts of these lengths (in rows), numbered backwards as bucketing by length does."""
    n = sum(lengths)
    numbers = [first_prompt + len(lengths) - 1 - i for i in range(len(lengths))]
    generator = torch.Generator().manual_seed(1000 * seed + number)
    values = {s.name: torch.randn((n, *s.shape), generator=generator).to(DTYPES[s.dtype]) for s in sites}
    position = np.concatenate([np.arange(length) for length in lengths] or [[]]).astype(np.int32)
    prompts = [
        PromptRecord(p, f"doc-{p}", length, {"label": p % 3 == 0, "group": "äb"[p % 2]})
        for p, length in zip(numbers, lengths, strict=True)
    ]
    return RowBlock(
        values=values,
        prompt=np.repeat(np.array(numbers, np.int64), lengths),
        position=position,
        token_id=(position * 7 % 5).astype(np.int32),
        phase=(position > 3).astype(np.int8),
        spans=["subject|answer" if p == 1 else "answer" if p == 2 else "" for p in position.tolist()],
        prompts=prompts,
    )


def blocks(batches: list[list[int]], sites=SITES, seed: int = 0) -> list[tuple[RowBlock, dict]]:
    """Blocks of batches, given the rows of each batch's prompts, and the arguments that go with them."""
    made, first = [], 0
    for b, lengths in enumerate(batches):
        window = b // 2 + 1
        digest = hashlib.sha256(f"{seed} {window}".encode()).hexdigest()
        made.append((block(b, lengths, first, sites, seed), {"batch": b, "window": window, "digest": digest}))
        first += len(lengths)
    return made


def write(
    folder: Path,
    batches: list[list[int]],
    rows_per_shard: int = 16,
    *,
    sites=SITES,
    seed: int = 0,
    stop_after_shards: int | None = None,
    finish: bool = True,
    **changes,
) -> None:
    """Write, or go on writing, a store of these batches, as a collection would."""
    with StoreWriter.open(folder, manifest(rows_per_shard, sites, **changes)) as writer:
        if writer.complete:
            return
        start = writer.cursor
        for one, where in blocks(batches, sites, seed):
            if where["batch"] < start.batch:
                continue
            writer.append(one, **where, skip=start.row if where["batch"] == start.batch else 0)
            if stop_after_shards is not None and len(writer.records) >= stop_after_shards:
                return
        if finish:
            writer.finish(sum(map(len, batches)), f"data-{seed}")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store and its bytes, but for those that are not part of the data."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name not in ("log.jsonl", "lock")}
