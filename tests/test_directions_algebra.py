"""Arithmetic and natural scale of directions, against plain vectors, closed forms and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.directions import Direction, DirectionSet, combine, interpolate, orthogonal_to
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel

SITE = "blocks.1.hook_resid_post"
vectors = st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5).filter(
    lambda v: np.linalg.norm(v) > 0.1
)
weights = st.floats(-5, 5).filter(lambda w: abs(w) > 0.05)


def of(vector, **fields) -> Direction:
    return Direction.from_vector(torch.tensor(vector, dtype=torch.float64), **({"site": SITE} | fields))


def random(d: int = 48, seed: int = 0, **fields) -> Direction:
    drawn = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction.from_vector(drawn, **({"site": SITE} | fields))


def natural(d: Direction) -> np.ndarray:
    return d.scale * d.vector.double().numpy()


@settings(deadline=None, max_examples=60)
@given(vectors, vectors, weights, weights)
def test_a_combination_is_that_of_the_natural_vectors(a, b, x, y):
    expected = x * np.array(a) + y * np.array(b)
    size = np.linalg.norm(x * np.array(a)) + np.linalg.norm(y * np.array(b))
    assume(np.linalg.norm(expected) > 1e-3 * size)
    made = x * of(a) + y * of(b)
    np.testing.assert_allclose(natural(made), expected, atol=2e-6 * size)
    np.testing.assert_allclose(natural(combine([of(a), of(b)], [x, y])), natural(made), atol=1e-6 * size)
    assert math.isclose(made.scale, np.linalg.norm(expected), rel_tol=2e-3)


@settings(deadline=None, max_examples=30)
@given(vectors, vectors)
def test_what_was_added_can_be_taken_away(a, b):
    assume(np.linalg.norm(np.array(a) + b) > 1e-2 * (np.linalg.norm(a) + np.linalg.norm(b)))
    back = of(a) + of(b) - of(b)
    size = np.linalg.norm(a) + np.linalg.norm(b)
    np.testing.assert_allclose(natural(back), a, atol=3e-6 * size)


def test_multiples_and_negation_keep_every_bit_of_the_unit_vector():
    d = random(scale=3.0)
    assert torch.equal((2.5 * d).vector, d.vector) and (2.5 * d).scale == 7.5
    assert torch.equal((-d).vector, -d.vector) and (-d).scale == 3.0
    assert torch.equal((d / -2).vector, -d.vector) and (d / -2).scale == 1.5


def test_lengths_count_unless_scales_are_made_equal():
    long, short = of([10.0, 0.0]), of([0.0, 1.0])
    assert math.isclose((long + short).cosine(long), 10 / math.sqrt(101), rel_tol=1e-6)
    alike = long.with_scale(1) + short.with_scale(1)
    assert math.isclose(alike.cosine(long), math.sqrt(0.5), rel_tol=1e-6)


def test_the_sum_of_mean_differences_is_the_difference_of_summed_means():
    g = torch.Generator().manual_seed(3)
    means = torch.randn(4, 12, generator=g, dtype=torch.float64)
    made = Direction.from_vector(means[0] - means[1], site=SITE) + Direction.from_vector(
        means[2] - means[3], site=SITE
    )
    np.testing.assert_allclose(natural(made), (means[0] + means[2] - means[1] - means[3]).numpy(), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_orthogonal_to_several_is_the_residual_of_least_squares(seed, n):
    d, others = random(20, seed), [random(20, seed + 1 + i) for i in range(n)]
    made = d.orthogonal_to(others)
    matrix = np.stack([natural(o) for o in others], axis=1)
    residual = natural(d) - matrix @ np.linalg.lstsq(matrix, natural(d), rcond=None)[0]
    np.testing.assert_allclose(natural(made), residual, atol=1e-5)
    assert all(abs(made.cosine(o)) < 1e-6 for o in others)
    assert torch.allclose(made.orthogonal_to(others).vector, made.vector, atol=1e-6)  # once is enough


def test_others_that_depend_on_each_other_count_once():
    d, a = random(seed=1), random(seed=2)
    once, twice = d.orthogonal_to(a), d.orthogonal_to(a, 2 * a, DirectionSet([-a]))
    assert torch.allclose(once.vector, twice.vector, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 3.1), st.floats(0, 1), st.floats(0.1, 9), st.floats(0.1, 9))
def test_spherical_interpolation_turns_at_constant_speed_and_scales_straight(angle, t, s, u):
    a = of([1.0, 0.0], scale=s)
    b = of([math.cos(angle), math.sin(angle)], scale=u)
    between = a.interpolate(b, t)
    expected = [math.cos(t * angle), math.sin(t * angle)]
    np.testing.assert_allclose(between.vector.numpy(), expected, atol=2e-5)
    assert math.isclose(between.scale, (1 - t) * s + t * u, rel_tol=1e-9)


def test_linear_interpolation_mixes_natural_vectors_and_ends_are_the_ends():
    a, b = random(seed=1, scale=2.0), random(seed=2, scale=5.0)
    np.testing.assert_allclose(
        natural(a.interpolate(b, 0.25, how="linear")), 0.75 * natural(a) + 0.25 * natural(b), atol=1e-6
    )
    for how in ("spherical", "linear"):
        assert torch.allclose(interpolate(a, b, 0.0, how=how).vector, a.vector, atol=1e-6)
        assert torch.allclose(interpolate(a, b, 1.0, how=how).vector, b.vector, atol=1e-6)
    same = a.interpolate(a, 0.3)
    assert torch.allclose(same.vector, a.vector, atol=1e-7)


def test_activations_without_a_direction_have_no_coefficient_left():
    d, x = random(), torch.randn(3, 4, 48)
    assert d.project(d.project_out(x)).abs().max() < 1e-5
    expected = x.numpy() - np.einsum("bpd,d,e->bpe", x.numpy(), d.vector.numpy(), d.vector.numpy())
    np.testing.assert_allclose(d.project_out(x).numpy(), expected, atol=1e-5)
    assert d.project_out(x.bfloat16()).dtype == torch.bfloat16


def test_provenance_records_operation_weights_and_parents_of_parents():
    a = random(seed=1, name="a", source="probe:x", settings={"layer": 1}, provenance={"seed": 7})
    b = random(seed=2, name="b")
    made = (a - 0.5 * b).orthogonal_to(random(seed=3, name="c"))
    assert made.name == "a − (0.5 b) ⟂ c" and made.source == "orthogonal_to"
    first, last = made.provenance["parents"]
    assert first["name"] == "a − (0.5 b)" and last["name"] == "c"
    grand = first["parents"]
    assert [p["weight"] for p in grand] == [1.0, -1.0] and grand[1]["parents"][0]["weight"] == 0.5
    assert grand[0]["provenance"] == {"seed": 7} and grand[0]["settings"] == {"layer": 1}
    import hashlib

    assert grand[0]["sha256"] == hashlib.sha256(a.vector.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    "act", [lambda a, b: a + b, lambda a, b: a - b, orthogonal_to, lambda a, b: a.interpolate(b, 0.5)]
)
def test_what_does_not_go_together_is_one_error_that_names_both_sides(act):
    a = random(seed=1, name="a", model_fingerprint="f1")
    with pytest.raises(DataError, match=r"'a' \(width 48.*'b' \(width 12"):
        act(a, random(12, seed=2, name="b"))
    with pytest.raises(
        DataError, match=r"'a' \(width 48 at 'blocks.1.hook_resid_post'\) and 'b' .*blocks.2.hook_mlp_out"
    ):
        act(a, random(seed=2, name="b", site="blocks.2.hook_mlp_out"))
    with pytest.raises(DataError, match="f1.*f2.*force=True"):
        act(a, random(seed=2, name="b", model_fingerprint="f2"))
    act(a, random(seed=2, name="b"))  # a direction of an unknown model goes with any
    act(a, random(seed=2, name="b", site="blocks.2.hook_mlp_out").at(SITE))


def test_other_models_can_be_forced():
    a, b = random(seed=1, model_fingerprint="f1"), random(seed=2, model_fingerprint="f2")
    assert combine([a, b], [1, 1], force=True).model_fingerprint == "f1"
    assert orthogonal_to(a, b, force=True).model_fingerprint == "f1"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda a: a - a, "cancels"),
        (lambda a: 0 * a, "cancels"),
        (lambda a: float("nan") * a, "finite"),
        (lambda a: a / 0, "divided by 0"),
        (lambda a: a.orthogonal_to(a), "Nothing is left"),
        (lambda a: a.orthogonal_to(), "No direction"),
        (lambda a: a.interpolate(-a, 0.5), "opposite"),
        (lambda a: a.interpolate(a, float("inf")), "finite"),
        (lambda a: a.interpolate(a, 0.5, how="cubic"), "'cubic'"),
        (lambda a: combine([a], [1, 2]), "1 directions and 2 weights"),
        (lambda a: combine([], []), "0 directions"),
    ],
)
def test_what_gives_no_direction_is_refused(act, message):
    with pytest.raises(DataError, match=message):
        act(random(name="a"))


# --- natural scale -----------------------------------------------------------------------------------------


def test_the_scale_is_the_standard_deviation_of_the_projection():
    d, x = random(seed=1), torch.randn(400, 48, generator=torch.Generator().manual_seed(5)) * 3 + 100
    found = d.with_scale_from(x)
    c = x.double().numpy() @ d.vector.double().numpy()
    assert math.isclose(found.scale, c.std(ddof=1), rel_tol=1e-9)
    assert math.isclose(found.strength(2), 2 * c.std(ddof=1), rel_tol=1e-9)
    about = found.settings["scale_from"]
    assert about["low"] < found.scale < about["high"] and about["n_rows"] == about["n_prompts"] == 400
    assert math.isclose(about["mean"], c.mean(), rel_tol=1e-6)
    isotropic = math.sqrt(np.trace(np.cov(x.double().numpy().T)) / 48)
    assert math.isclose(about["isotropic_scale"], isotropic, rel_tol=1e-6)
    assert torch.equal(found.vector, d.vector)
    natural_units = found.project(x, natural=True)
    assert abs(float(natural_units.std()) - 1) < 1e-5


def test_the_interval_holds_the_true_deviation_about_95_times_in_100():
    d = of([1.0, 0.0])
    held = 0
    for seed in range(100):
        x = torch.randn(80, 2, generator=torch.Generator().manual_seed(seed))
        about = d.with_scale_from(x, seed=seed).settings["scale_from"]
        held += about["low"] <= 1.0 <= about["high"]
    assert 86 <= held <= 99


def test_the_interval_resamples_prompts_not_rows():
    """Rows of one prompt that are copies carry no more than one row does: the interval must not shrink."""
    from workbench.activations import Activations
    from workbench.provenance import Provenance

    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))

    def acts(copies: int) -> Activations:
        n = 30 * copies
        prompt = np.repeat(np.arange(30), copies)
        return Activations(
            {SITE: x.repeat_interleave(copies, 0)},
            prompt,
            np.full(n, 5),
            np.zeros(n, int),
            ("",) * n,
            30,
            Provenance(),
        )

    d = random(4)
    widths = []
    for copies in (1, 20):
        about = d.with_scale_from(acts(copies)).settings["scale_from"]
        assert about["n_prompts"] == 30 and about["n_rows"] == 30 * copies
        widths.append(about["high"] - about["low"])
    assert math.isclose(widths[0], widths[1], rel_tol=0.1)


@pytest.fixture(scope="module")
def collected():
    model = LanguageModel(tiny.hf_model("llama"), tiny.tokenizer(), name="tiny-llama")
    return model, wb.collect(model, ["Mary went to the store", "Tom and Anna", "a red drink"], SITE, "all")


def test_of_collected_activations_the_first_token_is_left_out_unless_asked_for(collected):
    model, acts = collected
    d = random(model_fingerprint=model.fingerprint)
    c = acts.rows(SITE).double().numpy() @ d.vector.double().numpy()
    later = d.with_scale_from(acts)
    assert math.isclose(later.scale, c[acts.position > 0].std(ddof=1), rel_tol=1e-6)
    assert later.settings["scale_from"]["n_left_out"] == 3
    assert math.isclose(d.with_scale_from(acts, first_token=True).scale, c.std(ddof=1), rel_tol=1e-6)


def test_a_store_gives_the_same_scale(collected, tmp_path):
    model, acts = collected
    prompts = ["Mary went to the store", "Tom and Anna", "a red drink"]
    store = wb.collect_to(tmp_path / "s", model, prompts, sites=[SITE], positions="all")
    store = wb.open_store(tmp_path / "s")
    d = random(model_fingerprint=model.fingerprint)
    assert math.isclose(d.with_scale_from(store).scale, d.with_scale_from(acts).scale, rel_tol=1e-5)


def test_activations_that_give_no_scale_are_refused(collected):
    model, acts = collected
    d = random()
    with pytest.raises(DataError, match="at least 2"):
        d.with_scale_from(torch.ones(1, 48))
    with pytest.raises(DataError, match="do not vary"):
        d.with_scale_from(torch.ones(5, 48))
    with pytest.raises(DataError, match="do not fit a direction of width 48"):
        d.with_scale_from(torch.ones(5, 7))
    with pytest.raises(DataError, match="NaN"):
        d.with_scale_from(torch.full((5, 48), math.nan))
    with pytest.raises(DataError, match=f"other.*{model.fingerprint}"):
        random(model_fingerprint="other").with_scale_from(acts)
    first = wb.collect(model, ["Mary went", "Tom and"], SITE, 0)
    with pytest.raises(DataError, match="2 rows at position 0 are left out: use first_token=True"):
        d.with_scale_from(first)
