"""What the tests of input attribution share: prompts, a metric of rows, slopes by finite differences."""

from __future__ import annotations

import numpy as np
import torch
from conftest import tiny_model

import workbench as wb

CLEAN = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
CORRUPT = [50, 51, 60, 53, 54, 55, 61, 57, 58, 59]
OTHER = [70, 51, 72, 53, 74, 55, 76, 57, 78, 59]
SHORT = [80, 81, 82, 83]


METRIC = wb.LogitDifference(7, 9)
FEW = {"steps": 4, "n_control": 2}


def difference(logits):
    """The same metric in the logits' own precision."""
    return logits[:, 7] - logits[:, 9]


def of_tokens(model, ids):
    return float(difference(model.logits([ids])[:, -1])[0])


def close(ours, expected, rtol=2e-3):
    """Equal up to `rtol` of the largest."""
    assert np.abs(expected).max() > 1e-6, "an oracle of zeros tests nothing"
    return np.abs(np.asarray(ours) - np.asarray(expected)).max() < rtol * np.abs(expected).max()


def linear_model():
    """A GPT-2 without anything between its embeddings and its logits."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        for block in model.hf.transformer.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
    model.hf.transformer.ln_f = torch.nn.Identity()
    return model
