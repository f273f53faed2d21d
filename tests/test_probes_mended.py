"""Faults that a review found: rows and labels of a store, controls over groups, scores by penalty, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from test_probes import POST, activations, noise

import probes
import workbench as wb
from probes.cells import Task
from probes.folds import assign_folds, permute_labels
from probes.labels import arrange
from probes.mil.bags import make_bags
from probes.scores import Bootstrap
from probes.source import open_source
from probes.stream import _found
from probes.trust import by_layer, permutation_test, transfer_matrix
from probes.trust.labels import two_classes
from workbench.errors import DataError
from workbench.sites.names import SiteError

QUICK = {"n_bootstrap": 10, "n_control": 1}
SITE = POST.format(0)
WORDS = ["the", "a", "Mary", "John", "went", "to", "store", "and"]


def records(n: int = 60) -> list[dict]:
    """Prompts of different length; the last word is the label."""
    random = np.random.default_rng(0)
    texts = [random.choice(WORDS, random.integers(1, 9)).tolist() for _ in range(n)]
    return [
        {
            "text": " ".join([*words, ("blue", "red")[i % 2]]),
            "red": bool(i % 2),
            "g": i // 4,
            "m": float(i % 2) + i / 1e4,
        }
        for i, words in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A store whose rows stand in another order than its prompts, and the same in memory."""
    model, rows = tiny_model("llama"), records()
    folder = tmp_path_factory.mktemp("held")
    store = wb.collect_to(folder / "last", model, rows, SITE, "last")
    bags = wb.collect_to(folder / "all", model, rows, SITE, "all")
    assert not (np.diff(store.index.prompt) > 0).all()
    texts = [r["text"] for r in rows]
    return store, bags, wb.collect(model, texts, SITE), wb.collect(model, texts, SITE, "all"), rows


# --- rows of a store ------------------------------------------------------------------------------------------------


def test_a_label_of_a_store_stays_with_its_rows_however_they_are_ordered(held):
    store, _, acts, _, rows = held
    red, group = [r["red"] for r in rows], [r["g"] for r in rows]
    known = probes.sweep(acts, red, groups=group, kinds="mass_mean", **QUICK).data
    assert float(known["auc"].min()) == 1.0
    by_name = {"labels": "red", "groups": "g"}
    for asked in (by_name, {"labels": {"x": "red"}, "groups": "g"}, {"labels": red, "groups": group}):
        found = probes.sweep(store, kinds="mass_mean", **asked, **QUICK).data
        for key in ("auc", "control_auc", "log_loss"):
            np.testing.assert_allclose(found[key].values, known[key].values, atol=1e-4)
    tested = permutation_test(store, "red", groups="g", n=19, kinds="mass_mean")
    assert float(tested.data["auc"].min()) == 1.0


def test_numbers_of_a_store_stay_with_their_rows(held):
    store, _, acts, _, rows = held
    known = probes.regress(acts, {"m": [r["m"] for r in rows]}, **QUICK).data["r2"].values
    found = probes.regress(store, {"m": "m"}, **QUICK).data["r2"].values
    np.testing.assert_allclose(found, known, atol=1e-3)
    assert found.min() > 0.9


def test_labels_of_the_rows_of_a_store_are_refused_where_they_are_read_as_those_of_its_prompts(held):
    store, rows = held[0], held[4]
    per_row = store.index.labels("red")
    for given in (per_row, ["yes" if v else "no" for v in per_row], torch.tensor(per_row.astype(bool))):
        with pytest.raises(
            DataError, match="are the label 'red' of the store's rows, which stand in another order"
        ):
            probes.sweep(store, given, **QUICK)
    with pytest.raises(DataError, match="groups are the label 'g' of the store's rows"):
        probes.sweep(store, "red", groups=store.index.labels("g"), **QUICK)
    with pytest.raises(DataError, match="'m' are the label 'm' of the store's rows"):
        probes.regress(store, {"m": store.index.labels("m")}, **QUICK)
    arrange(store, [r["red"] for r in rows], [r["g"] for r in rows])  # in the order of prompts: as documented


def test_bags_of_a_store_are_those_of_the_same_prompts_in_memory(held):
    _, store, _, acts, _ = held
    one, two = make_bags(store, SITE, max_tokens=4), make_bags(acts, SITE, max_tokens=4)
    assert one.sizes.tolist() == two.sizes.tolist()
    np.testing.assert_allclose(one.values, two.values, atol=1e-4)


# --- groups ---------------------------------------------------------------------------------------------------------


