"""`collect_to`: activations of any number of prompts onto disk, complete or resumable.

The model computes in this thread; a second one casts, checks and writes what has arrived. Two batches may wait
between them, so memory does not grow with the data. On an interrupt or a cancel the batch at hand is finished and
the store is left as it is: the same call goes on.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.collection.batching import TOKENS_PER_BATCH
from workbench.collection.engine import Batch, Engine, refuse_not_finite
from workbench.collection.generation import Generation
from workbench.collection.items import Context
from workbench.collection.request import ROWS_PER_SHARD, Request
from workbench.collection.sources import open_source
from workbench.collection.tasks import draw_all
from workbench.collection.write_behind import write_behind
from workbench.errors import Cancelled
from workbench.model.language_model import LanguageModel
from workbench.progress import Progress, Silent
from workbench.store.reader import Store, open_store
from workbench.store.writer import StoreWriter


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
        folder: the store. One that was begun with the same model, data and settings is gone on with; of one that is
            complete the data is read and tokenised once more, to see that it is the same.
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
        limit: at most so many items of the data (of an opened `Source` too).
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
        PositionError: a rule that finds no token in any prompt, or lists of positions for more or fewer prompts.
        Cancelled: after a cancel or Ctrl-C; the same call goes on.

    Example:
        >>> store = wb.collect_to("acts/", model, "plain-text", sites="blocks.15.hook_resid_post", context=256)
        >>> store["blocks.15.hook_resid_post"][:10].shape
        torch.Size([10, 576])
    """
    request = Request(
        sites=sites,
        positions=positions,
        dtype=dtype,
        special=special,
        context=context,
        overlap=overlap,
        pack=pack,
        generate=generate,
        limit=limit,
        rows_per_shard=rows_per_shard,
        tokens_per_batch=tokens_per_batch,
        strict=strict,
    )
    folder, progress = Path(folder), progress or Silent()
    source = open_source(data, text_column=text_column, limit=limit)
    with StoreWriter.open(folder, request.manifest(model), resume=resume) as writer:
        stream = request.contexts(model, source)
        if writer.complete:
            progress.stage("check", source.length or 0)
            drawn = draw_all(stream, tokens_per_batch, progress)
            writer.finish(drawn.prompts, drawn.digest)
            return open_store(folder)
        if writer.n_rows and request.selects_prompts:
            stream = _all_counted(stream, request)
        engine = request.engine(model, writer.log)
        _run(engine, stream, writer, progress, source.length, strict=strict)
        if request.selects_prompts:
            request.selection.check_used()
        writer.finish(engine.drawn.prompts, engine.drawn.digest)
    return open_store(folder)


def _run(
    engine: Engine,
    stream: Iterable[Context],
    writer: StoreWriter,
    progress: Progress,
    length: int | None,
    *,
    strict: bool,
) -> None:
    """Compute here, write in a second thread; an error on either side ends both."""
    if writer.n_rows:
        writer.log({"event": "resumed", "rows": writer.n_rows, "batch": writer.cursor.batch})
    progress.stage("collect", length or 0)

    def write(batch: Batch) -> None:
        block, task = batch.block(), batch.task
        if strict:
            refuse_not_finite(engine.model, block)
        writer.append(block, batch=task.number, window=task.window, digest=task.digest, skip=task.skip)

    began = time.monotonic()
    progress.advance(writer.cursor.prompts)
    with interruptible() as interrupted:
        for batch in write_behind(engine.run(stream, writer.cursor), write):
            progress.advance(len(batch.part.rows.prompts))
            if interrupted:
                raise Cancelled("Stopped after a whole batch; the same command goes on from there.")
    seconds = time.monotonic() - began
    writer.log({"event": "collected", "tokens": engine.n_tokens, "seconds": round(seconds, 3)})


def _all_counted(stream: Iterable[Context], request: Request) -> Iterator[Context]:
    """The contexts, each seen by the selection: on a resume those before the cursor go through no engine."""
    for context in stream:
        request.selection.select(context)
        yield context


@contextmanager
def interruptible() -> Iterator[list[int]]:
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
