"""Where in the text a hook is firing.

Positions are those of the unpadded prompt and go on counting through generation, so a rule that names
positions means the same with and without a KV cache, and with padding on either side.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.errors import HookError
from workbench.sites.catalog import Site


class PositionTracker:
    """Sees each call of the model and works out the absolute position of every token in it."""

    def __init__(self) -> None:
        self.shape: tuple[int, int] | None = None
        self.positions: Tensor | None = None
        self.real: Tensor | None = None
        self.call = -1

    def before_forward(self, module: Any, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of the whole model."""
        if args:  # a mask may come without its name
            bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            kwargs = {**bound.pop("kwargs", {}), **bound}
        tokens = kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs.get("inputs_embeds", args[0] if args else None)
        if not isinstance(tokens, Tensor):
            return
        self.call += 1
        batch, length = tokens.shape[0], tokens.shape[1]
        self.shape = (batch, length)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.positions = (mask.long().cumsum(-1) - 1)[:, -length:]
            self.real = mask[:, -length:].bool()
        else:
            cache = kwargs.get("past_key_values")
            past = int(cache.get_seq_length()) if cache is not None else 0
            counted = torch.arange(past, past + length, device=tokens.device)
            self.positions = counted.expand(batch, length)
            self.real = torch.ones_like(self.positions, dtype=torch.bool)


@dataclass(frozen=True)
class HookContext:
    """What an edit function may know besides the activation.

    Attributes:
        site: where it fires.
        positions: [batch, position] absolute token index in the unpadded text (-1 or less for left padding).
        real: [batch, position] False at padding.
        call: how many times the model had been called before, in this session (0 is the prompt).
    """

    site: Site
    _tracker: PositionTracker

    @property
    def positions(self) -> Tensor:
        return self._known(self._tracker.positions)

    @property
    def real(self) -> Tensor:
        return self._known(self._tracker.real)

    @property
    def call(self) -> int:
        return self._tracker.call

    def _known(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise HookError(
                "Positions are known only inside a call of the whole model, not of a block alone."
            )
        return value
