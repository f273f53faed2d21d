"""`collect_to`: activations of any number of prompts onto disk, complete or resumable.

The model computes in this thread; a second one casts, checks and writes what has arrived. Two batches may wait
between them, so memory does not grow with the data. On an interrupt or a cancel the batch at hand is finished and
the store is left as it is: the same call goes on.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from workbench.collection.batching import TOKENS_PER_BATCH, WINDOW_BATCHES
from workbench.collection.contexts import contexts as make_contexts
from workbench.collection.engine import Batch, Engine
from workbench.collection.generation import Generation, GenerationEngine
from workbench.collection.selection import Selection
from workbench.collection.sources import open_source
from workbench.errors import Cancelled, DataError
from workbench.model.fingerprint import tokenizer_hash
from workbench.model.language_model import LanguageModel
from workbench.progress import Progress, Silent
from workbench.sites.catalog import Site
from workbench.store.manifest import Manifest, SiteRecord
from workbench.store.reader import Store, open_store
from workbench.store.rows import RowBlock
from workbench.store.values import DTYPE
from workbench.store.writer import StoreWriter

ROWS_PER_SHARD = 32_768
_WAITING = 2


def collect_to(
    folder: str | Path,
    model: LanguageModel,
    data: Any,
    sites: str | Iterable[str] = "blocks.*.hook_resid_post",
    positions: Any = "all",
    *,
    dtype: str = "auto",
    special: str = "keep",
    context: int | None = None,
    overlap: int = 0,
    pack: bool = False,
    generate: Generation | None = None,
    limit: int | None = None,
    text_column: str = "text",
    rows_per_shard: int = ROWS_PER_SHARD,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    resume: bool = True,
    strict: bool = False,
    progress: Progress | None = None,
) -> Store:
    """Stream prompts through the model and write their activations to a store.

    Args:
        folder: the store. One that was begun with the same model, data and settings is gone on with.
        model: the language model.
        data: a `.jsonl`, `.parquet`, `.csv` or `.txt` file, a folder or hub id of `datasets`, a prompt set or its
            name, or any iterable of texts, chats, token ids or rows (`workbench.collection.sources`).
        sites: site names, globs or lists of them; several at once cost one forward pass.
        positions: `"all"`, `"last"`, indices, `"span:NAME"`, `"answer"`, `"match:REGEX"`, `"token:TEXT"`,
            `"role:NAME"`, or a list of these (`workbench.collection.selection`).
        dtype: of the rows on disk: `float32`, `bfloat16`, `float16`; `"auto"` is the model's own.
        special: `"keep"` or `"drop"` special tokens (BOS, EOS, those of the chat template). Padding is never kept.
        context: split longer texts into contexts of so many tokens; None makes a text that is too long an error.
        overlap: tokens that two neighbouring contexts of a text share.
        pack: join texts into contexts of exactly `context` tokens.
        generate: let the model continue each prompt and store the rows of the tokens it writes, from that very run;
            `Generation(prompt_rows=True)` keeps those of the prompt at `positions` too.
        limit: at most so many items of the data.
        rows_per_shard: rows in one file. 32,768 rows of 576 float32 values are 75 MB a site; an interrupted run
            computes the rows of its last, unfinished file again.
        tokens_per_batch: tokens in one forward pass, padding included; halved by itself where memory runs out.
        resume: go on with a store that was begun. `False` makes an existing one an error.
        strict: NaN or infinite values are an error. Otherwise they are counted for each site in the shards' records.
        progress: where to report, one item per prompt.

    Returns:
        The complete store, opened.

    Raises:
        DataError: another model, data or setting than the store was begun with; a second writer; a full disk;
            not-finite values with `strict`. Everything up to the last finished shard stays valid.
        Cancelled: after a cancel or Ctrl-C; the same call goes on.

    Example:
        >>> store = wb.collect_to("acts/", model, "plain-text", sites="blocks.15.hook_resid_post", context=256)
        >>> store["blocks.15.hook_resid_post"][:10].shape
        torch.Size([10, 576])
    """
    progress = progress or Silent()
    folder = Path(folder)
    resolved = model.resolve(sites)
    source = open_source(data, text_column=text_column, limit=limit)
    selection = Selection.parse(positions, special=special)
    stored = str(model.dtype).removeprefix("torch.") if dtype == "auto" else dtype
    if stored not in DTYPE:
        raise DataError(f"dtype {stored!r} cannot be stored: give {', '.join(DTYPE)}.")
    settings = {
        "positions": selection.describe(),
        "context": context,
        "overlap": overlap,
        "pack": pack,
        "limit": limit,
        "tokens_per_batch": tokens_per_batch,
        "window_tokens": tokens_per_batch * WINDOW_BATCHES,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "generate": generate.describe() if generate is not None else None,
    }
    shapes = site_shapes(model, resolved)
    manifest = Manifest(
        sites=tuple(SiteRecord(s.name, shapes[s.name], stored) for s in resolved),
        rows_per_shard=rows_per_shard,
        model=model.name,
        model_fingerprint=model.fingerprint,
        tokenizer_hash=tokenizer_hash(model.tokenizer),
        settings=settings,
    )
    with StoreWriter.open(folder, manifest, resume=resume) as writer:
        if writer.complete:
            return open_store(folder)
        stream = make_contexts(
            model,
            source,
            context=context,
            overlap=overlap,
            pack=pack,
            need_texts=selection.needs_texts,
            answers=generate is None,
        )
        options: dict[str, Any] = {
            "model": model,
            "sites": resolved,
            "selection": selection,
            "dtype": DTYPE[stored],
            "tokens_per_batch": tokens_per_batch,
            "on_event": writer.log,
        }
        resumed = writer.n_rows > 0
        engine = Engine(**options) if generate is None else GenerationEngine(**options, generation=generate)
        _run(engine, stream, writer, progress, source.length, strict)
        if generate is None or generate.prompt_rows:
            selection.check_used(resumed=resumed)
        writer.finish(engine.done.prompts, engine.done.digest)
    return open_store(folder)


def site_shapes(model: LanguageModel, sites: list[Site]) -> dict[str, tuple[int, ...]]:
    """Shape of one row at each site, found by reading one token at all of them."""
    for site in sites:
        if site.where == "pattern":
            raise DataError(
                f"{site.name!r} has rows as long as their prompt, which do not make a table: collect it in memory "
                "with `wb.collect`, or store q and k."
            )
    ids = [model.tokenizer.bos_token_id or 0] if model.tokenizer is not None else [0]
    names = [site.name for site in sites]
    with model.hooks(read=names, stop=True) as session:
        model.forward(model.batch([ids]))
    return {name: tuple(session[name].shape[2:]) for name in names}


def _run(
    engine: Engine,
    stream: Any,
    writer: StoreWriter,
    progress: Progress,
    length: int | None,
    strict: bool,
) -> None:
    """Compute here, write in a second thread; an error on either side ends both."""
    if writer.n_rows:
        writer.log({"event": "resumed", "rows": writer.n_rows, "batch": writer.cursor.batch})
    progress.stage("collect", length or 0)
    waiting: queue.Queue[Batch | None] = queue.Queue(maxsize=_WAITING)
    failure: list[BaseException] = []

    def write() -> None:
        while (batch := waiting.get()) is not None:
            if failure:
                continue  # drain, so that the computing side is never stuck
            try:
                block = batch.block()
                if strict:
                    _refuse_not_finite(engine.model, block)
                writer.append(
                    block, batch=batch.number, window=batch.window, digest=batch.digest, skip=batch.skip
                )
            except BaseException as error:  # noqa: BLE001 - carried to the computing side
                failure.append(error)

    thread = threading.Thread(target=write, name="store-writer", daemon=True)
    thread.start()
    began, seen = time.monotonic(), writer.cursor.prompts
    progress.advance(seen)
    try:
        with _interrupt() as interrupted:
            for batch in engine.run(stream, writer.cursor):
                waiting.put(batch)
                if failure:
                    break
                progress.advance(len(batch.part.rows.prompts))
                if interrupted:
                    raise Cancelled("Stopped after a whole batch; the same command goes on from there.")
    finally:
        waiting.put(None)
        thread.join()
    if failure:
        raise failure[0]
    seconds = time.monotonic() - began
    writer.log({"event": "collected", "tokens": engine.done.tokens, "seconds": round(seconds, 3)})


def _refuse_not_finite(model: LanguageModel, block: RowBlock) -> None:
    for site, rows in block.values.items():
        bad = ~torch.isfinite(rows).flatten(1).all(1)
        if bool(bad.any()):
            first = int(block.prompt[int(torch.nonzero(bad)[0])])
            raise DataError(
                f"{int(bad.sum())} of {len(bad)} rows at {site!r} hold NaN or infinite values, the first in prompt "
                f"{first}. {model.name} runs in {str(model.dtype).removeprefix('torch.')}: try dtype='float32'; "
                "without `strict` such rows are stored and counted."
            )


@contextmanager
def _interrupt() -> Iterator[list[int]]:
    """Ctrl-C is noted, and acted upon between two batches; a second one interrupts at once."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, _frame: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
