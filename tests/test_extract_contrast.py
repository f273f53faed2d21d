"""Directions from two sets of prompts: closed forms, planted axes, positions, scales, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA, TruncatedSVD

import workbench as wb
from workbench.directions import DirectionSet
from workbench.errors import DataError, PositionError, SiteError
from workbench.steering.extract import fractional as fractional_vector
from workbench.steering.extract import (
    in_context_vector,
    mean_difference,
    mean_differences,
    pca_of_differences,
    pca_of_differences_at,
)
from workbench.steering.extract.fractional import last_token_edit, rampdown, trial_strengths
from workbench.steering.extract.in_context_vector import norm_preserving, stacked_vector
from workbench.steering.extract.pca_of_differences import first_axis

POSITIVE = [[5, 6, 30], [7, 8, 9], [11, 12], [13, 40, 15, 16], [70, 71]]
NEGATIVE = [[10, 11], [12, 50, 14], [60, 61, 62], [20, 21], [33, 34]]
SITE = "blocks.1.hook_resid_post"


def rows_of(model, prompts, site=SITE, position=-1):
    """One prompt at a time, by a plain hooked forward."""
    out = []
    for prompt in prompts:
        with model.hooks(read=site) as session:
            model.hf(input_ids=torch.tensor([prompt]))
        value = session[site][0].flatten(1)
        out.append(value[position] if isinstance(position, int) else value[position].mean(0))
    return torch.stack(out).double()


def natural(d) -> torch.Tensor:
    return d.vector.double() * d.scale


def test_a_mean_difference_is_the_difference_of_means_in_every_family(model):
    d = mean_difference(model, POSITIVE[:3], NEGATIVE, SITE, shuffles=0)
    expected = rows_of(model, POSITIVE[:3]).mean(0) - rows_of(model, NEGATIVE).mean(0)
    assert torch.allclose(natural(d), expected, atol=1e-4)
    assert d.model_fingerprint == model.fingerprint
    assert d.settings["held_out"]["measured"] is False
    assert (d.settings["n_positive"], d.settings["n_negative"]) == (3, 5)


def test_many_sites_at_once_give_what_each_gives_by_itself(llama):
    found = mean_differences(llama, POSITIVE, NEGATIVE, "blocks.*.hook_resid_post", shuffles=5)
    assert found.sites == [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    for d in found:
        alone = mean_difference(llama, POSITIVE, NEGATIVE, d.site, shuffles=5)
        assert torch.allclose(natural(alone), natural(d), atol=1e-5)
        one, among = ({**x.settings["held_out"]} for x in (alone, d))
        assert (one.pop("n_sites"), among.pop("n_sites")) == (1, 3)
        assert among.pop("p_value_best") >= one.pop("p_value_best") == one["p_value"]
        assert one == pytest.approx(among)
    heads = mean_difference(llama, POSITIVE, NEGATIVE, "blocks.1.attn.hook_z", shuffles=0)
    assert heads.width == llama.n_heads * llama.d_head


@pytest.mark.parametrize(
    ("position", "rows"),
    [
        ("last", -1),
        (-2, -2),
        (0, 0),
        ([-1, -2], [-1, -2]),
        ("not_first", slice(1, None)),
        ("all", slice(None)),
    ],
)
def test_positions_are_averaged_within_a_prompt(llama, position, rows):
    d = mean_difference(llama, POSITIVE, NEGATIVE, SITE, position=position, shuffles=0)
    expected = rows_of(llama, POSITIVE, position=rows).mean(0) - rows_of(llama, NEGATIVE, position=rows).mean(
        0
    )
    assert torch.allclose(natural(d), expected, atol=1e-4)


def test_a_list_of_positions_for_each_prompt_counts_positives_first(llama):
    each = [[0]] * 5 + [[1]] * 5
    d = mean_difference(llama, POSITIVE, NEGATIVE, SITE, position=each, shuffles=0)
    expected = rows_of(llama, POSITIVE, position=0).mean(0) - rows_of(llama, NEGATIVE, position=1).mean(0)
    assert torch.allclose(natural(d), expected, atol=1e-4)


def test_the_scale_comes_from_reference_text_where_it_is_given(llama):
    text = [[8, 9, 30, 31], [40, 41, 42], [50, 60, 70]]
    d = mean_difference(llama, POSITIVE, NEGATIVE, SITE, reference=text, shuffles=0)
    kept = torch.cat([rows_of(llama, [t], position=[i])[:1] for t in text for i in range(1, len(t))])
    assert d.scale == pytest.approx(float((kept @ d.vector.double()).std()), rel=1e-4)
    plain = mean_difference(llama, POSITIVE, NEGATIVE, SITE, shuffles=0)
    assert d.settings["difference_norm"] == pytest.approx(plain.scale)
    acts = wb.collect(llama, text, SITE, "all")
    assert mean_difference(
        llama, POSITIVE, NEGATIVE, SITE, reference=acts, shuffles=0
    ).scale == pytest.approx(d.scale)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(2, 10), st.integers(0, 10_000))
def test_the_first_axis_is_that_of_scikit_learn_with_its_sign_on_the_mean(n, d, seed):
    rows = np.random.default_rng(seed).normal(size=(n, d)) + 0.3
    centred = first_axis(torch.from_numpy(rows), centred=True).numpy()
    theirs = PCA(1).fit(rows).components_[0]
    about_zero = first_axis(torch.from_numpy(rows), centred=False).numpy()
    svd = TruncatedSVD(1, algorithm="arpack").fit(rows).components_[0] if min(n, d) > 2 else about_zero
    assert abs(abs(centred @ theirs) - 1) < 1e-6
    assert abs(abs(about_zero @ svd) - 1) < 1e-6
    assert centred @ rows.mean(0) >= -1e-12
    assert about_zero @ rows.mean(0) >= -1e-12


@pytest.mark.parametrize("n", [6, 40])
def test_a_planted_axis_of_pairs_is_found(n):
    g = torch.Generator().manual_seed(n)
    axis = torch.nn.functional.normalize(torch.randn(20, generator=g, dtype=torch.float64), dim=0)
    size = 3 + torch.rand(n, 1, generator=g, dtype=torch.float64)
    differences = size * axis + 1e-3 * torch.randn(n, 20, generator=g, dtype=torch.float64)
    assert float(first_axis(differences, centred=False) @ axis) > 0.999
    assert float(first_axis(differences, centred=True) @ axis) > 0.99


def test_pca_of_differences_is_the_eigenvector_and_its_scale_the_rms(llama):
    for centred in (False, True):
        d = pca_of_differences(llama, POSITIVE, NEGATIVE, SITE, centred=centred, shuffles=3)
        differences = rows_of(llama, POSITIVE) - rows_of(llama, NEGATIVE)
        middle = differences.mean(0) if centred else 0
        _, vectors = torch.linalg.eigh((differences - middle).T @ (differences - middle))
        assert abs(float(vectors[:, -1] @ d.vector.double())) == pytest.approx(1, abs=1e-5)
        assert float(d.vector.double() @ differences.mean(0)) >= 0
        assert d.scale == pytest.approx(
            float((differences @ d.vector.double()).square().mean().sqrt()), rel=1e-4
        )
        assert 0 < d.settings["explained"] <= 1
        assert d.settings["held_out"]["measured"]
    assert len(pca_of_differences_at(llama, POSITIVE, NEGATIVE, shuffles=0)) == 3


def test_an_in_context_vector_is_the_axis_of_all_layers_plus_the_mean(llama):
    found = in_context_vector(llama, POSITIVE, NEGATIVE, apply_at="resid_post", shuffles=3)
    layers = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    stacked = np.concatenate(
        [(rows_of(llama, POSITIVE, s) - rows_of(llama, NEGATIVE, s)).numpy() for s in layers], axis=1
    )
    axis, mean = PCA(1).fit(stacked).components_[0], stacked.mean(0)
    expected = (axis * np.sign(axis @ mean) + mean).reshape(3, 48)
    for layer, d in enumerate(found):
        unit = expected[layer] / np.linalg.norm(expected[layer])
        assert np.allclose(d.vector, unit, atol=1e-4)
        assert d.settings["norm"] == pytest.approx(np.linalg.norm(expected[layer]), rel=1e-4)
    assert found.settings["mean_norm"] == pytest.approx(np.linalg.norm(mean), rel=1e-4)
    assert found.settings["held_out"]["measured"]
    assert all(d.settings["held_out"]["n_positive"] == 5 for d in found)


def test_parts_and_places_of_an_in_context_vector(llama):
    differences = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = {p: stacked_vector(differences, p) for p in ("pca", "mean", "pca+mean")}
    assert torch.allclose(parts["pca"] + parts["mean"], parts["pca+mean"])
    assert float(parts["pca"].norm()) == pytest.approx(1)
    assert torch.allclose(parts["mean"], differences.mean(1))
    moved = in_context_vector(llama, POSITIVE, NEGATIVE, layers=[1], shuffles=0)
    assert moved.sites == ["blocks.1.hook_mlp_out"]
    assert moved[0].settings["moved_from"] == [SITE]
    assert moved[0].settings["read_at"] == SITE


def test_the_norm_preserving_edit_is_the_papers_formula(llama):
    d = mean_difference(llama, POSITIVE, NEGATIVE, "blocks.1.hook_mlp_out", shuffles=0)
    m = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    edited = norm_preserving(d, 0.4)(m)
    assert torch.allclose(edited.norm(dim=-1), m.norm(dim=-1), rtol=1e-5)
    x, v = m[1, 2].numpy(), d.vector.numpy()
    unit = x / np.linalg.norm(x)
    turned = unit + 0.4 * (1 + max(0.0, float(-unit @ v))) * v
    assert np.allclose(edited[1, 2], np.linalg.norm(x) * turned / np.linalg.norm(turned), atol=1e-5)
    with llama.edit({d.site: norm_preserving(d, 0.4)}):
        assert llama.logits([[5, 6]]).isfinite().all()


def test_fractional_reasoning_is_the_vector_between_two_instructions(llama):
    asked = ["one plus two", "four plus four", "nine plus one", "six plus zero"]
    found = fractional_vector(llama, asked, positive="the red ", negative="a blue ", shuffles=2)
    same = in_context_vector(
        llama, ["the red " + q for q in asked], ["a blue " + q for q in asked], shuffles=2
    )
    for a, b in zip(found, same, strict=True):
        assert torch.equal(a.vector, b.vector)
        assert a.source == "fractional"
    assert found.settings["application"]["positions"] == {"from": -1}
    assert [rampdown(t) for t in (0, 25, 50, 1000)] == pytest.approx([1, 0.5, 0.5, 0.5])
    assert rampdown(10) == pytest.approx((1 + np.cos(np.pi / 5)) / 2)
    drawn = trial_strengths(50, seed=1)
    assert drawn == trial_strengths(50, seed=1) != trial_strengths(50, seed=2)
    assert 0 <= min(drawn) < max(drawn) <= 0.15
    m = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    edited = last_token_edit(found[0], 0.1, step=5)(m)
    assert torch.equal(edited[:, :-1], m[:, :-1])
    unit = m[0, -1] / m[0, -1].norm() + 0.1 * rampdown(5) * found[0].vector
    assert torch.allclose(edited[0, -1], m[0, -1].norm() * unit / unit.norm(), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: mean_difference(m, [], NEGATIVE, SITE), DataError, "positive set has no prompts"),
        (lambda m: mean_difference(m, POSITIVE, [], SITE), DataError, "negative set has no prompts"),
        (lambda m: mean_difference(m, POSITIVE, NEGATIVE[:3], SITE, paired=True), DataError, "5 positive and 3 negative"),
        (lambda m: mean_difference(m, POSITIVE, POSITIVE[::-1], SITE), DataError, "same prompts"),
        (lambda m: mean_difference(m, POSITIVE, NEGATIVE, "blocks.*.hook_resid_post"), DataError, "3 sites"),
        (lambda m: mean_difference(m, POSITIVE, NEGATIVE, "blocks.9.hook_resid_post"), SiteError, "blocks.9"),
        (lambda m: mean_difference(m, POSITIVE, NEGATIVE, SITE, position=7), PositionError, "outside"),
        (lambda m: mean_difference(m, POSITIVE, NEGATIVE, SITE, position="first"), PositionError, "'first'"),
        (lambda m: mean_difference(m, [[5]], NEGATIVE, SITE, position="not_first"), PositionError, "one token"),
        (lambda m: mean_differences(m, POSITIVE, NEGATIVE, [SITE, "blocks.1.mlp.hook_post"]), DataError, "one width"),
        (lambda m: mean_differences(m, POSITIVE, NEGATIVE, reference=torch.ones(9, 48)), DataError, "3 sites"),
        (lambda m: pca_of_differences(m, POSITIVE[:1], NEGATIVE[:1], SITE), DataError, "at least 2 pairs"),
        (lambda m: pca_of_differences(m, POSITIVE, NEGATIVE[:2], SITE), DataError, "needs pairs"),
        (lambda m: in_context_vector(m, POSITIVE[:1], NEGATIVE[:1]), DataError, "at least 2 pairs"),
        (lambda m: in_context_vector(m, POSITIVE, NEGATIVE, parts="first"), DataError, "pca\\+mean"),
        (lambda m: fractional_vector(m, []), DataError, "No questions"),
        (lambda m: fractional_vector(m, ["one"], positive="a ", negative="a "), DataError, "two that differ"),
        (lambda m: fractional_vector(m, ["one"], positive="a ", negative="the "), DataError, "at least 2 pairs"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_into_a_direction_is_one_clear_error(llama, call, error, message):
    with pytest.raises(error, match=message):
        call(llama)


def test_sets_survive_being_saved(llama, tmp_path):
    found = in_context_vector(llama, POSITIVE, NEGATIVE, shuffles=2)
    back = DirectionSet.load(found.save(tmp_path / "icv.safetensors"))
    assert back.settings == found.settings
    assert torch.equal(back.matrix(), found.matrix())