def test_one_mixed_group_does_not_make_the_control_of_all_others_easy():
    groups = np.repeat(np.arange(12), 5)
    code = np.repeat(np.arange(12) % 3, 5)
    code[:2] = 1  # group 0 has two labels
    fold = assign_folds(code, groups, n=3, seed=0, names=["a", "b", "c"])
    permuted, level = permute_labels(code, fold, groups, n=30, seed=0)
    assert level == "groups (1 mixed group within itself)"
    for labels in permuted:
        assert sorted(labels[:5]) == sorted(code[:5])
        assert all(len(set(labels[groups == g])) == 1 for g in range(1, 12))
        assert all(sorted(labels[fold == f]) == sorted(code[fold == f]) for f in range(3))
    assert len({tuple(labels[:5]) for labels in permuted}) > 3 and (permuted[:, 5:] != code[5:]).any()
    with pytest.raises(DataError, match="No label can be permuted"):
        permute_labels(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), n=1, seed=0)
    own = np.where(
        groups < 4, 2, np.arange(60) % 2
    )  # a class in groups of its own: else it would never be moved
    assert permute_labels(own, np.zeros(60, int), groups, n=1, seed=0)[1] == "rows"
    said = probes.sweep(activations({SITE: noise(60)}), code > 0, groups=groups, folds=3, **QUICK).data.attrs
    assert said["control"].startswith(
        "labels permuted over groups (1 mixed group within itself) within folds"
    )


def test_the_control_of_a_target_does_not_depend_on_the_others():
    random, groups = np.random.default_rng(0), np.repeat(np.arange(18), 5)
    acts = activations({SITE: random.normal(size=(18, 12))[groups]})
    whole, loose = random.normal(size=18)[groups], random.normal(size=90)
    partly = whole.copy()
    partly[:2] += 1
    one = probes.regress(acts, {"a": whole}, groups=groups, n_bootstrap=10)
    each = {"a": whole, "b": loose, "c": partly}
    many = probes.regress(acts, each, groups=groups, n_bootstrap=10)
    for key in ("control_r2", "control_r2_high"):
        np.testing.assert_allclose(many.data[key].sel(target="a"), one.data[key].sel(target="a"), rtol=1e-9)
    said = "groups (a) or rows (b) or groups, the rows of 1 mixed ones among themselves (c)"
    assert one.data.attrs["control"] == "targets permuted over groups, 5 times"
    assert many.data.attrs["control"] == f"targets permuted over {said}, 5 times"
    # 12 features of 18 groups: a permuted target that keeps its groups is fitted, and fails; permuted rows are not
    control = many.data["control_r2"].isel(layer=0)
    assert control.sel(target="a") < -1 and control.sel(target="c") < -1 < control.sel(target="b")


def test_groups_of_rows_are_joined_where_a_prompt_connects_them():
    acts = activations({SITE: noise(24)}, positions=2)  # 12 prompts of two rows
    assert np.bincount(acts.prompt).tolist() == [2] * 12
    groups = (
        (np.arange(24) + 1) // 2 % 12
    )  # each group has the second row of a prompt and the first of the next
    with pytest.raises(DataError, match="connect all prompts"):
        arrange(acts, np.arange(24) % 2, groups)
    some = np.where(np.arange(24) % 4 == 3, acts.prompt - 1, acts.prompt)  # pairs of prompts share one group
    found = arrange(acts, np.arange(24) % 2, some).groups
    assert found is not None and len(set(zip(found, np.repeat(np.arange(6), 4), strict=True))) == 6
    assert len(set(found)) == 6


# --- scores ---------------------------------------------------------------------------------------------------------


