"""Families beside the seven, whose blocks are called or answer in a way of their own: replays equal plain hooked runs."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import transformers

from workbench import patching
from workbench.model.language_model import LanguageModel

A, B, C = [1, 10, 11, 12, 13, 14], [1, 10, 20, 12, 13, 14], [1, 30, 11, 12, 33, 14]
METRIC = patching.LogitDifference(40, 41)
COMMON = {"vocab_size": 120, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def bloom() -> LanguageModel:
    """Its slopes of attention come as [batch * head, 1, key]."""
    return made(transformers.BloomConfig(**COMMON, hidden_size=48, n_layer=3, n_head=4))


def llama4() -> LanguageModel:
    """Its module of experts gives [batch * position, d]."""
    return made(
        transformers.Llama4TextConfig(
            **COMMON, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
            intermediate_size=80, max_position_embeddings=64,
        )
    )  # fmt: skip


def made(config) -> LanguageModel:
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in hf.parameters():
            p.copy_(p + 0.1 * torch.randn_like(p) if p.ndim == 1 else 4 * p)
    return LanguageModel(hf.eval(), tiny.tokenizer(), name=config.model_type)


def score(model, ids) -> float:
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids])).logits[0, -1]
    return float(logits[40] - logits[41])


def hooked(model, module, ids, change) -> float:
    """The score with a module's hidden states [position, d] changed."""

    def hook(_module, _args, out):
        whole = (out if isinstance(out, torch.Tensor) else out[0]).clone()
        rows = whole.reshape(-1, whole.shape[-1])
        rows.copy_(change(rows.clone()))
        return whole if isinstance(out, torch.Tensor) else (whole, *out[1:])

    handle = module.register_forward_hook(hook)
    try:
        return score(model, ids)
    finally:
        handle.remove()


def outputs(model, module, ids) -> torch.Tensor:
    """[position, d] of a module in a plain run."""
    kept = []
    hooked(model, module, ids, lambda rows: kept.append(rows) or rows)
    return kept[0]


@pytest.mark.parametrize(
    ("family", "kind"), [(bloom, "resid_post"), (llama4, "resid_post"), (llama4, "mlp_out")]
)
def test_a_sweep_equals_plain_hooks(family, kind):
    model = family()
    data = patching.sweep(model, A, B, METRIC, kind=kind, control=False, skip_unchanged=False).data
    for layer in range(model.n_layers):
        site = model.catalog[f"blocks.{layer}.hook_{kind}"]
        module = model.module(site.module)
        clean = outputs(model, module, A)
        for position in range(len(A)):

            def put(rows, position=position, clean=clean):
                rows[position] = clean[position]
                return rows

            expected = hooked(model, module, B, put)
            assert float(data["metric"][0, layer, position]) == pytest.approx(expected, abs=1e-4)


def test_positions_of_several_prompts_are_ablated_where_experts_give_flat_rows():
    model = llama4()
    with model.hooks(read=["blocks.1.hook_mlp_out"]) as seen:
        model.forward(model.batch([A, C]))
    assert seen["blocks.1.hook_mlp_out"].shape == (2, 6, 48)
    data = patching.ablate(
        model, [A, C], "blocks.*.hook_mlp_out", METRIC, how="zero", positions=[2, 3], control=False
    ).data
    for i, ids in enumerate((A, C)):
        for layer in range(model.n_layers):
            module = model.module(model.catalog[f"blocks.{layer}.hook_mlp_out"].module)

            def zero(rows):
                rows[[2, 3]] = 0
                return rows

            expected = hooked(model, module, ids, zero)
            assert np.ravel(data["metric"][i].values)[layer] == pytest.approx(expected, abs=1e-4)


def test_other_analyses_run_several_rows_of_bloom():
    model = bloom()
    two = patching.sweep(model, [A, C], [B, A], METRIC, kind="z", control=False, skip_unchanged=False).data
    one = patching.sweep(model, C, A, METRIC, kind="z", control=False, skip_unchanged=False).data
    assert np.allclose(two["metric"][1], one["metric"][0], atol=1e-4) and np.ptp(one["metric"].values) > 0.01
    told = patching.ablate(model, [A, C], "blocks.*.attn.hook_z", METRIC, how="zero", control=False).data
    alone = patching.ablate(model, [C], "blocks.*.attn.hook_z", METRIC, how="zero", control=False).data
    assert np.allclose(told["metric"][1], alone["metric"][0], atol=1e-4)
