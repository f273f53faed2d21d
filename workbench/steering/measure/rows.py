"""Rows of a batch: prompts under doses, in as few forward passes and generations as memory allows.

    dose = (direction, strength)         row = (token ids, dose)

A row is padded on the left, so that the positions that are read are the last columns. Rows at different sites go up
together: each site has one edit, and a row that is steered elsewhere has strength 0 there, which adds nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.collection.batching import batches, with_back_off
from workbench.directions import Direction
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import from_ids
from workbench.progress import Progress, Silent
from workbench.steering.generate import Generation, generate
from workbench.steering.intervention import Amounts, SteeringEdit
from workbench.steering.operations import Operation
from workbench.steering.rules import Where, stretches

TOKENS_PER_BATCH = 4096
"""Tokens of one forward pass, padding included."""
LOGITS_PER_BATCH = 2**26
"""Logits of one forward pass: 256 MiB in float32."""


@dataclass(frozen=True)
class Dose:
    """A direction and how much of it is added; `Dose()` is the unsteered model.

    Raises:
        DataError: a strength that is not finite, or one without a direction.
    """

    direction: Direction | None = None
    strength: float = 0.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.strength):
            raise DataError(f"Steering strength {self.strength!r} is not finite: give a number such as 8.0.")
        if self.direction is None and self.strength != 0:
            raise DataError(f"A dose of strength {self.strength:g} needs a direction.")

    @property
    def nothing(self) -> bool:
        """Whether it leaves the model as it is."""
        return self.direction is None or self.strength == 0


def for_each_row(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    doses: Sequence[Dose],
    keep: Sequence[int],
    visit: Callable[[int, Tensor], None],
    *,
    where: Where = "all",
    prompt_lengths: Sequence[int] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> None:
    """Run rows and hand each one's last logits to `visit`.

    Args:
        model: the language model.
        rows: token ids of each row.
        doses: one for each row.
        keep: how many of each row's last positions are wanted, at least 1.
        visit: called with the number of a row and its [keep, d_vocab] float32 logits, in no particular order.
        where: position rule.
        prompt_lengths: tokens of each row that count as its prompt; None: all of them.
        tokens_per_batch: upper limit of one forward pass; what comes out does not depend on it (float32: to 1e-4).
        progress: one item a row.

    Raises:
        PositionError, DataError: a rule that finds no position in a prompt.
    """
    progress = progress or Silent()
    lengths = list(prompt_lengths) if prompt_lengths is not None else [len(row) for row in rows]
    spans = stretches(where, lengths, [row[:n] for row, n in zip(rows, lengths, strict=True)], model)
    most_rows = max(1, LOGITS_PER_BATCH // (max(keep) * model.vocab_size))
    for chosen in batches([len(row) for row in rows], tokens_per_batch):
        for start in range(0, len(chosen), most_rows):
            part = chosen[start : start + most_rows]

            def run(places: list[int]) -> None:
                logits = _last_logits(model, rows, doses, keep, spans, places)
                for place, one in zip(places, logits, strict=True):
                    visit(place, one[-keep[place] :].float())

            with_back_off(part, run, lambda _n, _error: None)
            progress.advance(len(part))


@torch.inference_mode()
def _last_logits(model, rows, doses, keep, spans, places) -> Tensor:
    """[row, most kept, d_vocab] logits at the last columns of a batch."""
    padded = from_ids(model, [rows[i] for i in places], side="left", with_texts=False)
    most = max(keep[i] for i in places)
    edits = _edits([doses[i] for i in places], [spans[i] for i in places])
    with model.edit(edits):
        if "logits_to_keep" in inspect.signature(model.hf.forward).parameters:
            return model.forward(padded, logits_to_keep=most).logits
        return model.forward(padded).logits[:, -most:]


def _edits(doses: Sequence[Dose], spans: Sequence[tuple[int, int]]) -> dict[str, SteeringEdit]:
    """One edit for each site that a dose of the batch is at; a row that is not steered there has strength 0."""
    edits = {}
    for site in dict.fromkeys(d.direction.site for d in doses if d.direction is not None and not d.nothing):
        here = [d.direction if d.direction is not None and d.direction.site == site else None for d in doses]
        stand_in = next(d for d in here if d is not None)
        strengths = [dose.strength if one is not None else 0.0 for one, dose in zip(here, doses, strict=True)]
        vectors = torch.stack([(one or stand_in).vector for one in here])
        edits[site] = SteeringEdit(vectors, Operation("add"), Amounts(strengths, spans))
    return edits


def generate_rows(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    doses: Sequence[Dose],
    *,
    max_new_tokens: int,
    where: Where = "all",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> Generation:
    """Greedy continuations of rows, each under its own dose, in the order of the rows.

    Rows of one site go up together, with those that are not steered at all; `generate` does the rest.
    """
    progress = progress or Silent()
    site_of = [None if d.nothing else d.direction.site for d in doses]  # type: ignore[union-attr]
    sites = [s for s in dict.fromkeys(site_of) if s is not None] or [None]
    found: list[tuple[tuple[int, ...], tuple[int, ...], str]] = [((), (), "")] * len(doses)
    for site in sites:
        mine = [i for i, s in enumerate(site_of) if s == site or (s is None and site == sites[0])]
        full = [len(prompts[i]) + max_new_tokens for i in mine]
        for places in batches(full, tokens_per_batch):
            part = [mine[i] for i in places]

            def run(part: list[int]) -> None:
                directions = [d for i in part if not (dose := doses[i]).nothing and (d := dose.direction)]
                made = generate(
                    model,
                    [list(prompts[i]) for i in part],
                    [(doses[i].direction if not doses[i].nothing else None) or directions[0] for i in part]
                    if directions
                    else None,
                    [0.0 if doses[i].nothing else doses[i].strength for i in part] if directions else 0.0,
                    max_new_tokens=max_new_tokens,
                    where=where,
                    force=True,
                )
                for i, row in zip(part, zip(made.prompts, made.tokens, made.texts, strict=True), strict=True):
                    found[i] = row

            with_back_off(part, run, lambda _n, _error: None)
            progress.advance(len(part))
    asked, tokens, texts = zip(*found, strict=True)
    return Generation(tuple(asked), tuple(tokens), tuple(texts))
