"""Waves: many patched rows going up through the blocks together, each joining at its own block.

Rows of one wave begin at one position. They may be of one recorded run or of several of the same length: each attends
to its own run's keys and values. What else a block is called with (masks, position codes) does not depend on the tokens
in the architectures known here; it is compared, and runs in which it differs go up one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import HookError
from workbench.hooks.session import EditFunction
from workbench.hooks.tensors import output_tensor, replace_first
from workbench.patching.recording import Call, Recording

TOKENS_PER_CALL = 4096


@dataclass(frozen=True)
class Entry:
    """One patched row."""

    layer: int
    """The first block that is run; the number of blocks for a stream that only needs to be unembedded."""
    stream: Float[Tensor, "position d_model"]
    """The residual stream it begins with, from the wave's first position on."""
    edits: Mapping[str, EditFunction] = field(default_factory=dict)
    """Sites of that block or later ones -> edit of this row's activation, [position, ...]."""


Row = tuple[Recording, Entry]
"""A patched row and the run it is a patch of."""


def chunks(entries: Sequence[Entry], tokens_per_call: int = TOKENS_PER_CALL) -> Iterator[list[int]]:
    """Numbers of entries that go up together: at most `tokens_per_call` tokens at once, of like layers."""
    order = sorted(range(len(entries)), key=lambda i: entries[i].layer)
    if not order:
        return
    size = max(1, tokens_per_call // len(entries[0].stream))
    for at in range(0, len(order), size):
        yield order[at : at + size]


def logits_in_parts(
    rows: Sequence[Row],
    start: int = 0,
    keep: int = 1,
    tokens: Sequence[int] | None = None,
    tokens_per_call: int = TOKENS_PER_CALL,
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of rows that went up together, and their logits (see `logits_of`), until all rows did.

    Where the device's memory does not suffice, the rows of that call go up in two halves, and so on; a row that does
    not fit alone raises what the device said. Results do not depend on it.
    """
    waiting = list(chunks([entry for _, entry in rows], tokens_per_call))
    while waiting:
        some = waiting.pop(0)
        try:
            yield some, logits_of([rows[i] for i in some], start, keep, tokens)
        except torch.OutOfMemoryError:
            if len(some) == 1:
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            waiting[:0] = [some[: len(some) // 2], some[len(some) // 2 :]]


def logits_of(
    rows: Sequence[Row], start: int = 0, keep: int = 1, tokens: Sequence[int] | None = None
) -> Float[Tensor, "row ... d_vocab"]:
    """Logits at the last position, one row for each of `rows`, in their order; with `keep` above 1 at the last ones.

    With `tokens` only theirs, in that order.
    """
    hidden = run(rows, start, keep)
    return rows[0][0].model.readout(hidden[:, 0] if keep == 1 else hidden, tokens)


@torch.inference_mode()
def run(rows: Sequence[Row], start: int = 0, keep: int = 1) -> Float[Tensor, "row kept d_model"]:
    """The stream after the last block at the last `keep` positions, one row for each of `rows`, in their order.

    Args:
        rows: patched rows of one or more recorded runs of one model and one length.
        start: the position their streams begin at.
        keep: positions before `start` among them are those of the row's own run.
    """
    together = _alike(rows, start)
    if len(together) > 1:
        parts = [(some, run([rows[i] for i in some], start, keep)) for some in together]
        whole = parts[0][1].new_empty((len(rows), *parts[0][1].shape[1:]))
        for some, part in parts:
            whole[some] = part.to(whole.device)
        return whole
    hidden, order, _ = climb(rows, start, rows[0][0].model.n_layers)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    hidden = hidden[:, -keep:][back.to(hidden.device)]
    if (missing := keep - hidden.shape[1]) > 0:
        before = torch.stack([of.inputs[-1][start - missing : start] for of, _ in rows]).to(hidden)
        hidden = torch.cat([before, hidden], dim=1)
    return hidden


def climb(
    rows: Sequence[Row], start: int, upto: int, read: Sequence[str] = ()
) -> tuple[Tensor, list[int], dict[str, Tensor]]:
    """Run blocks up to `upto` (exclusive): the rows' streams, in which order they lie, and what was read."""
    entries = [entry for _, entry in rows]
    order = sorted(range(len(rows)), key=lambda i: entries[i].layer)
    by_layer = _edits_by_layer(entries, order)
    first = rows[0][0]
    runs = list(dict.fromkeys(of for of, _ in rows))
    which = torch.tensor([runs.index(rows[i][0]) for i in order]) if len(runs) > 1 else None
    model = first.model
    hidden = first.inputs[-1].new_empty((0, first.length - start, model.d_model))
    values: dict[str, Tensor] = {}
    joined = 0
    lowest = entries[order[0]].layer
    first.call(lowest % model.n_layers, start)  # asks the model, which no edit may see

    def block(layer: int) -> Tensor:
        called = first.call(layer, start, None if which is None else (runs, which[:joined]))
        args, kwargs = replace_first(*_for_rows(called, len(hidden)), hidden)
        return output_tensor(model.block(layer)(*args, **kwargs), f"blocks.{layer}.hook_resid_post")

    for layer in range(lowest, upto + 1):
        new = [entries[i].stream for i in order[joined:] if entries[i].layer == layer]
        if new:
            hidden = torch.cat([hidden, torch.stack(new).to(hidden)]) if joined else torch.stack(new)
            joined += len(new)
        if layer == upto:
            break
        edits = {site: _combined(parts) for site, parts in by_layer.get(layer, {}).items()}
        wanted = [site for site in read if block_of(site) == layer]
        if edits or wanted:
            with model.hooks(read=wanted, edit=edits) as session:
                hidden = block(layer)
            values |= {site: session[site] for site in wanted}
        else:
            hidden = block(layer)
    return hidden, order, values


def _for_rows(call: Call, n: int) -> Call:
    """The call of a block with what has an axis of rows times heads (BLOOM's slopes) for n rows."""
    args, kwargs = call
    slopes = kwargs.get("alibi")
    if isinstance(slopes, Tensor) and slopes.ndim == 3:
        kwargs = {**kwargs, "alibi": slopes.repeat(n, 1, 1)}
    return args, kwargs


def block_of(site: str) -> int:
    """The number in `blocks.7.hook_resid_pre`."""
    return int(site.split(".")[1])


def _alike(rows: Sequence[Row], start: int) -> list[list[int]]:
    """Numbers of the rows, those together whose runs call their blocks alike."""
    groups: list[tuple[Recording, list[int]]] = []
    of_run: dict[Recording, list[int]] = {}
    for i, (of, _) in enumerate(rows):
        if of not in of_run:
            found = next((some for one, some in groups if one.called_like(of, start)), None)
            if found is None:
                groups.append((of, found := []))
            of_run[of] = found
        of_run[of].append(i)
    return [some for _, some in groups]


def _edits_by_layer(
    entries: Sequence[Entry], order: Sequence[int]
) -> dict[int, dict[str, list[tuple[int, EditFunction]]]]:
    """Block -> site -> rows (as they lie in the wave) and their edits."""
    found: dict[int, dict[str, list[tuple[int, EditFunction]]]] = {}
    for row, i in enumerate(order):
        for site, edit in entries[i].edits.items():
            if (layer := block_of(site)) < entries[i].layer:
                raise HookError(
                    f"A row that begins at block {entries[i].layer} has an edit at {site!r}, which it never reaches: "
                    f"begin it at block {layer} or below."
                )
            found.setdefault(layer, {}).setdefault(site, []).append((row, edit))
    return found


def _combined(parts: list[tuple[int, EditFunction]]) -> EditFunction:
    """One edit for all rows of a site."""

    def edit(activation: Tensor) -> Tensor:
        for row, one in parts:
            activation[row] = one(activation[row])
        return activation

    return edit
