"""Attention patterns, the one site that fused attention kernels never show.

For the time of one session the model's attention function is replaced by one that also works out the
pattern the eager way (through the architecture's own `eager_attention_forward`, so soft caps and sliding
windows are its own). If the pattern is only read, the output still comes from the model's own kernel and
the logits are bit-equal to a run without reading. If the pattern is edited, the block's output is the
edited pattern times the values. Afterwards everything is as it was.

transformers looks attention functions up by name in `config._attn_implementation`; we register one name per
original implementation, with that implementation's own mask function, so the model builds the same masks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.errors import SiteError
from workbench.hooks.tensors import checked_edit

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel

_TAP = "_workbench_pattern_taps"
_PREFIX = "workbench_over_"


class PatternTap:
    """Switches the pattern-showing attention on while at least one tap is there."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._restore: list[tuple[Any, str]] = []
        self._count = 0

    def add(self, module: nn.Module, callback: Callable[[Tensor], Tensor | None]) -> _Handle:
        """Call `callback` with the pattern of `module`, [batch, head, query, key]; it may return a new one."""
        if not self._restore:
            self._switch_on()
        taps = module.__dict__.setdefault(_TAP, [])
        taps.append(callback)
        self._count += 1
        return _Handle(self, module, callback)

    def remove(self, module: nn.Module, callback: Callable[[Tensor], Tensor | None]) -> None:
        """Take one tap away; the last one restores the model's own attention function."""
        taps = module.__dict__.get(_TAP, [])
        if callback in taps:
            taps.remove(callback)
        if not taps:
            module.__dict__.pop(_TAP, None)
        self._count -= 1
        if self._count == 0:
            for config, original in self._restore:
                config._attn_implementation_internal = original
            self._restore.clear()

    def _switch_on(self) -> None:
        configs: dict[int, Any] = {
            id(m.config): m.config for m in self._model.hf.modules() if hasattr(m, "config")
        }
        for config in configs.values():
            original = getattr(config, "_attn_implementation_internal", None)
            if not isinstance(original, str) or original.startswith(
                _PREFIX
            ):  # on already, by a session around this
                continue
            _register(original)
            self._restore.append((config, original))
            config._attn_implementation_internal = _PREFIX + original


class _Handle:
    def __init__(self, owner: PatternTap, module: nn.Module, callback: Callable[..., Any]) -> None:
        self._owner, self._module, self._callback = owner, module, callback

    def remove(self) -> None:
        self._owner.remove(self._module, self._callback)


def _register(original: str) -> None:
    """Make transformers know `workbench_over_<original>`: same masks, our attention function."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = _PREFIX + original
    if name in ALL_ATTENTION_FUNCTIONS:
        return
    if original in ALL_MASK_ATTENTION_FUNCTIONS:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ):
        eager = _eager_of(module)
        own = eager if original == "eager" else ALL_ATTENTION_FUNCTIONS[original]
        taps = module.__dict__.get(_TAP)
        if not taps:
            return own(module, query, key, value, mask, **kwargs)
        additive = _additive_mask(mask, query, key, kwargs.get("sliding_window"))
        _, pattern = eager(module, query, key, value, additive, **kwargs)
        edited = False
        for callback in list(taps):
            new = callback(pattern)
            if new is not None:
                pattern, edited = checked_edit(new, pattern, "attn.hook_pattern"), True
        if not edited:
            return own(module, query, key, value, mask, **kwargs)
        groups = query.shape[1] // value.shape[1]
        values = value.repeat_interleave(groups, dim=1)
        return (pattern @ values).transpose(1, 2).contiguous(), pattern

    ALL_ATTENTION_FUNCTIONS.register(name, attention)


def _eager_of(module: nn.Module) -> Callable[..., Any]:
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise SiteError(
            f"attn.hook_pattern cannot be read on {type(module).__name__}: its attention does not go through "
            "transformers' attention interface."
        )
    return eager


def _additive_mask(mask: Tensor | None, query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """The mask as eager attention wants it: 0 where a query may look, the lowest number elsewhere."""
    n_query, n_key = query.shape[2], key.shape[2]
    lowest = torch.finfo(query.dtype).min
    if mask is not None and mask.ndim == 4:
        if mask.dtype != torch.bool:
            return mask[..., :n_key]
        allowed = mask[..., :n_key]
    else:
        at_query = torch.arange(n_key - n_query, n_key, device=query.device)[:, None]
        at_key = torch.arange(n_key, device=query.device)[None, :]
        allowed = at_key <= at_query
        if window is not None:
            allowed = allowed & (at_query - at_key < window)
        allowed = allowed[None, None]
        if mask is not None and mask.ndim == 2:
            allowed = allowed & mask[:, None, None, :n_key].bool()
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(allowed, zero, torch.full_like(zero, lowest))
