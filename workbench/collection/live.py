"""Activations for training straight from model and text, without touching the disk.

Rows of many prompts are kept in a buffer; batches are drawn from it at random and half of it is filled again from
the engine when half is served, so that neighbours in a batch come from different texts. The buffer bounds how far
rows mix: a store, whose loader shuffles over everything, mixes better.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from workbench.collection.batching import TOKENS_PER_BATCH
from workbench.collection.contexts import contexts as make_contexts
from workbench.collection.engine import Engine
from workbench.collection.fields import whole_number
from workbench.collection.selection import Selection
from workbench.collection.sources import open_source
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel


class LiveLoader:
    """Batches of activations at one site, made as they are needed. An iterator of [batch, ...] tensors.

    Args:
        model: the language model.
        data: as in `collect_to`. It is read again from its beginning when it ends (`epochs` times), which a generator
            cannot be: give a function that makes it, or `epochs=1`.
        site: one site.
        batch_size: rows in a batch.
        positions: as in `collect_to`.
        special: keep or drop special tokens.
        context, pack: as in `collect_to`.
        buffer_rows: rows that are mixed with each other.
        seed: of the mixing.
        epochs: how often the data is read; None for ever. Rows at the end that do not fill a batch are dropped.
        dtype: of the batches; float32 by default, as training wants it.
        device: of the batches; default: the model's.

    Raises:
        DataError: a site that is not one, a buffer smaller than two batches, data without a single row, a generator
            that would be read more than once.

    Example:
        >>> batches = LiveLoader(model, "plain-text", "blocks.15.hook_resid_post", batch_size=1024, context=128)
        >>> next(batches).shape
        torch.Size([1024, 576])
    """

    def __init__(
        self,
        model: LanguageModel,
        data: Any,
        site: str,
        *,
        batch_size: int,
        positions: Any = "all",
        special: str = "keep",
        context: int | None = None,
        pack: bool = False,
        buffer_rows: int = 65_536,
        seed: int = 0,
        epochs: int | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
    ) -> None:
        if epochs is not None and (whole_number(epochs) or 0) < 1:
            raise DataError(f"epochs is {epochs!r}; expected a whole number, at least 1, or None for ever.")
        if batch_size < 1 or buffer_rows < 2 * batch_size:
            raise DataError(
                f"A buffer of {buffer_rows} rows cannot mix batches of {batch_size}: give at least twice a batch."
            )
        self._sites = model.resolve(site)
        if len(self._sites) != 1:
            raise DataError(f"{site!r} names {len(self._sites)} sites; a loader serves one.")
        self._source = open_source(data)
        if self._source.rows.one_shot and epochs != 1:
            raise DataError(
                f"{self._source.name} can be read only once, and epochs={epochs} would read it again: give a list, a "
                "function that makes it anew (`lambda: my_generator()`), or epochs=1."
            )
        self.model, self.data, self.batch_size = model, data, batch_size
        self._selection = Selection.parse(positions, special=special)
        self._context, self._pack, self._epochs = context, pack, epochs
        self._tokens = tokens_per_batch
        self._dtype, self._device = dtype, torch.device(device) if device is not None else model.device
        self._generator = torch.Generator().manual_seed(seed)
        self._buffer_rows = buffer_rows
        self._rows = self._read()
        self._buffer: Tensor | None = None
        self._exhausted = False

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        low = self._buffer is None or len(self._buffer) <= max(self.batch_size - 1, self._buffer_rows // 2)
        if low and not self._exhausted:
            self._fill()
        assert self._buffer is not None
        if len(self._buffer) < self.batch_size:
            raise StopIteration
        batch, self._buffer = self._buffer[-self.batch_size :], self._buffer[: -self.batch_size]
        return batch.to(self._device)

    def _fill(self) -> None:
        """Add rows until the buffer is full, and mix it."""
        parts = [] if self._buffer is None else [self._buffer]
        size = sum(map(len, parts))
        while size < self._buffer_rows:
            rows = next(self._rows, None)
            if rows is None:
                self._exhausted = True
                break
            parts.append(rows)
            size += len(rows)
        if not parts:
            raise DataError("The data has no row at the positions asked for.")
        whole = torch.cat(parts)
        self._buffer = whole[torch.randperm(len(whole), generator=self._generator)]

    def _read(self) -> Iterator[Tensor]:
        epoch = 0
        while self._epochs is None or epoch < self._epochs:
            found = 0
            engine = Engine(
                self.model,
                self._sites,
                self._selection,
                tokens_per_batch=self._tokens,
            )
            stream = make_contexts(
                self.model,
                self._source,
                context=self._context,
                pack=self._pack,
                need_texts=self._selection.needs_texts,
            )
            for batch in engine.run(stream):
                block = batch.block()
                if len(block):
                    found += len(block)
                    yield block.values[self._sites[0].name].to(self._dtype)
            if not found:
                return
            epoch += 1
