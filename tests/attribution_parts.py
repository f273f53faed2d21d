"""What the tests of attribution share: prompts, slopes by finite differences, names of parts."""

from __future__ import annotations

import numpy as np
from conftest import tiny_model

import workbench as wb

CLEAN = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
CORRUPT = [50, 51, 60, 53, 54, 55, 61, 57, 58, 59]
LENGTH = len(CLEAN)
METRIC = wb.LogitDifference(7, 9)


def difference(logits):
    """The same metric in the logits' own precision."""
    return logits[:, 7] - logits[:, 9]


def in_double(family, **overrides):
    return doubled(tiny_model(family, **overrides))


def doubled(model):
    if model.hf.config.model_type == "mixtral":  # grouped matrix products know no double precision
        model.hf.set_experts_implementation("eager")
    model.hf.double()
    return model


def small(model):
    """A step for central differences: above the noise of norms that work in single precision, below a ReLU's kinks."""
    return 1e-6 if model.hf.config.model_type == "opt" else 1e-2


def close(ours, expected, rtol=1e-3):
    """Equal up to `rtol` of the largest."""
    assert np.abs(expected).max() > 1e-6, "an oracle of zeros tests nothing"
    return np.abs(np.asarray(ours) - np.asarray(expected)).max() < rtol * np.abs(expected).max()


def read(model, ids, site):
    with model.hooks(read=[site]) as session:
        model.logits(ids)
    return session[site][0].clone()


def estimated_change(data, suffix=""):
    return data[f"metric{suffix}"].values[0] - float(data["corrupt_metric"][0])


MORE_CLEAN = [CLEAN, [*CLEAN[:2], 70, *CLEAN[3:]], [*CLEAN[:2], 71, *CLEAN[3:]]]
MORE_CORRUPT = [CORRUPT, [*CLEAN[:2], 72, *CLEAN[3:]], [*CLEAN[:2], 73, *CLEAN[3:]]]


PARTS = {
    # block list, norm before attention, output projection, norm before the MLP, MLP, norm behind the attention
    "llama": ("model.layers", "input_layernorm", "self_attn.o_proj", "post_attention_layernorm", "mlp", None),
    "gpt2": ("transformer.h", "ln_1", "attn.c_proj", "ln_2", "mlp", None),
    "neox": ("gpt_neox.layers", "input_layernorm", "attention.dense", "post_attention_layernorm", "mlp", None),
    "gemma2": (
        "model.layers", "input_layernorm", "self_attn.o_proj", "pre_feedforward_layernorm",
        "post_feedforward_layernorm", "post_attention_layernorm",
    ),
    "opt": ("model.decoder.layers", "self_attn_layer_norm", "self_attn.out_proj", "final_layer_norm", "fc2", None),
}  # fmt: skip
PARTS |= {"qwen3": PARTS["llama"], "mixtral": PARTS["llama"]}
FINAL = {
    "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm", "opt": "model.decoder.final_layer_norm",
}  # fmt: skip


def is_edge(sender, receiver, parallel):
    """Written out once more: what comes before what."""
    if sender == "input" or receiver == "logits":
        return True
    s, r = int(sender[1:].split(".")[0]), int(receiver[1:])
    within = sender[0] == "a" and receiver[0] == "m" and not parallel
    return s < r or (s == r and within)
