"""Sparse autoencoders in sae-lens' folder format."""

from __future__ import annotations

import json

import pytest
import torch

import saes
from workbench.errors import DataError, ModelError


@pytest.fixture
def folder(tmp_path):
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=48, d_sae=96))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    sae.save_model(tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.1.attn.hook_z"
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config))
    return tmp_path / "sae", sae


def test_encode_and_decode_are_the_written_out_formulas(folder):
    path, raw = folder
    sae = saes.load(path)
    x = torch.randn(7, 48)
    features = torch.relu((x - raw.b_dec) @ raw.W_enc + raw.b_enc)
    assert torch.allclose(sae.encode(x), features, atol=1e-5)
    assert torch.allclose(sae.decode(features), features @ raw.W_dec + raw.b_dec, atol=1e-5)


def test_heads_are_flattened_and_restored(folder):
    sae = saes.load(folder[0])
    x = torch.randn(7, 4, 12)
    assert torch.allclose(sae.reconstruct(x), sae.reconstruct(x.flatten(1)).reshape(7, 4, 12))


def test_a_feature_is_a_direction_at_the_site_of_the_autoencoder(folder):
    path, raw = folder
    direction = saes.load(path).direction(5)
    assert direction.site == "blocks.1.attn.hook_z"
    assert torch.allclose(direction.vector * direction.scale, raw.W_dec[5], atol=1e-6)


def test_explained_variance_is_one_for_a_perfect_and_zero_for_a_mean_reconstruction(folder):
    sae = saes.load(folder[0])
    x = torch.randn(50, 48)
    perfect = saes.SparseAutoencoder("", 48, 48, torch.eye(48), "", {}, lambda v: v, lambda f: f)
    mean = saes.SparseAutoencoder(
        "", 48, 48, torch.eye(48), "", {}, lambda v: v, lambda f: f.mean(0).expand_as(f)
    )
    assert perfect.explained_variance(x) == pytest.approx(1)
    assert mean.explained_variance(x) == pytest.approx(0, abs=1e-5)
    assert sae.explained_variance(x) < 1


def test_bad_input_is_a_clear_error(folder, tmp_path):
    sae = saes.load(folder[0])
    with pytest.raises(DataError, match="width 50"):
        sae.encode(torch.randn(3, 50))
    with pytest.raises(DataError, match="Feature 96"):
        sae.direction(96)
    with pytest.raises(ModelError, match="is no folder"):
        saes.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cfg.json"):
        saes.load(tmp_path / "empty")
