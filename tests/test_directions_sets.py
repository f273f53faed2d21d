"""Sets of directions: members, cosines beside random ones, spans and angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import tiny
import torch

import workbench as wb
from workbench.directions import Direction, DirectionSet, direction_cosines
from workbench.directions.cosines import p_values, random_cosine
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel

SITE = "blocks.1.hook_resid_post"


def random(d: int = 48, seed: int = 0, **fields) -> Direction:
    drawn = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction.from_vector(drawn, **({"site": SITE, "name": f"r{seed}"} | fields))


def layers(name: str, n: int, seed: int = 0, **fields) -> DirectionSet:
    several = [
        random(seed=seed + i, site=f"blocks.{i}.hook_resid_post", **({"name": name} | fields))
        for i in range(n)
    ]
    return DirectionSet(several, name=name)


def test_members_are_found_by_number_name_and_site():
    a, b = layers("a", 3), layers("b", 2, seed=10)
    both = DirectionSet([*a, *b])
    assert both.names == ["a", "b"] and len(both.sites) == 3 and len(both) == 5
    assert both.named("b")[SITE] is b[1] and both.at(SITE)["a"] is a[1] and both[-1] is b[1]
    with pytest.raises(DataError, match="2 directions of this set"):
        both[SITE]
    with pytest.raises(DataError, match=r"blocks.9.*Did you mean"):
        both.at("blocks.9.hook_resid_post")
    with pytest.raises(DataError, match="called 'c'"):
        both.named("c")
    with pytest.raises(DataError, match="Direction 5 does not exist"):
        both[5]


def test_an_empty_set_a_double_member_and_other_things_are_refused():
    with pytest.raises(DataError, match="empty"):
        DirectionSet([])
    with pytest.raises(DataError, match="Two directions of this set are called 'r0'"):
        DirectionSet([random(), random()])
    with pytest.raises(DataError, match="not Tensor"):
        DirectionSet([torch.ones(3)])  # type: ignore[list-item]


def test_a_set_comes_back_from_disk_bit_for_bit(tmp_path):
    made = DirectionSet(
        [*layers("a", 3, source="s", model_fingerprint="f", provenance={"x": [1]})],
        name="n",
        settings={"k": 2},
    )
    back = DirectionSet.load(made.save(tmp_path / "s.safetensors"))
    assert (back.name, back.settings) == ("n", {"k": 2})
    for a, b in zip(made, back, strict=True):
        assert torch.equal(a.vector, b.vector)
        assert all(
            getattr(a, k) == getattr(b, k)
            for k in ("scale", "site", "name", "source", "model_fingerprint", "provenance")
        )
    one = DirectionSet.load(random().save(tmp_path / "one.safetensors"))
    assert len(one) == 1
    with pytest.raises(DataError, match="use DirectionSet.load"):
        Direction.load(tmp_path / "s.safetensors")
    data = bytearray((tmp_path / "s.safetensors").read_bytes())
    data[-4] ^= 1
    (tmp_path / "s.safetensors").write_bytes(data)
    with pytest.raises(DataError, match="SHA-256"):
        DirectionSet.load(tmp_path / "s.safetensors")


def test_sets_are_added_site_by_site():
    a, b = layers("a", 3), layers("b", 2, seed=10)
    made = a - 2 * b
    expected = a[1].scale * a[1].vector - 2 * b[1].scale * b[1].vector
    assert torch.allclose(made[SITE].scale * made[SITE].vector, expected, atol=1e-5)
    assert torch.equal(made["blocks.2.hook_resid_post"].vector, a[2].vector)
    with pytest.raises(DataError, match="several at one"):
        DirectionSet([random(seed=1), random(seed=2)]) + a


def test_each_member_projects_its_own_site():
    model = LanguageModel(tiny.hf_model("llama"), tiny.tokenizer(), name="t")
    acts = wb.collect(model, ["Mary went to the store", "Tom and"], "blocks.*.hook_resid_post")
    group = layers("a", 3)
    expected = np.stack([acts.rows(d.site).numpy() @ d.vector.numpy() for d in group], axis=-1)
    np.testing.assert_allclose(group.project(acts).numpy(), expected, atol=1e-5)
    group.fits(model)
    with pytest.raises(DataError, match="blocks.3"):
        layers("a", 4).fits(model)


# --- cosines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3, 10, 576])
def test_the_null_of_cosines_is_that_of_random_directions(d):
    exact = random_cosine(d, n_pairs=10)
    drawn = np.random.default_rng(0).standard_normal((40_000, d))
    c = np.abs(drawn[:, 0] / np.linalg.norm(drawn, axis=1))  # against one fixed direction
    assert math.isclose(exact["rms"], 1 / math.sqrt(d))
    assert abs(np.sqrt((c**2).mean()) / exact["rms"] - 1) < 0.02
    assert abs(c.mean() / exact["mean"] - 1) < 0.02
    assert abs((c < exact["band"]).mean() - 0.95) < 0.005
    assert abs((c.reshape(-1, 10).max(1) < exact["band_of_all"]).mean() - 0.95) < 0.015
    assert abs((c > 0.5 * exact["rms"]).mean() - p_values(np.array([0.5 * exact["rms"]]), d)[0]) < 0.01


def test_the_null_in_two_and_three_dimensions_has_a_closed_form():
    assert math.isclose(random_cosine(2)["mean"], 2 / math.pi, rel_tol=1e-9)
    assert math.isclose(random_cosine(2)["band"], math.cos(0.05 * math.pi / 2), rel_tol=1e-9)
    assert math.isclose(random_cosine(3)["mean"], 0.5, rel_tol=1e-9)  # uniform on 0..1
    assert math.isclose(random_cosine(3)["band"], 0.95, rel_tol=1e-9)
    assert random_cosine(1)["band"] == 1.0


def test_the_matrix_has_the_cosines_and_the_summary_counts_what_is_outside():
    a, b = random(seed=1), random(seed=2)
    near = a.interpolate(b, 0.1)
    result = DirectionSet([a, b, near]).cosines()
    cosines = result.data["cosine"].values
    np.testing.assert_allclose(cosines[0, 2], a.cosine(near), atol=1e-6)
    np.testing.assert_allclose(cosines, cosines.T)
    assert np.all(np.diag(cosines) == 1) and result.kind == "direction_cosines"
    assert result.summary["largest"]["pair"] == ["r1", near.name]
    assert result.summary["outside"]["isotropic"] == 1 and result.summary["n_pairs"] == 3
    assert result.data["p_value"].values[0, 2] < 1e-6 and np.isnan(result.data["p_value"].values[1, 1])


def test_random_directions_are_inside_their_band():
    outside = [
        direction_cosines([random(seed=100 * s + i) for i in range(6)]).summary["outside"]["isotropic"] > 0
        for s in range(100)
    ]
    assert 1 <= sum(outside) <= 12  # expected: 5 of 100


def test_the_reference_null_is_wider_where_activations_are_not_isotropic():
    """Rows that vary along one axis only: differences of any two groups of them are parallel."""
    rows = torch.zeros(50, 48)
    rows[:, 0] = torch.randn(50, generator=torch.Generator().manual_seed(0))
    null = DirectionSet([random(seed=1), random(seed=2)]).cosines(reference=rows).data.sel(null="reference")
    assert float(null["null_mean"]) > 0.999
    white = torch.randn(3000, 48, generator=torch.Generator().manual_seed(1))
    data = DirectionSet([random(seed=1), random(seed=2)]).cosines(reference=white, n_null=4000).data
    ratio = float(data["null_band"].sel(null="reference") / data["null_band"].sel(null="isotropic"))
    assert abs(ratio - 1) < 0.06
    again = DirectionSet([random(seed=1), random(seed=2)]).cosines(reference=white, n_null=4000).data
    assert data.identical(again)


def test_cosines_of_what_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(DataError, match="at least two"):
        direction_cosines([random()])
    with pytest.raises(DataError, match=r"width 48.*width 9"):
        direction_cosines([random(), random(9, seed=1)])
    several = [random(model_fingerprint="f1"), random(seed=1, model_fingerprint="f2")]
    with pytest.raises(DataError, match="f1.*f2"):
        direction_cosines(several)
    result = direction_cosines(several, force=True)
    assert wb.Result.load(result.save(tmp_path / "r")).data.identical(result.data)
    sited = direction_cosines(list(layers("a", 2)))
    assert sited.data["direction"].values[0] == "a @ blocks.0.hook_resid_post"


# --- spans -------------------------------------------------------------------------------------------------


def test_the_basis_is_orthonormal_and_spans_the_members():
    a, b = random(seed=1), random(seed=2)
    group = DirectionSet([a, b, a.interpolate(b, 0.3)])
    basis = group.basis()
    assert basis.shape == (2, 48)
    np.testing.assert_allclose((basis @ basis.T).numpy(), np.eye(2), atol=1e-12)
    for d in group:
        np.testing.assert_allclose(
            ((d.vector.double() @ basis.T) @ basis).numpy(), d.vector.numpy(), atol=1e-6
        )
    x = torch.randn(5, 48)
    rest = group.project_out(x)
    assert group.project(rest).abs().max() < 1e-5
    projector = scipy.linalg.orth(group.matrix().double().numpy().T, rcond=1e-6)
    np.testing.assert_allclose(rest.numpy(), x.numpy() - x.numpy() @ projector @ projector.T, atol=1e-5)
    with pytest.raises(DataError, match="differ"):
        layers("a", 2).basis()


def test_principal_angles_of_spans_that_are_known():
    """Two planes that share one axis and are tilted by 30 degrees about it."""
    e = torch.eye(6, dtype=torch.float64)
    tilted = math.cos(math.pi / 6) * e[1] + math.sin(math.pi / 6) * e[2]
    make = lambda v, n: Direction.from_vector(v, site=SITE, name=n)  # noqa: E731
    a = DirectionSet([make(e[0], "x"), make(e[0] + 3 * e[1], "y")])
    b = DirectionSet([make(e[0], "x"), make(tilted - 2 * e[0], "z")])
    result = a.principal_angles(b)
    np.testing.assert_allclose(result.data["degrees"].values, [0, 30], atol=1e-4)
    assert result.summary["dimensions"] == [2, 2]


def test_random_spans_lie_in_the_band_of_the_null():
    inside = []
    for s in range(30):
        a, b = ([random(30, seed=1000 * s + 50 * g + i) for i in range(3)] for g in range(2))
        data = DirectionSet(a).principal_angles(DirectionSet(b), seed=s).data
        inside.append((data["null_low"] <= data["degrees"]) & (data["degrees"] <= data["null_high"]))
    assert 0.88 <= np.mean(inside) <= 0.99
    with pytest.raises(DataError, match="0, 1 directions"):
        from workbench.directions import principal_angles

        principal_angles([], [random()])