def test_the_log_loss_of_a_streamed_ridge_at_every_penalty_is_that_of_held_out_log_odds():
    random, up = np.random.default_rng(0), np.arange(200) % 2
    fold = np.repeat(np.arange(4), 50)
    scores = np.stack([c * (up - 0.5 + random.normal(size=200)) for c in (0.01, 1.0)])[:, None]
    task = Task(up[None], 1, 2, fold, Bootstrap(None, 200, n=5, seed=0))
    final = torch.zeros(2, 3, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    found = _found(task, scores, final, (0.1, 10.0), "ridge", torch.zeros(3, dtype=torch.float64))
    for p in range(2):
        loss = 0.0
        for f in range(4):
            train, held = fold != f, fold == f
            n1, n0 = up[train].sum(), (1 - up[train]).sum()
            goal = np.r_[
                np.full(n1, (n1 + 1) / (n1 + 2)), np.full(n0, 1 / (n0 + 2))
            ]  # Platt's targets, as weights
            x = np.r_[scores[p, 0][train][up[train] == 1], scores[p, 0][train][up[train] == 0]]
            size = x.std()
            fit = LogisticRegression(C=1e9, tol=1e-10).fit(
                np.r_[x, x][:, None] / size,
                np.r_[np.ones(150), np.zeros(150)],
                sample_weight=np.r_[goal, 1 - goal],
            )
            z = fit.coef_[0, 0] * scores[p, 0][held] / size + fit.intercept_[0]
            loss += -np.log(np.where(up[held] == 1, expit(z), expit(-z))).sum() / 200
        assert found.log_loss[p, 0] == pytest.approx(loss, abs=1e-4)


def test_a_huge_constant_feature_does_not_hide_the_others(held):
    y = np.arange(60) % 2
    x = np.stack([np.full(60, 3e6), np.where(y, 1.0, -1.0) + 0.1 * noise(60)[:, 0]], 1)
    found = probes.sweep(activations({SITE: x}), y, **QUICK).data
    assert float(found["auc"].min()) == 1.0 and found.attrs["constant_sites"] == []
    flat = open_source(activations({SITE: np.tile([3e6, 0.0, -1.0], (60, 1))}))
    values, constant = flat.take(SITE, np.arange(60))
    assert constant and not values.any()


def test_what_a_kind_says_at_one_penalty_stands_at_that_penalty():
    y = np.arange(60) % 2
    path = [1e-5, 1e-2, 10.0]
    found = probes.sweep(
        activations({SITE: noise(60)}), y, kinds=["ridge", "mass_mean"], penalty=path, **QUICK
    )
    curve = found.data["log_loss_by_penalty"].isel(layer=0)
    at = float(found.data["penalty"].isel(layer=0).sel(probe="ridge"))
    ridge = curve.sel(probe="ridge").values
    assert np.flatnonzero(np.isfinite(ridge)).tolist() == [int(np.argmin(np.abs(np.array(path) - at)))]
    assert np.isnan(curve.sel(probe="mass_mean").values).all()


def test_a_direction_is_by_default_of_the_best_among_the_cells_that_are_asked_for():
    a, b = noise(80, seed=1), noise(80, seed=2)
    labels = {"a": a[:, 0] > np.median(a[:, 0]), "b": b[:, 0] > np.median(b[:, 0])}
    found = probes.sweep(
        activations({SITE: a, POST.format(1): b}), labels, kinds="logistic", penalty=1.0, **QUICK
    )
    for name in "ab":
        assert found.direction(label=name).site == found.summary["best_by_label"][name]["site"]
    assert found.direction(label="a").site != found.direction(label="b").site
    code = np.arange(90) % 3
    x = noise(90)
    x[np.arange(90), code] += 3
    several = probes.sweep(activations({SITE: x}), code, kinds="logistic", penalty=1.0, **QUICK)
    assert several.direction(cls=2).name == several.direction(cls="2").name == "2 (vs the rest)"


# --- sites and classes ----------------------------------------------------------------------------------------------


def test_sets_that_write_their_labels_differently_are_not_turned_round():
    y = np.arange(60) % 2
    x = np.random.default_rng(0).normal(size=(60, 4)) + 3 * y[:, None]
    numbers, texts = np.where(y, 10, 2).tolist(), np.where(y, "10", "2").tolist()
    found = transfer_matrix({"a": (x, numbers), "b": (x.copy(), texts)}, kinds="mass_mean", **QUICK)
    assert float(found.data["auc"].min()) > 0.9
    assert two_classes([0, True], 2)[1] == (0, True) and two_classes([0, 1.0], 2)[1] == (0, 1.0)
    assert two_classes([1, "a"], 2)[1] == (1, "a")


def test_a_pattern_stands_for_one_site_or_is_refused():
    y, one, glob = np.arange(40) % 2, activations({SITE: noise(40)}), "blocks.*.hook_resid_post"
    two = activations({SITE: noise(40), POST.format(1): noise(40, seed=1)})
    with pytest.raises(DataError, match="stands for 2 sites"):
        transfer_matrix({"a": (two, y), "b": (two, y)}, site=glob, **QUICK)
    assert transfer_matrix({"a": (one, y), "b": (one, y)}, site=glob, **QUICK).data.attrs["site"] == SITE
    assert list(by_layer(two, y, sites=[glob])) == list(by_layer(two, y, sites=glob)) == ["0", "1"]
    fitted = probes.LogisticProbe().fit(noise(40), y)
    with pytest.raises((DataError, SiteError), match="stands for 2 sites"):
        probes.FittedProbe.of(fitted, two, site=glob)
    assert probes.FittedProbe.of(fitted, one, site=glob).site == SITE


def test_names_of_classes_in_another_order_and_probes_of_bags_are_refused():
    fitted = probes.LogisticProbe().fit(noise(40), np.where(np.arange(40) % 2, "true", "false"))
    with pytest.raises(DataError, match="in another order"):
        probes.FittedProbe(fitted, SITE, classes=("true", "false"))
    assert probes.FittedProbe(fitted, SITE, classes=("no", "yes")).classes == ("no", "yes")
    bags = probes.mil.Bags.of([noise(3, seed=i) + 2 * (i % 2) for i in range(20)])
    with pytest.raises(DataError, match="SawmilProbe does not read one activation"):
        probes.FittedProbe.of(probes.mil.SawmilProbe(penalties=(1.0,)).fit(bags, [0, 1] * 10), site=SITE)
