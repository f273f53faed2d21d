"""Many edited copies of some prompts in few forwards: the edit of each row is its own.

A *row* is a prompt with its own edit; rows of like length go together, and one forward takes as many as fit. At each
site of `edits` the function gets the activations at the chosen positions, one line each, and the rows they belong to:

    h[chosen] -> edit(h[chosen], row)                  the other positions stay as they are

Sites are edited in the order of the forward pass, so a later edit sees what the earlier ones have done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.collection.batching import TOKENS_PER_BATCH, batches, out_of_memory, read_rows, with_back_off
from workbench.errors import DataError, PositionError
from workbench.hooks.context import HookContext
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Positions, Prompt, as_list, from_ids, resolve_positions
from workbench.progress import Progress
from workbench.sites.catalog import Site

RowEdit = Callable[[Tensor, Tensor], Tensor]
"""`fn(h [line, d], row [line]) -> [line, d]`: float32 in, on the device of the activation."""

__all__ = ["RowEdit", "encoded", "next_logits", "one_site", "out_of_memory", "positions_of", "read_at"]


def encoded(model: LanguageModel, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
    """Token ids of one prompt or many; none at all is a `DataError`."""
    listed = as_list(prompts)
    if not listed:
        raise DataError("No prompts were given: at least one is needed.")
    return [model.encode(prompt) for prompt in listed]


def positions_of(
    ids: Sequence[Sequence[int]], position: Positions | Sequence[Sequence[int]]
) -> list[list[int]]:
    """Absolute positions for each prompt: one rule for all, or a list of lists, one per prompt.

    Raises:
        PositionError: outside a prompt, or another number of lists than prompts.
    """
    nested = isinstance(position, (list, tuple)) and position and isinstance(position[0], (list, tuple))
    each = list(position) if nested else [position] * len(ids)  # type: ignore[arg-type]
    if len(each) != len(ids):
        raise PositionError(f"{len(each)} lists of positions were given for {len(ids)} prompts.")
    return [resolve_positions(p, len(row)) for p, row in zip(each, ids, strict=True)]  # type: ignore[arg-type]


def one_site(model: LanguageModel, name: str) -> Site:
    """The site of that name, which must be one, and hold one vector per token."""
    found = model.resolve(name)
    if len(found) != 1:
        raise DataError(f"{name!r} means {len(found)} sites of {model.name}: give one.")
    if found[0].where == "pattern":
        raise DataError(f"{name!r} holds attention over positions, not a vector: give another site.")
    return found[0]


@torch.inference_mode()
def read_at(
    model: LanguageModel,
    ids: Sequence[Sequence[int]],
    site: str,
    positions: Sequence[Sequence[int]],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Float[Tensor, "line d"]:
    """Activations [line, d] float32 at the positions of each prompt, in the order of the prompts."""
    where = one_site(model, site)
    parts: list[Tensor] = [torch.empty(0)] * len(ids)
    for chosen in batches([len(row) for row in ids], tokens_per_batch):
        part = from_ids(model, [list(ids[i]) for i in chosen], with_texts=False)
        rows = read_rows(model, part, [where], [positions[i] for i in chosen], 0)[where.name]
        split = rows.flatten(1).float().cpu().split([len(positions[i]) for i in chosen])
        for i, one in zip(chosen, split, strict=True):
            parts[i] = one
    return torch.cat(parts)


def next_logits(
    model: LanguageModel,
    ids: Sequence[Sequence[int]],
    edits: Mapping[str, RowEdit] | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    *,
    of_row: Int[np.ndarray, " row"] | None = None,
    reduce: Callable[[Tensor, np.ndarray], Tensor] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> Float[Tensor, "row ..."]:
    """Logits at the last token of every row, with the edits.

    Args:
        model: the language model.
        ids: token ids of the prompts.
        edits: site -> function of (activations, row numbers); without them the model as it is.
        positions: of each prompt, where the edits go.
        of_row: prompt of each row; by default one row per prompt.
        reduce: `fn(logits [row, d_vocab], row numbers)` -> [row, ...], so that not all logits are kept at once.
        tokens_per_batch: tokens of one forward. Where memory runs out, its rows are halved.
        progress: advanced by the rows that are done.
    """
    of_row = np.arange(len(ids)) if of_row is None else of_row
    out: list[Tensor] = [torch.empty(0)] * len(of_row)

    def run(rows: list[int]) -> None:
        logits = _forward(model, rows, ids, edits or {}, positions, of_row)
        values = logits if reduce is None else reduce(logits, np.array(rows))
        for row, one in zip(rows, values, strict=True):
            out[row] = one
        if progress:
            progress.advance(len(rows))

    for rows in batches([len(ids[i]) for i in of_row], tokens_per_batch):
        with_back_off(rows, run, _unsaid)
    return torch.stack(out)


@torch.inference_mode()
def _forward(
    model: LanguageModel,
    rows: list[int],
    ids: Sequence[Sequence[int]],
    edits: Mapping[str, RowEdit],
    positions: Sequence[Sequence[int]] | None,
    of_row: np.ndarray,
) -> Tensor:
    batch = from_ids(model, [list(ids[of_row[i]]) for i in rows], with_texts=False)
    ends = torch.tensor([n - 1 for n in batch.lengths])
    kept, column = ends.unique(return_inverse=True)
    hooks = {}
    if edits:
        assert positions is not None
        chosen = torch.zeros(batch.ids.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            chosen[i, list(positions[of_row[row]])] = True
        owner = torch.tensor(rows)[chosen.nonzero()[:, 0]]
        hooks = {site: _hook(edit, chosen, owner) for site, edit in edits.items()}
    with model.edit(hooks):
        logits = model.forward(batch, logits_to_keep=kept.to(model.device)).logits
    return logits[torch.arange(len(rows)), column].float().cpu()


def _unsaid(_n: int, _error: BaseException) -> None:
    """A batch was halved: nothing to note, its rows come out the same."""


def _hook(edit: RowEdit, chosen: Tensor, owner: Tensor) -> Callable[[Tensor, HookContext], Tensor]:
    def hook(activation: Tensor, context: HookContext) -> Tensor:
        here = chosen.to(activation.device)
        lines = activation[here].flatten(1)
        new = edit(lines.float(), owner.to(activation.device))
        if new.shape != lines.shape:
            raise DataError(
                f"The edit at {context.site.name!r} gave shape {list(new.shape)}; expected {list(lines.shape)}."
            )
        activation[here] = new.to(activation).reshape(-1, *activation.shape[2:])
        return activation

    return hook
