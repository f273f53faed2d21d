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

from workbench.hooks.session import EditFunction
from workbench.hooks.tensors import output_tensor, replace_first
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import TokenBatch
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
    """Sites of that block -> edit of this row's activation, [position, ...]."""


class Replay(Recording):
    """One recorded run of one prompt, from whose blocks patched rows can be replayed.

    Example:
        >>> replay = Replay(model, model.batch("The capital of France is"))
        >>> stream = replay.inputs[7][2:].clone()
        >>> stream[0] = 0
        >>> replay.logits_of([Entry(7, stream)], start=2).shape
        torch.Size([1, 49152])
    """

    def __init__(self, model: LanguageModel, batch: TokenBatch) -> None:
        super().__init__(model, batch)

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
        order = sorted(range(len(entries)), key=lambda i: entries[i].layer)
        hidden: Tensor | None = None
        first = entries[order[0]].layer
        for layer in range(first, self.model.n_layers + 1):
            new = [entries[i] for i in order if entries[i].layer == layer]
            if new:
                joining = torch.stack([entry.stream for entry in new])
                before = 0 if hidden is None else len(hidden)
                hidden = joining if hidden is None else torch.cat([hidden, joining.to(hidden)])
            if layer == self.model.n_layers or hidden is None:
                break
            edits = _together(new, before) if new else {}
            if edits:
                with self.model.edit(edits):
                    hidden = self._block(layer, hidden, start)
            else:
                hidden = self._block(layer, hidden, start)
        assert hidden is not None
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        hidden = hidden[:, -keep:][back.to(hidden.device)]
        if (missing := keep - hidden.shape[1]) > 0:
            before = self.inputs[-1][start - missing : start].to(hidden)
            hidden = torch.cat([before.expand(len(hidden), -1, -1), hidden], dim=1)
        return hidden

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


def _together(new: Sequence[Entry], before: int) -> dict[str, EditFunction]:
    """One edit a site for all rows that join, which are behind `before` others."""
    by_site: dict[str, list[tuple[int, EditFunction]]] = {}
    for row, entry in enumerate(new, start=before):
        for site, edit in entry.edits.items():
            by_site.setdefault(site, []).append((row, edit))

    def combined(parts: list[tuple[int, EditFunction]]) -> EditFunction:
        def edit(activation: Tensor) -> Tensor:
            for row, one in parts:
                activation[row] = one(activation[row])
            return activation

        return edit

    return {site: combined(parts) for site, parts in by_site.items()}
