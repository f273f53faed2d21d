"""Replay: re-run only what a patch can change.

A patch in block l changes nothing below l. So

1. one base run records, for every block, the hidden states it was given and all its other arguments
   (masks, rotary tables, …), whatever the architecture;
2. a patched row starts from the recorded input of block l and runs blocks l … L-1 by calling them with the
   recorded arguments;
3. many patches ride in one call as rows of the batch, and only the last position is unembedded.

The blocks, their kernels and their dtype are the model's own, so a replay without a patch gives the base
run's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import ModelError
from workbench.hooks.tensors import first_tensor, output_tensor, replace_first
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import TokenBatch

TOKENS_PER_CALL = 4096


class Replay:
    """One recorded run of one prompt, from whose blocks patched rows can be replayed.

    Args:
        model: the language model.
        batch: exactly one prompt, hence no padding.

    Attributes:
        logits: [d_vocab] of the base run at the last position.
        length: number of tokens.
    """

    def __init__(self, model: LanguageModel, batch: TokenBatch) -> None:
        if len(batch) != 1:
            raise ModelError(f"A replay records one prompt, not {len(batch)}: record them one by one.")
        self.model = model
        self.length = batch.lengths[0]
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        handles = []
        try:
            for layer in range(model.n_layers):
                hook = model.block(layer).register_forward_pre_hook(self._record, with_kwargs=True)
                handles.append(hook)
            self.logits = model.forward(batch, logits_to_keep=1).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        if len(self._calls) != model.n_layers:
            raise ModelError(
                f"{model.name} called its blocks {len(self._calls)} times in one pass, expected {model.n_layers}: "
                "blocks that are skipped or repeated cannot be replayed."
            )

    def _record(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append((args, dict(kwargs)))

    def block_input(self, layer: int) -> Float[Tensor, "position d_model"]:
        """The recorded residual stream before block `layer`."""
        args, kwargs = self._calls[layer]
        return first_tensor(args, kwargs, f"blocks.{layer}.hook_resid_pre")[0]

    @torch.inference_mode()
    def run(
        self, hidden: Float[Tensor, "row position d_model"], layer: int, upto: int | None = None
    ) -> Float[Tensor, "row position d_model"]:
        """Run rows through blocks `layer` … `upto` - 1 with the recorded arguments."""
        for index in range(layer, self.model.n_layers if upto is None else upto):
            args, kwargs = replace_first(*self._calls[index], hidden)
            name = f"blocks.{index}.hook_resid_post"
            hidden = output_tensor(self.model.block(index)(*args, **kwargs), name)
        return hidden

    def last_logits(self, hidden: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Logits at the last position of each row, from the stream after the last block."""
        return self.model.readout(hidden[:, -1])

    def chunks(self, n_rows: int, tokens_per_call: int = TOKENS_PER_CALL) -> Iterator[range]:
        """Row numbers in pieces of at most `tokens_per_call` tokens (at least one row each)."""
        size = max(1, tokens_per_call // self.length)
        for start in range(0, n_rows, size):
            yield range(start, min(n_rows, start + size))
