"""Faults that a review found in kinds of probes, bags, sets and files: each test fails without one mend."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probes
from probes.calibration import calibrate
from probes.conformal import ConformalSets, coverage_law
from probes.kinds import CcsProbe, CrcProbe, InputError, MlpProbe, sparse_beside_dense
from probes.mil import Bags, SawmilProbe
from probes.mil.labels import encode
from probes.saving import load_probe, save_probe
from workbench.errors import DataError


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def some_bags() -> Bags:
    """Bag i holds the number i, in three rows."""
    return Bags.of([np.full((3, 2), float(i)) for i in range(5)])


def two_kinds_of_bags() -> Bags:
    return Bags.of([rows(3, 4, seed=i) + 2 * (i % 2) for i in range(20)])


LABELS = np.arange(20) % 2


# -- bags ----------------------------------------------------------------------------------------------


def test_negative_numbers_of_bags_count_from_the_end():
    bags = some_bags()
    chosen = bags.select([-2, -1, 0, 0])
    assert chosen.prompt.tolist() == [3, 4, 0, 0]
    assert chosen.values[::3, 0].tolist() == [3, 4, 0, 0]
    assert bags.select(torch.tensor([1, 3])).prompt.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([5], "There is no bag 5: the 5 bags have the numbers 0 to 4"),
        ([-6], "There is no bag -6"),
        (np.array([True, False]), r"A mask of shape \[2\] for 5 bags"),
        (np.ones(6, dtype=bool), r"A mask of shape \[6\] for 5 bags"),
        ([0.5], "by a list of their numbers or by a mask"),
    ],
)
def test_bags_that_are_not_there_and_masks_of_another_length_are_refused(chosen, message):
    with pytest.raises(DataError, match=message):
        some_bags().select(chosen)


def test_bags_are_made_of_tensors_of_any_precision():
    half = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(2)]
    made = Bags.of([half[0].requires_grad_(), half[1]])
    assert np.array_equal(made.values, torch.cat(half).detach().float().numpy())


def test_the_score_of_bags_takes_one_label_for_each():
    bags = two_kinds_of_bags()
    probe = SawmilProbe(penalties=1.0).fit(bags, LABELS)
    assert probe.score(bags, torch.tensor(LABELS)) == (probe.predict(bags) == LABELS).mean() > 0.9
    for labels in (LABELS[:, None], [0], LABELS[:19]):
        with pytest.raises(DataError, match="for 20 bags: give one for each"):
            probe.score(bags, labels)


def test_inner_folds_of_other_bags_are_refused():
    with pytest.raises(DataError, match=r"Inner folds of shape \[18\] for 20 bags"):
        SawmilProbe().fit(two_kinds_of_bags(), LABELS, fold=[0, 1] * 9)


# -- labels --------------------------------------------------------------------------------------------


def test_labels_may_be_scalars_of_torch_and_numpy():
    classes, codes = encode(list(torch.tensor([0, 1, 0])))
    assert classes == (0, 1) and codes.tolist() == [0, 1, 0]
    assert [type(c) for c in encode(list(np.array(["no", "yes"])))[0]] == [str, str]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_label_is_no_class(missing):
    labels = [missing, 1] * 10
    with pytest.raises(InputError, match="10 of 20 labels are None or NaN, the first at 0"):
        CrcProbe().fit((rows(20, 3), rows(20, 3, seed=1)), labels)
    with pytest.raises(InputError, match="10 of 20 labels are None or NaN, the first at 0"):
        sparse_beside_dense(rows(20, 5), rows(20, 5), labels)


@pytest.mark.parametrize("make", [MlpProbe, CcsProbe])
@pytest.mark.parametrize("state", [None, np.random.RandomState(0), 0.5])
def test_what_is_no_seed_is_refused(make, state):
    X = rows(20, 2, 3) if make is CcsProbe else rows(20, 3)
    with pytest.raises(InputError, match="random_state is a whole number"):
        make(random_state=state).fit(X, LABELS)
    probe = make().set_params(random_state=np.int64(1), **({"n_steps": 2} if make is CcsProbe else {}))
    assert probe.fit(X, LABELS) is probe


@pytest.mark.parametrize("make", [MlpProbe, CcsProbe])
def test_probes_are_trained_where_a_model_was_run_without_gradients(make):
    X = torch.tensor(rows(20, 2, 3) if make is CcsProbe else rows(20, 3))
    quick = {"n_steps": 5} if make is CcsProbe else {"max_epochs": 5}
    outside = make().set_params(**quick).fit(X, LABELS)
    with torch.inference_mode():
        inside = make().set_params(**quick).fit(X.clone(), torch.tensor(LABELS))
        assert np.array_equal(inside.decision_function(X), outside.decision_function(X))


def test_probes_of_labels_that_are_scalars_of_numpy_are_saved(tmp_path):
    names = [str(n) for n in np.array(["no", "yes"])[LABELS]]
    of_numpy = np.array([np.str_(n) for n in names], dtype=object)
    assert type(of_numpy[0]) is np.str_
    probe = probes.LogisticProbe().fit(rows(20, 3), of_numpy)
    back = load_probe(save_probe(probe, tmp_path / "rows"))
    assert back.classes_.tolist() == ["no", "yes"]
    assert np.array_equal(back.predict(rows(20, 3)), probe.predict(rows(20, 3)))
    bags = two_kinds_of_bags()
    sawmil = SawmilProbe(penalties=1.0).fit(bags, list(np.array(names)))
    back = load_probe(save_probe(sawmil, tmp_path / "bags"))
    assert back.classes_ == ("no", "yes") and np.array_equal(back.predict(bags), sawmil.predict(bags))


# -- sparse probes -------------------------------------------------------------------------------------


def test_permuted_labels_that_no_latent_tells_apart_are_at_chance_and_stop_nothing():
    y = np.arange(40) % 2
    for seed in range(5):
        on = (np.random.default_rng(seed).random(40) < 0.3) | (y == 1)
        latents = np.stack([on, np.zeros(40)], 1).astype(np.float32)
        found = sparse_beside_dense(latents, rows(40, 5), y, n_bootstrap=5, seed=seed).data
        assert float(found["auc"].sel(k=1)) > 0.75 and found["feature"].values[0] == 0
        assert 0.2 < float(found["control_auc"].sel(k=1)) < 0.8
    with pytest.raises(InputError, match="None of 2 features differs"):
        sparse_beside_dense(np.zeros((40, 2)), rows(40, 5), y)


# -- sets and scores -----------------------------------------------------------------------------------


def test_a_set_of_several_classes_is_answered_with_the_one_that_fits_best():
    random = np.random.default_rng(0)
    p = random.dirichlet(np.full(3, 2.0), size=300)
    y = np.array([random.choice(3, p=q) for q in p])
    sets = ConformalSets(alpha=0.1, abstain="empty").fit(p[:60], y[:60])
    values, answers = sets.p_values(p[60:]), sets.answers(p[60:])
    ties = ((values == values.max(1, keepdims=True)).sum(1) > 1) & (answers >= 0)
    assert ties.sum() > 5
    assert np.array_equal(answers[answers >= 0], p[60:].argmax(1)[answers >= 0])
    strict = ConformalSets(alpha=0.1).fit(p[:60], y[:60])
    one = strict.contains(p[60:]).sum(1) == 1
    assert np.array_equal(strict.answers(p[60:])[one], strict.contains(p[60:])[one].argmax(1))


def test_there_is_no_law_of_coverage_where_nothing_can_be_ruled_out():
    with pytest.raises(DataError, match="5 calibration rows no class is ever ruled out .* At least 9"):
        coverage_law(5, 100, 0.1)
    assert coverage_law(9, 100, 0.1).mean() / 100 == pytest.approx(0.9)


def test_scores_and_labels_the_wrong_way_round_are_one_clear_error():
    with pytest.raises(DataError, match="Scores are numbers.*labels come after them"):
        calibrate(["no", "yes"] * 5, rows(10))
