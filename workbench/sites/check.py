"""Do the additive sites mean on this very model what their names say? Run it once and see.

TransformerLens says where attention and MLP outputs are; whether they are *added to the residual stream
unchanged* (some models scale them, norm the sum, or add parallel branches) is checked by adding up:

    hook_embed + hook_pos_embed = blocks.0.hook_resid_pre
    resid_pre + attn_out + mlp_out = resid_post          in every block

A sum that does not hold takes the sites away, with the reason, rather than leave a name that lies. So does an
attention that never shows its pattern (Bloom, Falcon, GPT-J: it does not go through transformers' attention interface).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import HookError, SiteError

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.model.tokens import TokenBatch

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def check_bookkeeping(model: LanguageModel) -> None:
    """Run up to four tokens through the model and drop the sites that are not what their names say."""
    from workbench.model.tokens import from_ids

    catalog = model.catalog
    wanted = [n for n in ("hook_embed", "hook_pos_embed") if n in catalog.names]
    wanted += [
        name
        for name in catalog.names
        if name.endswith(("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"))
    ]
    tokens = (5, 17, 3, 11)[: model.context_length or 4]
    batch = from_ids(model, [[i % model.vocab_size for i in tokens]])
    with torch.inference_mode(), model.hooks(read=wanted, stop=True) as seen:
        model.forward(batch)
    _check_patterns(model, batch)
    if "hook_embed" in wanted:
        start = seen["hook_embed"]
        if "hook_pos_embed" in wanted:
            start = start + seen["hook_pos_embed"].to(start.device)
        if not _close(start, seen["blocks.0.hook_resid_pre"], model.dtype):
            catalog.drop(
                ["hook_embed", "hook_pos_embed"],
                "the embedding is changed before the first block; read 'blocks.0.hook_resid_pre' instead",
            )
    for layer in range(model.n_layers):
        parts = [f"blocks.{layer}.{p}" for p in ("hook_attn_out", "hook_mlp_out")]
        if not all(p in wanted for p in parts):
            continue
        before, after = seen[f"blocks.{layer}.hook_resid_pre"], seen[f"blocks.{layer}.hook_resid_post"]
        total = before + sum(seen[p].to(before.device) for p in parts)
        if not _close(total, after.to(total.device), model.dtype):
            catalog.drop(
                ["hook_attn_out", "hook_mlp_out", "hook_resid_mid"],
                f"in block {layer} resid_pre + attn_out + mlp_out is not resid_post, so the outputs of its "
                "attention and MLP are not what is added to the stream (post-norm, scaling or extra branches)",
            )
            return


def _check_patterns(model: LanguageModel, batch: TokenBatch) -> None:
    patterns = [name for name in model.catalog.names if name.endswith("attn.hook_pattern")]
    if not patterns:
        return
    try:
        with torch.inference_mode(), model.hooks(read=patterns):
            model.forward(batch)
    except (HookError, SiteError):
        model.catalog.drop(
            ["attn.hook_pattern"],
            "its attention does not go through transformers' attention interface, so its pattern cannot be read",
        )


def _close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    scale = b.abs().max().clamp(min=1e-6)
    return bool(((a - b).abs().max() / scale) < TOLERANCE.get(dtype, 5e-2))
