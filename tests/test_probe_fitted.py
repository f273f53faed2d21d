"""A fitted probe knows where it belongs: site, model, classes, training rows; and gives directions there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from test_probe_saving import data, same

from probes.estimators import LogisticProbe
from probes.fitted import FittedProbe
from probes.kinds import CrcProbe, MlpProbe, MultinomialProbe, RidgeProbe
from probes.saving import save_probe
from workbench.activations import Activations
from workbench.errors import DataError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.provenance import Provenance

POST = "blocks.{}.hook_resid_post"


def activations(sites: dict[str, np.ndarray]) -> Activations:
    """Made-up activations, one row per prompt."""
    n = len(next(iter(sites.values())))
    return Activations(
        values={site: torch.tensor(rows, dtype=torch.float32) for site, rows in sites.items()},
        prompt=np.arange(n),
        position=np.full(n, 3),
        token_id=np.zeros(n, dtype=np.int64),
        token=("a",) * n,
        n_prompts=n,
        provenance=Provenance(
            model={"fingerprint": "f", "name": "ours"}, inputs={"sha256": "abc"}, settings={"positions": "-1"}
        ),
    )


def placed(**more):
    """A probe for a difference planted along axis 0, at block 3."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(60) % 2)
    rows = random.normal(size=(60, 12))
    rows[:, 0] += 2 * labels - 1
    acts = activations({POST.format(3): rows})
    return FittedProbe.of(LogisticProbe().fit(rows.astype(np.float32), labels), acts, **more), acts, labels


def test_a_probe_takes_its_place_from_the_activations_and_keeps_it_on_disk(tmp_path):
    fitted, acts, _ = placed(classes=["false", "true"], name="truth", scores={"auc": 0.9, "control_auc": 0.5})
    assert (fitted.site, fitted.position, fitted.model_fingerprint) == (POST.format(3), "-1", "f")
    assert fitted.training["n"] == 60 and fitted.training["data"] == "abc"
    back = FittedProbe.load(fitted.save(tmp_path / "p.safetensors"))
    for name in ("site", "position", "classes", "training", "scores", "provenance", "name", "model_name"):
        assert getattr(back, name) == getattr(fitted, name)
    assert same(back.decision_function(acts), fitted.decision_function(acts))
    assert same(back.direction().vector, fitted.direction().vector)
    save_probe(fitted.estimator, tmp_path / "bare")
    with pytest.raises(DataError, match="LogisticProbe without a site"):
        FittedProbe.load(tmp_path / "bare")


def test_it_scores_activations_and_raw_tensors_alike_in_any_shape():
    fitted, acts, labels = placed()
    rows = acts.rows(POST.format(3))
    assert np.allclose(fitted.decision_function(acts), fitted.estimator.decision_function(rows.numpy()))
    assert fitted.predict(rows.reshape(6, 10, -1)).shape == (6, 10)
    assert fitted.predict_proba(rows.reshape(6, 10, -1)).shape == (6, 10, 2)
    assert fitted.decision_function(rows[0]).shape == ()
    assert np.mean(fitted.predict(acts) == labels) > 0.7
    with pytest.raises(DataError, match=r"shape \[60, 11\] do not fit probe 'LogisticProbe' of width 12"):
        fitted.predict(rows[:, 1:])


def test_another_site_or_model_is_refused_and_both_sides_are_named():
    fitted, acts, _ = placed(name="truth")
    elsewhere = replace(acts, values={POST.format(4): acts.rows(POST.format(3))})
    with pytest.raises(
        SiteError, match=r"'truth' belongs to 'blocks.3.hook_resid_post'.*hold 'blocks.4.*Collect"
    ):
        fitted.predict(elsewhere)
    model = {"fingerprint": "g", "name": "other"}
    other = replace(acts, provenance=replace(acts.provenance, model=model))
    with pytest.raises(DataError, match=r"fingerprint f, these activations are of other with g.*force=True"):
        fitted.predict(other)
    assert same(fitted.predict(other, force=True), fitted.predict(acts))
    wide = replace(acts, values={POST.format(3): torch.ones(60, 3, 5)})
    with pytest.raises(DataError, match="fitted to 12 features, but 'blocks.3.hook_resid_post' has 15"):
        fitted.predict(wide, force=True)


def test_a_model_is_checked_for_site_width_and_fingerprint():
    model = LanguageModel(tiny.hf_model("llama"), tiny.tokenizer(), name="tiny-llama")
    rows = np.random.default_rng(0).normal(size=(20, model.d_model))
    estimator = LogisticProbe().fit(rows, np.arange(20) % 2)

    def at(site, fingerprint):
        return FittedProbe.of(estimator, site=site, fingerprint=fingerprint, name="truth")

    at(POST.format(1), model.fingerprint).check(model)
    at(POST.format(1), "").check(model)
    with pytest.raises(DataError, match="^Probe 'truth' is for 'blocks.77"):
        at(POST.format(77), "").check(model)
    with pytest.raises(DataError, match="^Probe 'truth' was made on a model with fingerprint other"):
        at(POST.format(1), "other").check(model)
    at(POST.format(1), "other").check(model, force=True)
    with pytest.raises(DataError, match="^Probe 'truth' has width"):
        at("blocks.1.mlp.hook_post", "").check(model)


