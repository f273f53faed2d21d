"""Direction: what it checks, what it computes, what it refuses, and that it comes back from disk."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import workbench as wb
from workbench.directions import Direction
from workbench.errors import DataError, SiteError
from workbench.model.language_model import LanguageModel

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return LanguageModel(tiny.hf_model("llama"), tiny.tokenizer(), name="tiny-llama")


def direction(d: int = 48, seed: int = 0, **fields) -> Direction:
    vector = torch.randn(d, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(vector, **({"site": SITE} | fields))


def test_the_norm_of_the_vector_becomes_the_scale():
    made = Direction.from_vector(torch.tensor([3.0, 4.0]), site=SITE)
    assert made.scale == 5.0
    assert torch.equal(made.vector, torch.tensor([0.6, 0.8]))


def test_a_scale_that_is_given_is_kept():
    assert Direction.from_vector(torch.tensor([3.0, 4.0]), site=SITE, scale=2.5).scale == 2.5


def test_the_vector_is_a_copy_so_that_changing_the_original_changes_nothing():
    original = torch.tensor([0.0, 1.0])
    made = Direction(vector=original, scale=1.0, site=SITE)
    original[0] = 7.0
    assert torch.equal(made.vector, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.zeros(4), "is zero"),
        (torch.tensor([1.0, math.nan, math.inf]), "2 of 3 components.*NaN or infinite"),
        (torch.ones(2, 3), r"1-D vector.*shape \[2, 3\]"),
        (torch.ones(0), "1-D vector"),
    ],
)
def test_a_vector_that_is_no_direction_is_refused(vector, message):
    with pytest.raises(DataError, match=message):
        Direction.from_vector(vector, site=SITE)


def test_a_vector_that_is_not_of_norm_one_is_sent_to_from_vector():
    with pytest.raises(DataError, match=r"norm 1, this one has 5: use Direction.from_vector"):
        Direction(vector=torch.tensor([3.0, 4.0]), scale=1.0, site=SITE)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_must_be_a_positive_number(scale):
    with pytest.raises(DataError, match="positive number"):
        Direction.from_vector(torch.ones(3), site=SITE, scale=scale)


def test_settings_that_do_not_fit_in_json_are_refused_when_made_not_when_saved():
    with pytest.raises(DataError, match="JSON"):
        Direction.from_vector(torch.ones(3), site=SITE, settings={"a": object()})


def test_projection_is_the_dot_product_with_the_unit_vector():
    made = direction(d=5)
    acts = torch.randn(2, 3, 5)
    expected = np.einsum("bpd,d->bp", acts.numpy(), made.vector.numpy())
    assert np.allclose(made.project(acts).numpy(), expected, atol=1e-6)


def test_projecting_collected_activations_reads_the_rows_of_its_own_site(model):
    acts = wb.collect(model, ["Mary went to the store", "Tom and Anna"])
    made = direction()
    expected = acts.values[SITE].numpy() @ made.vector.numpy()
    assert np.allclose(made.project(acts).numpy(), expected, atol=1e-5)
    with pytest.raises(SiteError):
        direction(site="blocks.1.hook_resid_pre").project(acts)


def test_projecting_another_width_names_both_widths():
    with pytest.raises(DataError, match=r"\[4, 7\] do not fit a direction of width 5"):
        direction(d=5).project(torch.randn(4, 7))


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, math.pi - 0.05), st.floats(0.01, 100))
def test_cosine_is_that_of_the_angle_whatever_the_norms(angle, norm):
    a = Direction.from_vector(torch.tensor([1.0, 0.0]), site=SITE)
    b = Direction.from_vector(norm * torch.tensor([math.cos(angle), math.sin(angle)]), site=SITE)
    assert math.isclose(a.cosine(b), math.cos(angle), abs_tol=1e-6)
    assert a.cosine(a) == 1.0


def test_a_cosine_between_widths_is_refused():
    with pytest.raises(DataError, match=r"width 5 .*width 6"):
        direction(d=5).cosine(direction(d=6))


def test_a_random_direction_has_site_and_scale_of_the_other_and_points_elsewhere():
    like = direction(d=4000, scale=3.0, model_fingerprint="f")
    control = Direction.random(like, seed=1)
    assert (control.site, control.scale, control.model_fingerprint) == (SITE, 3.0, "f")
    assert abs(control.cosine(like)) < 5 / math.sqrt(4000)
    assert torch.equal(control.vector, Direction.random(like, seed=1).vector)
    assert abs(control.cosine(Direction.random(like, seed=2))) < 5 / math.sqrt(4000)


def test_saved_and_loaded_it_is_the_same_bit_for_bit(tmp_path):
    made = direction(
        name="truth",
        source="probe:logistic",
        model_fingerprint="abc",
        settings={"layer": 1, "kinds": ["a"]},
        provenance={"seed": 0},
    )
    back = Direction.load(made.save(tmp_path / "truth.safetensors"))
    assert torch.equal(back.vector, made.vector)
    for field in ("scale", "site", "name", "source", "model_fingerprint", "settings", "provenance"):
        assert getattr(back, field) == getattr(made, field)
    assert [p.name for p in tmp_path.iterdir()] == ["truth.safetensors"]


def test_the_file_is_safetensors_with_json_metadata(tmp_path):
    path = direction(name="truth").save(tmp_path / "d.safetensors")
    with safe_open(path, framework="np") as opened:
        assert json.loads(opened.metadata()["direction"])["name"] == "truth"
        assert opened.get_tensor("vector").dtype == np.float32


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_file_cut_short_is_called_damaged(tmp_path, keep):
    path = direction().save(tmp_path / "d.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged"):
        Direction.load(path)


def test_one_flipped_bit_in_the_vector_is_noticed(tmp_path):
    path = direction().save(tmp_path / "d.safetensors")
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # the least significant bit of the last component
    path.write_bytes(data)
    with pytest.raises(DataError, match="SHA-256"):
        Direction.load(path)


def test_files_that_are_no_direction_are_named(tmp_path):
    with pytest.raises(DataError, match="no direction file"):
        Direction.load(tmp_path / "none.safetensors")
    save_file({"vector": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="not a direction"):
        Direction.load(tmp_path / "other.safetensors")
    save_file({"vector": torch.ones(1)}, tmp_path / "j.safetensors", metadata={"direction": '{"schema": 1'})
    with pytest.raises(DataError, match="damaged"):
        Direction.load(tmp_path / "j.safetensors")


def test_a_file_of_a_newer_version_says_to_upgrade(tmp_path):
    header = json.dumps({"schema": 99, "scale": 1.0, "site": SITE})
    save_file({"vector": torch.ones(1)}, tmp_path / "n.safetensors", metadata={"direction": header})
    with pytest.raises(DataError, match=r"newer version \(schema 99.*upgrade"):
        Direction.load(tmp_path / "n.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = direction(seed=1).save(tmp_path / "d.safetensors")
    before = path.read_bytes()

    def interrupted(_tensors, file, **_metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.directions.storage.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        direction(seed=2).save(path)
    assert path.read_bytes() == before


def test_it_fits_the_model_it_was_made_on_and_one_without_fingerprint_fits_by_shape(model):
    direction(model_fingerprint=model.fingerprint).fits(model)
    direction().fits(model)


def test_another_fingerprint_is_refused_naming_both_unless_forced(model):
    other = LanguageModel(tiny.hf_model("llama", seed=1), tiny.tokenizer(), name="another-llama")
    made = direction(model_fingerprint=model.fingerprint)
    with pytest.raises(DataError, match=f"{model.fingerprint}.*another-llama has {other.fingerprint}"):
        made.fits(other)
    made.fits(other, force=True)


def test_another_width_or_a_missing_site_is_refused_even_if_forced(model):
    with pytest.raises(DataError, match=r"width 7, but .* of tiny-llama has 48"):
        direction(d=7).fits(model, force=True)
    with pytest.raises(DataError, match=r"blocks.9.hook_resid_post.*tiny-llama"):
        direction(site="blocks.9.hook_resid_post").fits(model, force=True)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_width_of_every_site_is_that_of_its_activations(family):
    model = LanguageModel(tiny.hf_model(family), tiny.tokenizer(), name=family)
    for site in model.sites():
        if site.endswith("hook_pattern"):
            continue
        width = wb.collect(model, [[1, 5, 9]], sites=site).rows(site).flatten(1).shape[1]
        direction(d=width, site=site).fits(model)
        with pytest.raises(DataError, match="has width"):
            direction(d=width + 1, site=site).fits(model)
