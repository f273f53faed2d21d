"""Activations while the model writes: rows of generated tokens, from the very run that generated them.

The row of a token is computed when the token is fed back, so one token more than asked for is generated and left
away: every stored token has its row, and none is computed a second time.

Decoding is what is asked for and nothing else: of a model's generation config only the end-of-sequence tokens count.
What is sampled depends on (seed, number of the prompt, step) alone (`workbench.model.generating`), so a prompt is
continued the same way in any batch, in the halves of one that did not fit into memory, and after a resume.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.collection.engine import Engine, Part
from workbench.collection.fields import whole_number
from workbench.collection.items import Context
from workbench.collection.tasks import Task
from workbench.errors import DataError, PromptError
from workbench.model.generating import NOTHING_ELSE, GumbelNoise, ends_of, row_keys
from workbench.model.quiet import quiet_transformers
from workbench.model.tokens import TokenBatch, from_ids
from workbench.sites.catalog import Site
from workbench.store.rows import PromptRecord, RowBlock

SAID = "generated"
"""The label that holds what the model wrote."""


@dataclass(frozen=True)
class Generation:
    """How each prompt is continued.

    Raises:
        DataError: a field of the wrong kind or out of range.
    """

    max_new_tokens: int = 64
    """At most so many; a continuation also ends before an end-of-sequence token (the tokenizer's, or one
    that the model's generation config names), whose row is not kept."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of the sampling. Each prompt draws noise of its own, by its number in the data, whatever batch it is in."""
    prompt_rows: bool = False
    """Keep the rows of the prompt too, at the positions asked for."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "seed"):
            number = whole_number(getattr(self, name))
            if number is None:
                raise DataError(f"Generation: {name} is {getattr(self, name)!r}; expected a whole number.")
            object.__setattr__(self, name, number)
        if isinstance(self.temperature, np.generic):
            object.__setattr__(self, "temperature", self.temperature.item())
        known = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        in_range = known and math.isfinite(self.temperature) and self.temperature >= 0
        if not in_range or self.max_new_tokens < 1:
            raise DataError(
                f"Generation needs at least one new token and a temperature of 0 or more, not "
                f"{self.max_new_tokens!r} and {self.temperature!r}."
            )
        if not isinstance(self.prompt_rows, bool):
            raise DataError(f"Generation: prompt_rows is {self.prompt_rows!r}; expected True or False.")

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
            if limit and len(context.ids) + how.max_new_tokens > limit:  # the one left away is not read
                raise PromptError(
                    f"Prompt {context.id!r} has {len(context.ids)} tokens; with {how.max_new_tokens} new ones it is "
                    f"longer than the {limit} that {self.model.name} reads. Shorten it or ask for at most "
                    f"{max(0, limit - len(context.ids))} new tokens."
                )
        part = from_ids(self.model, [c.ids for c in chosen], side="left", with_texts=False)
        values, new = self._continue(part, [task.numbers[i] for i in places])
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
                labels = {**context.labels, SAID: text}
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
    def _continue(
        self, part: TokenBatch, numbers: Sequence[int]
    ) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Site -> [batch, position, ...] over prompt and new tokens (padded on the left), and the new tokens.

        `numbers` are those of the prompts in the data.
        """
        how, model = self.generation, self.model
        ends = ends_of(model)
        pad = model.tokenizer.pad_token_id

        def no_copy(value: Tensor, _site: Site) -> Tensor:
            return value

        with (
            quiet_transformers(),
            model.hooks(read=[s.name for s in self.sites], select=no_copy) as session,
        ):
            out = model.hf.generate(
                input_ids=part.ids,
                attention_mask=part.mask,
                max_new_tokens=how.max_new_tokens + 1,
                use_cache=True,
                eos_token_id=ends or None,
                pad_token_id=pad if pad is not None else (ends or [0])[0],
                logits_processor=self._noise(numbers, part.ids.shape[1]),
                **_all_logits(model.hf, self.sites),
                **NOTHING_ELSE,
            )
        values = {site.name: torch.cat(session.calls(site.name), dim=1) for site in self.sites}
        said = out[:, part.ids.shape[1] :].tolist()
        return values, [_kept(row, ends, how.max_new_tokens) for row in said]

    def _noise(self, numbers: Sequence[int], start: int) -> Any:
        """What makes transformers' greedy search sample; empty where the temperature is 0."""
        from transformers import LogitsProcessorList, TemperatureLogitsWarper

        how = self.generation
        if how.temperature == 0:
            return LogitsProcessorList()
        keys = row_keys(how.seed, numbers, self.model.device)
        return LogitsProcessorList(
            [TemperatureLogitsWarper(float(how.temperature)), GumbelNoise(keys, start)]
        )


def without_said(contexts: Iterable[Context]) -> Iterator[Context]:
    """The contexts, none of which may have a label of the name that the generated text is stored under.

    Raises:
        DataError: one has; it names the prompt.
    """
    for context in contexts:
        if SAID in context.labels:
            raise DataError(
                f"Prompt {context.id!r} has a label {SAID!r}, which is where the text that the model writes is kept: "
                "rename that field of the data, or leave it out."
            )
        yield context


def _all_logits(hf: Any, sites: Sequence[Site]) -> dict[str, int]:
    """Where logits are read: have the model compute those of every token, not of the prompt's last alone."""
    wanted = any(site.name.startswith("unembed.") for site in sites)
    return (
        {"logits_to_keep": 0}
        if wanted and "logits_to_keep" in inspect.signature(hf.forward).parameters
        else {}
    )


def _kept(row: list[int], ends: Sequence[int], most: int) -> list[int]:
    """The tokens before the first that ends a text, at most so many."""
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[: min(stop, most)]
