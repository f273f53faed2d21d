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

from workbench.collection.batching import TOKENS_PER_BATCH, read_rows, with_back_off
from workbench.collection.items import Context
from workbench.collection.selection import Selection
from workbench.collection.tasks import Drawn, Task, tasks
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
    """A task and what came of it."""

    task: Task
    part: Part

    def block(self) -> RowBlock:
        """The rows, once they have arrived on the host."""
        self.part.arrived()
        return self.part.rows


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
    drawn: Drawn = field(default_factory=Drawn)
    n_tokens: int = 0
    """Tokens that went through the model so far."""
    _streams: dict[torch.device, Any] = field(default_factory=dict, repr=False)
    """One copy stream a device."""

    def run(self, contexts: Iterable[Context], start: Cursor | None = None) -> Iterator[Batch]:
        """The batches from `start` on (`workbench.collection.tasks.tasks`)."""
        for task in tasks(contexts, self.tokens_per_batch, start, self.drawn):
            yield Batch(task, self.compute(task))

    def compute(self, task: Task) -> Part:
        """The rows of one task; where memory runs out it is cut in two, as often as needed."""
        parts = with_back_off(
            list(range(len(task.contexts))),
            lambda some: self._forward(task, some),
            lambda n, error: self.on_event(
                {"event": "back-off", "batch": task.number, "prompts": n, "error": str(error).splitlines()[0]}
            ),
        )
        part = parts[0] if len(parts) == 1 else _joined(parts)
        self.n_tokens += part.n_tokens
        return part

    def _forward(self, task: Task, places: list[int]) -> Part:
        chosen = [task.contexts[i] for i in places]
        numbers = [task.numbers[i] for i in places]
        picked = [self.selection.select(context) for context in chosen]
        wanted = [positions.tolist() for positions, _ in picked]
        values: Mapping[str, Tensor] = {}
        arrived: Callable[[], None] = _nothing
        if any(wanted):
            batch = from_ids(self.model, [c.ids for c in chosen], with_texts=False)
            values, arrived = self._to_host(read_rows(self.model, batch, self.sites, wanted, task.longest))
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


def refuse_not_finite(model: LanguageModel, block: RowBlock) -> None:
    """An error where a row holds NaN or infinite values, naming the site and the first prompt."""
    for site, rows in block.values.items():
        bad = ~torch.isfinite(rows).flatten(1).all(1)
        if bool(bad.any()):
            first = int(block.prompt[int(torch.nonzero(bad)[0])])
            raise DataError(
                f"{int(bad.sum())} of {len(bad)} rows at {site!r} hold NaN or infinite values, the first in prompt "
                f"{first}. {model.name} runs in {str(model.dtype).removeprefix('torch.')}: try dtype='float32'; "
                "without `strict` such rows are stored and counted."
            )
