"""Activations while the model writes: rows of generated tokens, from the very run that generated them.

The row of a token is computed when the token is fed back, so one token more than asked for is generated and left
away: every stored token has its row, and none is computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.collection.engine import Engine, Part
from workbench.collection.tasks import Task
from workbench.errors import DataError, PromptError
from workbench.model.quiet import quiet_transformers
from workbench.model.tokens import from_ids
from workbench.sites.catalog import Site
from workbench.store.rows import PromptRecord, RowBlock


@dataclass(frozen=True)
class Generation:
    """How each prompt is continued."""

    max_new_tokens: int = 64
    """At most so many; a continuation also ends before the end-of-sequence token, whose row is not kept."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of the sampling; each batch has its own stream."""
    prompt_rows: bool = False
    """Keep the rows of the prompt too, at the positions asked for."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise DataError(
                f"Generation needs at least one new token and a temperature of 0 or more, not "
                f"{self.max_new_tokens} and {self.temperature}."
            )

    def describe(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return asdict(self)


@dataclass
class GenerationEngine(Engine):
    """The collection engine, with a continuation in place of a single forward pass."""

    generation: Generation = field(default_factory=Generation)

    def _forward(self, task: Task, places: list[int]) -> Part:
        how = self.generation
        chosen = [task.contexts[i] for i in places]
        limit = self.model.context_length
        for context in chosen:
            if limit and len(context.ids) + how.max_new_tokens + 1 > limit:
                raise PromptError(
                    f"Prompt {context.id!r} has {len(context.ids)} tokens; with {how.max_new_tokens} new ones it is "
                    f"longer than the {limit} that {self.model.name} reads."
                )
        part = from_ids(self.model, [c.ids for c in chosen], side="left", with_texts=False)
        values, new = self._continue(part, task.number)
        rows, columns, prompt, position, token_id, phase, spans = [], [], [], [], [], [], []
        records = []
        width = part.ids.shape[1]
        for row, (place, context, said) in enumerate(zip(places, chosen, new, strict=True)):
            n = len(context.ids)
            kept: list[tuple[int, int, int, str]] = []
            if how.prompt_rows:
                at, names = self.selection.select(context)
                kept += [(int(p), context.ids[int(p)], 0, name) for p, name in zip(at, names, strict=True)]
            kept += [(n + i, token, 1, "") for i, token in enumerate(said)]
            for p, token, which, name in kept:
                rows.append(row)
                columns.append(width - n + p)
                prompt.append(task.numbers[place])
                position.append(p)
                token_id.append(token)
                phase.append(which)
                spans.append(name)
            if kept:
                text = self.model.tokenizer.decode(said)
                labels = {**context.labels, "generated": text}
                records.append(PromptRecord(task.numbers[place], context.id, n + len(said), labels))
        i, c = torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)
        picked = {name: v[i.to(v.device), c.to(v.device)] for name, v in values.items()} if rows else {}
        host: dict[str, Tensor] = {}
        arrived: Callable[[], None] = lambda: None  # noqa: E731
        if picked:
            host, arrived = self._to_host(picked)
        block = RowBlock(
            values=host,
            prompt=np.array(prompt, dtype=np.int64),
            position=np.array(position, dtype=np.int32),
            token_id=np.array(token_id, dtype=np.int32),
            phase=np.array(phase, dtype=np.int8),
            spans=tuple(spans),
            prompts=tuple(records),
        )
        return Part(block, sum(len(context.ids) for context in chosen) + sum(map(len, new)), arrived)

    @torch.inference_mode()
    def _continue(self, part: Any, number: int) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Site -> [batch, position, ...] over prompt and new tokens (padded on the left), and the new tokens."""
        how, model = self.generation, self.model
        end = model.tokenizer.eos_token_id
        pad = model.tokenizer.pad_token_id if model.tokenizer.pad_token_id is not None else end
        sampling: dict[str, Any] = {"do_sample": False}
        if how.temperature > 0:
            sampling = {"do_sample": True, "temperature": how.temperature}

        def no_copy(value: Tensor, _site: Site) -> Tensor:
            return value

        devices = [model.device] if model.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            quiet_transformers(),
            model.hooks(read=[s.name for s in self.sites], select=no_copy) as session,
        ):
            torch.manual_seed(how.seed * 1_000_003 + number)
            out = model.hf.generate(
                input_ids=part.ids,
                attention_mask=part.mask,
                max_new_tokens=how.max_new_tokens + 1,
                use_cache=True,
                pad_token_id=pad if pad is not None else 0,
                **sampling,
            )
        values = {site.name: torch.cat(session.calls(site.name), dim=1) for site in self.sites}
        said = out[:, part.ids.shape[1] :].tolist()
        return values, [_kept(row, end, how.max_new_tokens) for row in said]


def _kept(row: list[int], end: int | list[int] | None, most: int) -> list[int]:
    """The tokens before the end-of-sequence token, at most so many."""
    ends = set(end) if isinstance(end, list) else {end}
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[: min(stop, most)]
