"""The steering edit: h[t] + strength * v at the positions a rule names.

`strength` is the L2 norm of what is added, in the units of the activation (v is a unit vector); each row of
the batch may have its own. Positions are absolute in the unpadded text, so a rule means the same with and
without KV cache and with padding on either side:

    all        every token          prompt     the tokens of the prompt
    generated  tokens after it      last       the prompt's last token
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from workbench.directions import Direction
from workbench.errors import DataError
from workbench.hooks.context import HookContext

Where = Literal["all", "prompt", "generated", "last"]
RULES = ("all", "prompt", "generated", "last")


def add_direction(
    direction: Direction | Sequence[Direction],
    strength: float | Sequence[float],
    *,
    where: Where = "all",
    prompt_lengths: Sequence[int] | None = None,
) -> Callable[[Tensor, HookContext], Tensor]:
    """An edit function for `model.edit` that adds directions.

    Args:
        direction: one for all rows, or one per row of the batch.
        strength: one for all rows, or one per row; norm of what is added.
        where: the position rule.
        prompt_lengths: tokens of each row's prompt, needed by every rule but `all`.

    Raises:
        DataError: a strength that is not finite, or an unknown rule.
    """
    if where not in RULES:
        raise DataError(f"Position rule {where!r} is not known: give one of {', '.join(RULES)}.")
    strengths = torch.as_tensor(strength, dtype=torch.float32).reshape(-1)
    if not bool(torch.isfinite(strengths).all()):
        raise DataError(f"Steering strength {strength!r} is not finite: give a number such as 8.0.")
    if where != "all" and prompt_lengths is None:
        raise DataError(f"Position rule {where!r} needs to know how long each prompt is.")
    directions = [direction] if isinstance(direction, Direction) else list(direction)
    vectors = torch.stack([d.vector for d in directions])
    added = vectors * strengths[:, None]  # [row or 1, d]
    lengths = torch.tensor(prompt_lengths) if prompt_lengths is not None else None

    def edit(activation: Tensor, context: HookContext) -> Tensor:
        addition = added.to(activation).reshape(added.shape[0], 1, *activation.shape[2:])
        if where == "all" and bool(context.real.all()):
            return activation + addition
        chosen = _chosen(where, context, lengths).to(activation.device)
        chosen = chosen.reshape(*chosen.shape, *[1] * (activation.ndim - 2))
        return torch.where(chosen, activation + addition, activation)

    return edit


def _chosen(where: Where, context: HookContext, lengths: Tensor | None) -> Tensor:
    """[batch, position] True where the rule applies; padding never."""
    at, real = context.positions, context.real
    if where == "all":
        return real
    assert lengths is not None
    ends = lengths.to(at.device)[:, None]
    if where == "prompt":
        return real & (at < ends)
    if where == "generated":
        return real & (at >= ends)
    return real & (at == ends - 1)
