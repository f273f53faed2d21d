"""Runs in which one attention head is silent: its output z is zero at all positions, everything after it follows.

That is what zeroing the head's columns of the output projection does (its bias, if any, stays).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.errors import DataError
from workbench.hooks.session import EditFunction
from workbench.model.language_model import LanguageModel
from workbench.patching.replay import Entry, Replay

Head = tuple[int, int]
"""Block and head."""


def log_probability(logits: Tensor, target: int) -> Tensor:
    """[...] natural logarithm of a token's probability, from [..., d_vocab] logits; float64 on the CPU."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1)[..., target].double().cpu()


def log_p_without_heads(replay: Replay, heads: Sequence[Head], target: int, tokens_per_call: int) -> Tensor:
    """[head] log-probability of a token, each head silent alone; float64 on the CPU."""
    entries = [_silent(replay, head) for head in heads]
    out = torch.empty(len(heads), dtype=torch.float64)
    for part, logits in replay.logits_in_parts(entries, tokens_per_call=tokens_per_call):
        out[part] = log_probability(logits, target)
    return out


def last_token_without_heads(
    replay: Replay, heads: Sequence[Head], sites: Sequence[str], tokens_per_call: int
) -> list[dict[str, Tensor]]:
    """For each head, site -> [...] at the last token with that head silent; sites of its block and later ones."""
    entries = [_silent(replay, head) for head in heads]
    found: list[dict[str, Tensor]] = [{} for _ in heads]
    for chunk in replay.chunks(entries, tokens_per_call):
        read = replay.read([entries[i] for i in chunk], sites)
        for site, rows in read.items():
            for row, value in rows.items():
                found[chunk[row]][site] = value[-1]
    return found


def check_head(model: LanguageModel, head: Head) -> Head:
    """A block (negative ones count from the last) and a head of it. Raises `DataError`."""
    layer, number = (int(i) for i in head)
    if not (-model.n_layers <= layer < model.n_layers and 0 <= number < model.n_heads):
        raise DataError(
            f"Head {layer}.{number} does not exist: {model.name} has blocks 0–{model.n_layers - 1} with heads "
            f"0–{model.n_heads - 1}. Give (block, head)."
        )
    return layer % model.n_layers, number


def _silent(replay: Replay, head: Head) -> Entry:
    layer, number = head
    return Entry(layer, replay.inputs[layer], {f"blocks.{layer}.attn.hook_z": _zero(number)})


def _zero(head: int) -> EditFunction:
    def edit(z: Tensor) -> Tensor:
        z[:, head] = 0
        return z

    return edit
