"""Replay: run again only what a patch can change.

A patch in block l at position p changes nothing below l and nothing before p. So rows begin at their block, with the
base run's stream from p on, and attend to the base run's keys and values before p (`recording`). All rows that begin
at one position go up through the blocks together, as a wave that grows: at block l those patched there join it
(`wave`). Only the last position is unembedded.

Counted in tokens times blocks, a layer × position grid of n blocks and P positions costs (n + 1)/2n · (P + 1)/2P of as
many whole passes: 0.28 for 30 blocks and 14 positions.

The blocks, their kernels and their dtype are the model's own, so a replay without a patch gives the base run's logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.patching import wave
from workbench.patching.recording import Recording
from workbench.patching.wave import TOKENS_PER_CALL, Entry

__all__ = ["TOKENS_PER_CALL", "Entry", "Replay"]


class Replay(Recording):
    """One recorded run of one prompt, from whose blocks patched rows can be replayed.

    Example:
        >>> replay = Replay(model, model.batch("The capital of France is"))
        >>> stream = replay.inputs[7][2:].clone()
        >>> stream[0] = 0
        >>> replay.logits_of([Entry(7, stream)], start=2).shape
        torch.Size([1, 49152])
    """

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
        return wave.run([(self, entry) for entry in entries], start, keep)

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
        upto = 1 + max(wave.block_of(site) for site in sites)
        _, order, values = wave.climb([(self, entry) for entry in entries], start, upto, sites)
        return {
            site: dict(zip(order, values[site], strict=False)) if site in values else {} for site in sites
        }

    def logits_of(
        self, entries: Sequence[Entry], start: int = 0, keep: int = 1
    ) -> Float[Tensor, "row ... d_vocab"]:
        """Logits at the last position, one row for each entry; at the last `keep` where that is more than one."""
        hidden = self.run(entries, start, keep)
        return self.model.readout(hidden[:, 0] if keep == 1 else hidden)

    def logits_in_parts(
        self,
        entries: Sequence[Entry],
        start: int = 0,
        keep: int = 1,
        tokens_per_call: int = TOKENS_PER_CALL,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers of entries that went up together, and their logits; see `wave.logits_in_parts`."""
        rows: list[wave.Row] = [(self, entry) for entry in entries]
        return wave.logits_in_parts(rows, start, keep, tokens_per_call=tokens_per_call)

    def end_logits(self, keep: int = 1) -> Float[Tensor, "... d_vocab"]:
        """The base run's own: [d_vocab], or with `keep` above 1 [kept, d_vocab]."""
        return self.logits if keep == 1 else self.model.readout(self.inputs[-1][-keep:])

    def starts(self, position: int) -> int:
        """Where rows that are patched at `position` and after may begin."""
        return position if self.suffixes else 0

    def chunks(self, entries: Sequence[Entry], tokens_per_call: int = TOKENS_PER_CALL) -> Iterator[list[int]]:
        """See `wave.chunks`."""
        return wave.chunks(entries, tokens_per_call)
