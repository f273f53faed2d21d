"""The collection engine: prompts in, blocks of rows out, at the speed of the model.

Nothing is kept that is not needed: the forward pass ends with the last site asked for, only the wanted positions
are gathered on the device, and on CUDA they travel to pinned memory on a stream of their own while the next batch
is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.collection.batching import (
    TOKENS_PER_BATCH,
    WINDOW_BATCHES,
    Window,
    batches,
    read_rows,
    windows,
    with_back_off,
)
from workbench.collection.items import Context
from workbench.collection.selection import Selection
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import from_ids
from workbench.sites.catalog import Site
from workbench.store.manifest import Cursor
from workbench.store.rows import PromptRecord, RowBlock

Event = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """Rows of some prompts, perhaps still on their way to the host."""

    rows: RowBlock
    n_tokens: int
    """Tokens that went through the model, without padding."""
    arrived: Callable[[], None] = field(repr=False, default=lambda: None)
    """Waits until the rows are there."""


@dataclass(frozen=True)
class Batch:
    """A batch and its place in the work."""

    number: int
    window: int
    digest: str
    skip: int
    """Rows at its front that a store has already."""
    part: Part

    def block(self) -> RowBlock:
        """The rows, once they have arrived on the host."""
        self.part.arrived()
        return self.part.rows


@dataclass
class Progressed:
    """Counts of a run, for whoever watches."""

    prompts: int = 0
    tokens: int = 0
    digest: str = ""
    windows: int = 0


@dataclass
class Engine:
    """How a model is read: which sites, which positions, how much at once.

    Args:
        model: the language model.
        sites: what is read, in the order of the forward pass.
        selection: which positions of each prompt.
        dtype: what the rows are cast to on the device; None keeps the model's.
        tokens_per_batch: tokens in one forward pass, padding included.
        on_event: told of a back-off.
    """

    model: LanguageModel
    sites: list[Site]
    selection: Selection
    dtype: torch.dtype | None = None
    tokens_per_batch: int = TOKENS_PER_BATCH
    on_event: Event = lambda _event: None
    done: Progressed = field(default_factory=Progressed)
    _streams: dict[torch.device, Any] = field(default_factory=dict, repr=False)
    """One copy stream a device."""

    @property
    def window_tokens(self) -> int:
        """Tokens among which prompts of like length are looked for."""
        return self.tokens_per_batch * WINDOW_BATCHES

    def run(self, contexts: Iterable[Context], start: Cursor | None = None) -> Iterator[Batch]:
        """The batches from `start` on.

        Raises:
            DataError: the prompts before `start` are not those the cursor was made with.
        """
        start = start or Cursor()
        number = 0
        for window in windows(contexts, self.window_tokens):
            self.done.windows = window.number + 1
            self.done.digest = window.digest
            if window.number + 1 == start.window and window.digest != start.digest:
                raise DataError(
                    f"The data is not what the store was begun with: the first "
                    f"{window.first + len(window.contexts)} prompts differ. Give the same data in the same "
                    "order, or another folder."
                )
            plan = batches([len(c.ids) for c in window.contexts], self.tokens_per_batch)
            for places in plan:
                if number >= start.batch:
                    part = self._compute(window, places, number)
                    self.done.tokens += part.n_tokens
                    skip = start.row if number == start.batch else 0
                    yield Batch(number, window.number + 1, window.digest, skip, part)
                number += 1
            self.done.prompts = window.first + len(window.contexts)
        if start.window > self.done.windows:
            raise DataError(
                f"The data ends after {self.done.prompts} prompts, but the store was begun with more: "
                "give the same data."
            )

    def _compute(self, window: Window, places: list[int], number: int) -> Part:
        parts = with_back_off(
            places,
            lambda some: self._forward(window, some, number),
            lambda n, error: self.on_event(
                {"event": "back-off", "batch": number, "prompts": n, "error": str(error).splitlines()[0]}
            ),
        )
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _forward(self, window: Window, places: list[int], number: int) -> Part:
        del number  # a forward pass has nothing random
        chosen = [window.contexts[i] for i in places]
        numbers = [window.first + i for i in places]
        picked = [self.selection.select(context) for context in chosen]
        wanted = [positions.tolist() for positions, _ in picked]
        values: Mapping[str, Tensor] = {}
        arrived: Callable[[], None] = _nothing
        if any(wanted):
            batch = from_ids(self.model, [c.ids for c in chosen], with_texts=False)
            longest = max(len(c.ids) for c in window.contexts)
            values, arrived = self._to_host(read_rows(self.model, batch, self.sites, wanted, longest))
        each = list(zip(numbers, chosen, wanted, strict=True))
        rows = RowBlock(
            values=values,
            prompt=np.array([n for n, _, w in each for _ in w], dtype=np.int64),
            position=np.array([p for w in wanted for p in w], dtype=np.int32),
            token_id=np.array([c.ids[p] for _, c, w in each for p in w], dtype=np.int32),
            phase=np.zeros(sum(map(len, wanted)), dtype=np.int8),
            spans=tuple(name for _, names in picked for name in names),
            prompts=tuple(PromptRecord(n, c.id, len(c.ids), c.labels) for n, c, w in each if w),
        )
        return Part(rows, sum(len(c.ids) for c in chosen), arrived)

    def _to_host(self, values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Rows on the CPU in the wanted dtype. On CUDA the copy runs on its own stream into pinned memory."""
        cast = {name: v if self.dtype is None else v.to(self.dtype) for name, v in values.items()}
        if not any(v.is_cuda for v in cast.values()):
            return {name: v.cpu() for name, v in cast.items()}, _nothing
        host: dict[str, Tensor] = {}
        events = []
        for name, value in cast.items():
            if not value.is_cuda:
                host[name] = value.cpu()
                continue
            stream = self._copy_stream(value.device)
            stream.wait_stream(torch.cuda.current_stream(value.device))
            with torch.cuda.stream(stream):
                host[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                host[name].copy_(value, non_blocking=True)
                value.record_stream(stream)
                event = torch.cuda.Event()
                event.record(stream)
                events.append(event)

        def arrived() -> None:
            for event in events:
                event.synchronize()

        return host, arrived

    def _copy_stream(self, device: torch.device) -> Any:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


def _joined(parts: list[Part]) -> Part:
    """The pieces of a batch that was cut for want of memory, as one."""
    for part in parts:
        part.arrived()
    blocks = [part.rows for part in parts]
    some = [block.values for block in blocks if block.values]
    rows = RowBlock(
        values={name: torch.cat([v[name] for v in some]) for name in some[0]} if some else {},
        prompt=np.concatenate([b.prompt for b in blocks]),
        position=np.concatenate([b.position for b in blocks]),
        token_id=np.concatenate([b.token_id for b in blocks]),
        phase=np.concatenate([b.phase for b in blocks]),
        spans=tuple(name for b in blocks for name in b.spans),
        prompts=tuple(record for b in blocks for record in b.prompts),
    )
    return Part(rows, sum(part.n_tokens for part in parts))


def _nothing() -> None:
    return None
