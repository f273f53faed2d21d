"""Replay: run again only what a patch can change.

A patch in block l at position p changes nothing below l and nothing before p. So rows begin at their block, with the
base run's stream from p on, and attend to the base run's keys and values before p (`recording`). All rows that begin
at one position go up through the blocks together, as a wave that grows: at block l those patched there join it. Only
the last position is unembedded.

Counted in tokens times blocks, a layer × position grid of n blocks and P positions costs (n + 1)/2n · (P + 1)/2P of as
many whole passes: 0.28 for 30 blocks and 14 positions.

The blocks, their kernels and their dtype are the model's own, so a replay without a patch gives the base run's logits.
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
from workbench.patching.recording import Recording

TOKENS_PER_CALL = 4096


@dataclass(frozen=True)
class Entry:
    """One patched row."""

    layer: int
    """The first block that is run; the number of blocks for a stream that only needs to be unembedded."""
    stream: Float[Tensor, "position d_model"]
    """The residual stream it begins with, from the replay's first position on."""
    edits: Mapping[str, EditFunction] = field(default_factory=dict)
    """Sites of that block or later ones -> edit of this row's activation, [position, ...]."""


class Replay(Recording):
    """One recorded run of one prompt, from whose blocks patched rows can be replayed.

    Example:
        >>> replay = Replay(model, model.batch("The capital of France is"))
        >>> stream = replay.inputs[7][2:].clone()
        >>> stream[0] = 0
        >>> replay.logits_of([Entry(7, stream)], start=2).shape
        torch.Size([1, 49152])
    """

    @torch.inference_mode()
    def run(
        self, entries: Sequence[Entry], start: int = 0, keep: int = 1
    ) -> Float[Tensor, "row kept d_model"]:
        """The stream after the last block at the last `keep` positions, one row for each entry, in their order.

        Args:
            entries: rows; their streams begin at position `start`.
            start: the first position that is computed.
            keep: positions before `start` among them are the base run's.
        """
        if not entries:
            return self.inputs[-1].new_empty((0, keep, self.model.d_model))
        hidden, order, _ = self._wave(entries, start, self.model.n_layers, ())
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        hidden = hidden[:, -keep:][back.to(hidden.device)]
        if (missing := keep - hidden.shape[1]) > 0:
            before = self.inputs[-1][start - missing : start].to(hidden)
            hidden = torch.cat([before.expand(len(hidden), -1, -1), hidden], dim=1)
        return hidden

    @torch.inference_mode()
    def read(
        self, entries: Sequence[Entry], sites: Sequence[str], start: int = 0
    ) -> dict[str, dict[int, Tensor]]:
        """Activations of patched rows: site -> number of the entry -> [position, ...] from `start` on.

        Entries that begin above a site's block never reach it and are left out there. Blocks above the last site are
        not run.
        """
        if not entries or not sites:
            return {site: {} for site in sites}
        upto = 1 + max(_block_of(site) for site in sites)
        _, order, values = self._wave(entries, start, upto, sites)
        return {
            site: dict(zip(order, values[site], strict=False)) if site in values else {} for site in sites
        }

    def _wave(
        self, entries: Sequence[Entry], start: int, upto: int, read: Sequence[str]
    ) -> tuple[Tensor, list[int], dict[str, Tensor]]:
        """Run blocks up to `upto` (exclusive): the rows' streams, in which order they lie, and what was read."""
        order = sorted(range(len(entries)), key=lambda i: entries[i].layer)
        by_layer = _edits_by_layer(entries, order)
        hidden = self.inputs[-1].new_empty((0, self.length - start, self.model.d_model))
        values: dict[str, Tensor] = {}
        joined = 0
        self.call(
            entries[order[0]].layer % self.model.n_layers, start
        )  # asks the model, which no edit may see
        for layer in range(entries[order[0]].layer, upto + 1):
            new = [entries[i].stream for i in order[joined:] if entries[i].layer == layer]
            if new:
                hidden = torch.cat([hidden, torch.stack(new).to(hidden)]) if joined else torch.stack(new)
                joined += len(new)
            if layer == upto:
                break
            edits = {site: _combined(parts) for site, parts in by_layer.get(layer, {}).items()}
            wanted = [site for site in read if _block_of(site) == layer]
            if edits or wanted:
                with self.model.hooks(read=wanted, edit=edits) as session:
                    hidden = self._block(layer, hidden, start)
                values |= {site: session[site] for site in wanted}
            else:
                hidden = self._block(layer, hidden, start)
        return hidden, order, values

    def logits_of(
        self, entries: Sequence[Entry], start: int = 0, keep: int = 1
    ) -> Float[Tensor, "row ... d_vocab"]:
        """Logits at the last position, one row for each entry; at the last `keep` where that is more than one."""
        hidden = self.run(entries, start, keep)
        return self.model.readout(hidden[:, 0] if keep == 1 else hidden)

    def end_logits(self, keep: int = 1) -> Float[Tensor, "... d_vocab"]:
        """The base run's own: [d_vocab], or with `keep` above 1 [kept, d_vocab]."""
        return self.logits if keep == 1 else self.model.readout(self.inputs[-1][-keep:])

    def starts(self, position: int) -> int:
        """Where rows that are patched at `position` and after may begin."""
        return position if self.suffixes else 0

    def chunks(self, entries: Sequence[Entry], tokens_per_call: int = TOKENS_PER_CALL) -> Iterator[list[int]]:
        """Numbers of entries that go up together: at most `tokens_per_call` tokens at once, of like layers."""
        order = sorted(range(len(entries)), key=lambda i: entries[i].layer)
        if not order:
            return
        size = max(1, tokens_per_call // len(entries[0].stream))
        for at in range(0, len(order), size):
            yield order[at : at + size]

    def _block(self, layer: int, hidden: Tensor, start: int) -> Tensor:
        args, kwargs = replace_first(*self.call(layer, start), hidden)
        return output_tensor(self.model.block(layer)(*args, **kwargs), f"blocks.{layer}.hook_resid_post")


def _block_of(site: str) -> int:
    return int(site.split(".")[1])


def _edits_by_layer(
    entries: Sequence[Entry], order: Sequence[int]
) -> dict[int, dict[str, list[tuple[int, EditFunction]]]]:
    """Block -> site -> rows (as they lie in the wave) and their edits."""
    found: dict[int, dict[str, list[tuple[int, EditFunction]]]] = {}
    for row, i in enumerate(order):
        for site, edit in entries[i].edits.items():
            if (layer := _block_of(site)) < entries[i].layer:
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