# -- directions ----------------------------------------------------------------------------------------


def test_the_direction_points_to_the_second_class_with_the_rows_own_spread():
    fitted, acts, _ = placed(classes=["false", "true"], name="truth")
    found = fitted.direction()
    assert found.site == POST.format(3) and found.model_fingerprint == "f" and found.vector[0] > 0.8
    assert found.name == "truth: true (vs false)" and found.source == "probe:LogisticProbe"
    spread = (acts.rows(POST.format(3)).double() @ found.vector.double()).std(correction=0)
    assert np.isclose(found.scale, float(spread))
    assert np.isclose(fitted.direction("false").cosine(found), -1)
    by_hand = FittedProbe.of(fitted.estimator, site=POST.format(3)).direction()
    assert by_hand.settings["scale_is"] == "one unit of the score"
    moved = acts.rows(POST.format(3))[:1].double() + by_hand.scale * by_hand.vector.double()
    change = fitted.decision_function(moved) - fitted.decision_function(acts.rows(POST.format(3))[:1])
    assert np.isclose(change.item(), 1, rtol=1e-5)


def test_many_classes_and_outputs_have_a_direction_each_and_an_mlp_has_none():
    rows, label = data("lda", 0, 60, 6, ["a", "b", "c"])
    fitted = FittedProbe.of(MultinomialProbe().fit(rows, label), site="s", classes=["A", "B", "C"])
    weights = fitted.estimator.coef_
    expected = weights[1] - weights[[0, 2]].mean(0)
    for name in ("B", "b"):  # by its meaning here or by the estimator's name
        assert np.allclose(fitted.direction(name).vector, expected / np.linalg.norm(expected), atol=1e-6)
    with pytest.raises(
        DataError, match="direction for every class, and one must be named: give of= one of 'A', 'B'"
    ):
        fitted.direction()
    with pytest.raises(DataError, match="there is no class 'D'"):
        fitted.direction("D")
    ridge = FittedProbe.of(RidgeProbe().fit(rows, rows[:, :2]), site="s")
    assert np.allclose(np.abs(ridge.direction(1).vector).argmax(), 1)
    with pytest.raises(DataError, match="every output, and one must be named"):
        ridge.direction()
    with pytest.raises(DataError, match="RidgeProbe has no predict_proba"):
        ridge.predict_proba(rows)
    mlp = FittedProbe.of(MlpProbe(width=2, max_epochs=2).fit(rows, label), site="s")
    with pytest.raises(DataError, match="MlpProbe is not linear, so it has no one direction"):
        mlp.direction()


def test_probes_on_pairs_take_two_sets_of_activations_and_say_if_their_sign_is_open():
    pairs, _ = data("ccs", 0, 40, 12, [0, 1])
    fitted = FittedProbe.of(CrcProbe().fit(pairs), site=POST.format(3), fingerprint="f")
    halves = tuple(activations({POST.format(3): pairs[:, i]}) for i in (0, 1))
    expected = fitted.estimator.decision_function(pairs)
    assert np.allclose(fitted.decision_function(halves), expected, atol=1e-4)
    assert np.allclose(fitted.decision_function(pairs), expected)
    assert fitted.direction().settings["sign_determined"] is False


def test_places_that_make_no_sense_are_refused():
    fitted, acts, _ = placed()
    estimator = fitted.estimator
    two = activations({POST.format(i): np.ones((20, 12)) for i in (1, 2)})
    for make, message in [
        (lambda: FittedProbe(estimator, site=""), "belongs to a site"),
        (lambda: FittedProbe(LogisticProbe(), site="s"), "LogisticProbe is not fitted"),
        (lambda: FittedProbe.of(estimator, two), "hold 2 sites: say at which"),
        (lambda: FittedProbe.of(estimator, acts, classes=["a", "b", "c"]), "3 names for the 2 classes"),
        (lambda: FittedProbe.of(estimator, acts, scores={"x": object()}), "must fit in JSON"),
        (
            lambda: FittedProbe.of(estimator, activations({"s": np.ones((20, 5))}), site="s"),
            "fitted to 12 features",
        ),
    ]:
        with pytest.raises(DataError, match=message):
            make()
    with pytest.raises(SiteError, match="Did you mean"):
        FittedProbe.of(estimator, acts, site="blocks.3.hook_resid_pos")
