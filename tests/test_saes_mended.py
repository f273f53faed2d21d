"""Sparse autoencoders: one row stays a row, scales belong to their activations, what is no autoencoder is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import saes
from workbench.errors import DataError, ModelError

D_IN, D_SAE = 48, 96


def raw(folder: Path, **settings):
    """A random autoencoder of sae-lens in `folder`, and itself."""
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, **settings))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    sae.save_model(folder)
    return sae


def settings_of(folder: Path) -> dict:
    return json.loads((folder / "cfg.json").read_text())


@pytest.fixture
def plain(tmp_path):
    sae = raw(tmp_path / "sae")
    return saes.load(tmp_path / "sae"), sae


def test_one_row_stays_one_row(plain):
    sae, _ = plain
    x = torch.randn(1, D_IN)
    assert sae.encode(x).shape == (1, D_SAE)
    assert torch.equal(sae.encode(x)[0], sae.encode(x[0]))
    assert sae.encode(torch.randn(5, 1, D_IN)).shape == (5, 1, D_SAE)
    assert sae.encode(torch.randn(5, 4, 12)).shape == (5, D_SAE)  # heads still are flattened


def test_explained_variance_takes_the_mean_of_all_rows(plain):
    sae, original = plain
    x = torch.randn(6, 5, D_IN)
    x[:, 0] += 20  # the first position is unlike the others, as it is in language models
    rows = x.reshape(-1, D_IN)
    residual = (rows - original(rows).detach()).square().sum()
    expected = 1 - residual / (rows - rows.mean(0)).square().sum()
    assert sae.explained_variance(x) == pytest.approx(float(expected), rel=1e-4)
    assert sae.explained_variance(x[:1]) == pytest.approx(sae.explained_variance(x[0]), rel=1e-5)
    assert sae.explained_variance(x.reshape(6, 5, 4, 12)) == pytest.approx(float(expected), rel=1e-4)


def test_without_variance_there_is_none_to_explain(plain):
    for rows in (torch.randn(1, D_IN), torch.ones(3, D_IN), torch.zeros(0, D_IN)):
        with pytest.raises(DataError, match="no variance to explain"):
            plain[0].explained_variance(rows)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_an_autoencoder_that_normalises_gives_every_row_its_own_scale_back(how, tmp_path):
    original = raw(tmp_path / "sae", normalize_activations=how)
    sae = saes.load(tmp_path / "sae")
    x, larger = torch.randn(3, D_IN), torch.randn(3, D_IN) * 50
    expected = original(x).detach()
    features = sae.encode(x)
    sae.encode(larger)  # must not change what the features of x mean
    for _ in range(2):
        assert torch.allclose(sae.decode(features, like=x), expected, atol=1e-5)
    assert torch.allclose(sae.reconstruct(x), expected, atol=1e-5)
    with pytest.raises(DataError, match="like=activations"):
        sae.decode(features)
    with pytest.raises(DataError, match=r"`like` has rows \[1\], the features \[3\]"):
        sae.decode(features, like=x[:1])


def test_an_autoencoder_that_flattens_heads_itself_can_be_used(tmp_path):
    original = raw(tmp_path / "sae", reshape_activations="hook_z")
    sae = saes.load(tmp_path / "sae")
    x = torch.randn(7, 4, 12)
    expected = original(x).detach()
    assert expected.shape == x.shape
    assert torch.allclose(sae.reconstruct(x), expected, atol=1e-5)
    assert torch.allclose(sae.encode(x), sae.encode(x.flatten(1)))
    assert sae.decode(sae.encode(x)).shape == (7, D_IN)


@pytest.mark.parametrize("d_out", [D_IN, 32])
def test_a_transcoder_is_no_autoencoder(d_out, tmp_path):
    from sae_lens import Transcoder, TranscoderConfig

    config = TranscoderConfig(d_in=D_IN, d_sae=D_SAE, d_out=d_out, apply_b_dec_to_input=False)
    Transcoder(config).save_model(tmp_path / "t")
    with pytest.raises(ModelError, match="holds a transcoder, not an autoencoder"):
        saes.load(tmp_path / "t")


def test_damaged_folders_and_unknown_devices_are_model_errors(tmp_path):
    folder = tmp_path / "sae"
    raw(folder)
    weights, settings = folder / "sae_weights.safetensors", settings_of(folder)
    with pytest.raises(ModelError, match="cannot be loaded"):
        saes.load(folder, device="gpu")
    whole = weights.read_bytes()
    for damaged in (whole[:-500], b"x" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match="cannot be loaded"):
            saes.load(folder)
    weights.write_bytes(whole)
    for changed, said in (([], "cannot be loaded"), ({}, "its settings lack 'dtype'")):
        (folder / "cfg.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=said):
            saes.load(folder)
    del settings["d_in"]
    (folder / "cfg.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="d_in"):
        saes.load(folder)
