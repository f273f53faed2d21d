"""Directions from probes and dictionaries: what the weight means, which scale, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, StandardScaler

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError
from workbench.provenance import Provenance
from workbench.results import Result
from workbench.steering.extract import from_dictionary, from_probe, from_probe_classes, from_sweep

SITE = "blocks.1.hook_resid_post"


def labelled(classes=2, n=120, d=48, seed=0):
    draw = np.random.default_rng(seed)
    y = draw.integers(0, classes, n)
    x = draw.normal(size=(n, d)) * np.linspace(0.1, 3, d) + 2 * np.eye(classes, d)[y]
    return x, y


def test_a_step_of_the_scale_along_the_direction_raises_the_score_by_one():
    x, y = labelled()
    for probe in (
        LogisticRegression().fit(x, y),
        make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y),
        make_pipeline(MinMaxScaler(), LogisticRegression()).fit(x, y),
        make_pipeline("passthrough", StandardScaler(with_std=False), LogisticRegression()).fit(x, y),
    ):
        d = from_probe(probe, SITE)
        assert isinstance(d, Direction)
        moved = x + d.scale * d.vector.numpy()
        gain = probe.decision_function(moved) - probe.decision_function(x)
        assert np.allclose(gain, 1, atol=1e-5)
        assert d.source == "probe:LogisticRegression"
        assert d.name == "1 (vs 0)"


def test_the_scale_is_the_spread_of_activations_where_they_are_given(llama):
    x, y = labelled()
    d = from_probe(
        LogisticRegression().fit(x, y), SITE, model=llama, acts=torch.from_numpy(x), classes=["no", "yes"]
    )
    assert d.scale == pytest.approx(float(np.std(x @ d.vector.double().numpy(), ddof=1)), rel=1e-5)
    assert d.model_fingerprint == llama.fingerprint
    assert d.name == "yes (vs no)"
    assert d.settings["scale_is"] == "standard deviation along it"
    assert d.settings["scale_from"]["n_rows"] == 120


def test_several_classes_give_each_weight_minus_the_mean_of_the_others():
    x, y = labelled(4)
    probe = LogisticRegression().fit(x, y)
    found = from_probe_classes(probe, SITE, name="kind")
    assert isinstance(found, DirectionSet)
    assert len(from_probe_classes(LogisticRegression().fit(x, y > 1), SITE)) == 1
    assert found.names == [f"kind {i}" for i in range(4)]
    for i, d in enumerate(found):
        w = probe.coef_[i] - np.delete(probe.coef_, i, 0).mean(0)
        assert np.allclose(d.vector, w / np.linalg.norm(w), atol=1e-5)
        scores = probe.decision_function(x + d.scale * d.vector.numpy()) - probe.decision_function(x)
        assert np.allclose(scores[:, i] - np.delete(scores, i, 1).mean(1), 1, atol=1e-5)


def test_regressions_and_plain_objects_are_probes_too():
    x, _ = labelled()
    ridge = Ridge().fit(x, x[:, 3])
    assert np.allclose(from_probe(ridge, SITE).vector, ridge.coef_ / np.linalg.norm(ridge.coef_), atol=1e-5)
    several = from_probe_classes(Ridge().fit(x, x[:, :3]), SITE)
    assert [np.argmax(np.abs(d.vector)).item() for d in several] == [0, 1, 2]
    own = from_probe(SimpleNamespace(coef_=torch.tensor([0.0, 3.0, 4.0])), SITE)
    assert own.vector.tolist() == pytest.approx([0, 0.6, 0.8])
    assert own.scale == pytest.approx(0.2)


def sweep_result(kind="probe_sweep"):
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(3, 2, 48))
    scale = np.array([[1.0, np.nan], [2.0, 3.0], [0.0, 4.0]])
    data = xr.Dataset(
        {
            "weight": (("layer", "probe", "d_model"), weight),
            "scale": (("layer", "probe"), scale),
            "auc": (("layer", "probe"), np.full((3, 2), 0.75)),
            "control_auc": (("layer", "probe"), np.full((3, 2), 0.5)),
        },
        coords={"layer": [0, 1, 2], "site": ("layer", [f"blocks.{i}.hook_resid_post" for i in range(3)]), "probe": ["logistic", "mlp"]},
        attrs={"positive": "true", "negative": "false", "n": 90},
    )  # fmt: skip
    return Result(kind, data, Provenance(model={"fingerprint": "f" * 32})), weight


def test_a_sweep_gives_its_linear_cells():
    result, weight = sweep_result()
    found = from_sweep(result)
    assert found.sites == [
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    ]  # at the last nothing varies
    assert np.allclose(found[1].vector, weight[1, 0] / np.linalg.norm(weight[1, 0]), atol=1e-6)
    assert [d.scale for d in found] == [1.0, 2.0]
    assert found[0].name == "true (vs false)"
    assert found[0].model_fingerprint == "f" * 32
    assert found[0].settings["auc"] == 0.75
    assert found.settings["with_direction"] == 2
    assert found.settings["cells"] == 3
    assert len(from_sweep(result, kind="mlp")) == 2


def test_a_real_sweep_gives_the_directions_it_gives_itself(llama):
    probes = pytest.importorskip("probes")
    import workbench as wb

    prompts = [[i, 5 + i % 2] for i in range(10, 70)]
    acts = wb.collect(llama, prompts, "blocks.*.hook_resid_post")
    sweep = probes.sweep(
        acts, [i % 2 == 0 for i in range(60)], kinds=["logistic"], n_control=1, n_bootstrap=10
    )
    for d in from_sweep(sweep):
        theirs = sweep.direction(site=d.site)
        assert torch.allclose(d.vector, theirs.vector)
        assert d.scale == pytest.approx(theirs.scale)
        assert d.name == theirs.name


def test_rows_of_a_dictionary_keep_order_names_and_norms(llama):
    matrix = torch.randn(10, 48, generator=torch.Generator().manual_seed(0))
    found = from_dictionary(matrix, SITE, [7, 2], names={7: "French"}, model=llama)
    assert found.names == ["French", "feature 2"]
    for d, j in zip(found, (7, 2), strict=True):
        assert torch.allclose(d.vector * d.scale, matrix[j], atol=1e-5)
    assert found[0].model_fingerprint == llama.fingerprint
    assert len(from_dictionary(matrix.numpy(), SITE)) == 10
    sae = SimpleNamespace(W_dec=torch.nn.Parameter(matrix))
    named = from_dictionary(sae, SITE, "c", names=list("abcdefghij"), activation=2.5)
    assert named["c"].scale == pytest.approx(2.5 * float(matrix[2].norm()), rel=1e-5)
    assert not named[0].vector.requires_grad
    assert [
        d.settings["activation"] for d in from_dictionary(sae, SITE, [1, 2], activation={1: 3, 2: 4})
    ] == [3, 4]


MATRIX = torch.eye(48)[:5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: from_probe(LogisticRegression(), SITE), "no coef_"),
        (lambda m: from_probe(SimpleNamespace(coef_=np.zeros(48)), SITE), "is zero"),
        (lambda m: from_probe(SimpleNamespace(coef_=np.ones((2, 2, 2))), SITE), "shape"),
        (lambda m: from_probe(SimpleNamespace(coef_=[np.nan, 1.0]), SITE), "NaN"),
        (lambda m: from_probe(SimpleNamespace(coef_=np.ones(50)), SITE, model=m), "width 50"),
        (lambda m: from_probe(SimpleNamespace(coef_=np.ones(48)), SITE, classes=["a"]), "1 class names"),
        (
            lambda m: from_probe(
                make_pipeline(PolynomialFeatures(), Ridge()).fit([[1.0], [2.0]], [1, 2]), SITE
            ),
            "PolynomialFeatures",
        ),
        (lambda m: from_probe(SimpleNamespace(coef_=np.ones((3, 48))), SITE), "from_probe_classes"),
        (lambda m: from_sweep(sweep_result("lens")[0]), "'lens' holds no probes"),
        (lambda m: from_sweep(sweep_result()[0], kind="logistik"), "Did you mean 'logistic'"),
        (lambda m: from_dictionary(MATRIX, SITE, 5), "0–4"),
        (lambda m: from_dictionary(MATRIX, SITE, "x", names=list("abcde")), "No feature"),
        (lambda m: from_dictionary(MATRIX, SITE, "a", names=list("aacde")), "2 features"),
        (lambda m: from_dictionary(MATRIX, SITE, names=["a"]), "1 names were given for 5"),
        (lambda m: from_dictionary(torch.zeros(5, 48), SITE, 1), "dead feature"),
        (lambda m: from_dictionary(MATRIX, SITE, []), "No features"),
        (lambda m: from_dictionary(MATRIX.T, SITE, 0, model=m), "W_dec as \\[feature, d\\]"),
        (lambda m: from_dictionary(SimpleNamespace(), SITE), "is no dictionary"),
        (lambda m: from_dictionary(MATRIX, SITE, 0, activation=-1.0), "above 0"),
        (lambda m: from_dictionary(torch.ones(5000, 2), SITE), "say which"),
    ],
)
def test_what_is_no_probe_or_dictionary_is_one_clear_error(llama, call, message):
    with pytest.raises(DataError, match=message):
        call(llama)
