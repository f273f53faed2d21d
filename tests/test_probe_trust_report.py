"""The trust report on tiny models: every control at its own value, the same folds as a sweep, differences paired."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from conftest import hooks_left, tiny_model

import probes
import workbench as wb
from probes.trust import split_by, table, text_only, transfer_matrix, trust_report
from probes.trust.fitting import Scorer, held_out, interval
from workbench.datasets import PromptSet, Statement
from workbench.errors import Cancelled, DataError
from workbench.progress import Silent
from workbench.results import Result

NAMES = ["Mary", "John", "Anna", "Tom", "France", "Paris", "Rome", "Italy", "store", "drink"]
QUICK = {"kind": "mass_mean", "n_bootstrap": 60, "n_control": 2, "folds": 4}


def colours(n: int = 80, seed: int = 0) -> PromptSet:
    """The label is the colour, which stands before the last word: text gives it away, and so does any model."""
    random = np.random.default_rng(seed)
    records = []
    for i in range(n):
        name, up = NAMES[random.integers(len(NAMES))], i % 2 == 0
        colour = random.choice(["red", "green"] if up else ["blue", "two"])
        text = f"the {name} was {colour} in {random.choice(NAMES)}"
        records.append(Statement(id=f"{i:03d}", text=text, label=str(up).lower(), group=f"g{i // 2}"))
    return PromptSet("colours", "statements", tuple(records))


@pytest.fixture(scope="module")
def report() -> Result:
    return trust_report(tiny_model("llama"), colours(), random_position=True, **QUICK)


def test_the_report_has_every_control_by_layer_with_intervals_and_n(report):
    data = report.data
    assert report.kind == "probe_trust" and data["auc"].dims == ("layer", "control")
    assert data["control"].values.tolist() == [
        "probe", "shuffled labels", "random token", "untrained model", "untrained, trained embedding",
        "random position", "majority", "bag of words", "character n-grams", "length", "token count",
    ]  # fmt: skip
    for name in ("auc", "accuracy", "difference", "selectivity"):
        assert (data[f"{name}_low"] <= data[name] + 0.02).all() and (
            data[name] <= data[f"{name}_high"] + 0.02
        ).all()
    assert (data["n"] == 80).all() and data.attrs["grouped"] and data.attrs["n_groups"] == 40
    assert (data["difference"].sel(control="probe") == 0).all()
    assert np.allclose(data["difference"], data["auc"].sel(control="probe") - data["auc"])
    assert "rows within groups" in data.attrs["control"] and data.attrs["dataset"] == "colours"


def test_the_probe_is_that_of_a_sweep_and_the_text_that_of_the_text_baselines(report):
    statements, model = colours(), tiny_model("llama")
    acts = wb.collect(model, statements.texts)
    sweep = probes.sweep(
        acts, statements.labels, groups=statements.groups, kinds="mass_mean", folds=4, n_bootstrap=5
    )
    own = report.data.sel(control="probe")
    assert np.allclose(own["auc"], sweep.data["auc"].isel(probe=0))
    assert np.allclose(own["accuracy"], sweep.data["accuracy"].isel(probe=0))
    text = text_only(statements.texts, statements.labels, groups=statements.groups, folds=4, n_bootstrap=5)
    for name in ("bag of words", "length", "majority"):
        expected = float(text.data["auc"].sel(baseline=name))
        assert np.allclose(report.data["auc"].sel(control=name), expected)
    assert float(text.data["auc"].sel(baseline="bag of words")) > 0.95


def test_a_label_in_the_words_is_no_credit_to_training(report):
    """Random weights carry the colour to the last token as well as others do: no difference is clearly above 0."""
    at = report.data.isel(layer=-1)
    assert float(at["auc"].sel(control="bag of words")) > float(at["auc"].sel(control="probe"))
    assert abs(float(at["auc"].sel(control="shuffled labels")) - 0.5) < 0.2
    assert report.summary["strongest"]["name"] in ("bag of words", "character n-grams")
    assert report.summary["margins"]["bag of words"][0] <= 0


def test_differences_are_paired_by_the_same_draws_of_groups():
    random = np.random.default_rng(0)
    y, groups = np.arange(60) % 2 == 0, np.arange(60) // 3
    x = random.normal(size=(60, 5)) + y[:, None]
    fold = groups % 4
    scorer = Scorer(fold, groups, n=200, seed=1)
    a = held_out(x, y[None], fold, "mass_mean")[0]
    b = a + 1e-9  # the same order: whatever is drawn, the difference is nothing
    low, high = interval(scorer.auc_draws(a, y) - scorer.auc_draws(b, y))
    assert low == high == 0 and interval(scorer.auc_draws(a, y))[0] < scorer.auc(a, y)


def test_the_table_is_of_the_best_layer_or_the_one_asked_for(report):
    best = table(report)
    assert best["control"].tolist() == report.data["control"].values.tolist()
    expected = report.data["auc"].sel(layer=report.summary["best"]["layer"]).values
    assert np.allclose(best["auc"], expected) and len(table(report, 0)) == len(best)
    with pytest.raises(DataError, match="no layer 7; it has 0, 1, 2"):
        table(report, 7)
    with pytest.raises(DataError, match="'other' is no trust report"):
        table(Result("other", report.data, report.provenance))


def test_texts_with_labels_types_and_sites_of_any_kind(tmp_path):
    model = tiny_model("gpt2")
    statements = colours(40)
    sites = ["hook_embed", "blocks.1.hook_mlp_out"]
    result = trust_report(
        model,
        statements.texts,
        statements.labels,
        types=[t.split()[1] for t in statements.texts],
        sites=sites,
        **QUICK,
    )
    assert result.data["auc"].dims == ("site", "control") and not result.data.attrs["grouped"]
    assert result.data.attrs["n_types"] <= len(NAMES) and result.summary["best"]["site"] in sites
    again = trust_report(
        model,
        statements.texts,
        statements.labels,
        types=[t.split()[1] for t in statements.texts],
        sites=sites,
        **QUICK,
    )
    assert result.data.identical(again.data) and hooks_left(model) == 0
    result.save(tmp_path / "r.zarr")
    assert Result.load(tmp_path / "r.zarr").data.identical(result.data)
    assert result.provenance.model["fingerprint"] == model.fingerprint
    assert set(result.provenance.settings["untrained"]) == {"untrained model", "untrained, trained embedding"}


def test_the_embedding_of_the_twin_that_keeps_it_gives_the_models_own_scores():
    model = tiny_model("llama")
    result = trust_report(model, colours(40), sites="hook_embed", position=3, **QUICK)
    at = result.data["auc"].isel(site=0)
    assert float(at.sel(control="untrained, trained embedding")) == float(at.sel(control="probe"))
    gap = result.data.isel(site=0).sel(control="untrained, trained embedding")
    assert float(gap["difference_low"]) == float(gap["difference_high"]) == 0  # the same draws on both sides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a"] * 8}, "8 texts without labels"),
        ({"prompts": [[1, 2]] * 8, "labels": [0, 1] * 4}, "needs texts"),
        ({"prompts": ["the red", "the blue"] * 8, "labels": [0, 1] * 4}, "8 labels for 16 rows"),
        (
            {"prompts": ["the red", "the blue"] * 8, "labels": [0, 1] * 8, "types": ["a"]},
            "1 types for 16 texts",
        ),
        ({"prompts": ["the red", "the red"] * 8, "labels": [0, 1] * 8}, "give `types` yourself"),
        ({"prompts": colours(8), "kind": "masmean"}, "Did you mean 'mass_mean'"),
        ({"prompts": colours(8), "n_control": 0}, "n_control at least 1"),
        ({"prompts": colours(6)}, "fewer than the 4 folds"),
        ({"prompts": wb.datasets.load("plain-text")[:4]}, "holds texts: a probe needs statements"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    with pytest.raises(DataError, match=message):
        trust_report(tiny_model("llama"), **{**QUICK, **arguments})


def test_a_cancel_stops_it_and_leaves_no_hook():
    model = tiny_model("llama")

    class Stop(Silent):
        def stage(self, name, total):
            if name == "probe":
                assert total == 3
                raise Cancelled

    with pytest.raises(Cancelled):
        trust_report(model, colours(40), progress=Stop(), **QUICK)
    assert hooks_left(model) == 0


# -- the known answer ----------------------------------------------------------------------------------


def test_statements_of_the_known_answer_are_balanced_within_groups_of_both_topics():
    from benchmarks.known_truth import SETS, statements

    texts, labels, groups, kinds = statements()
    home: dict[str, str] = {}
    for name in SETS:
        at = [i for i, some in enumerate(kinds) if name in some]
        balance: Counter[object] = Counter()
        for i in at:
            sign = {"true": 1, "false": -1}[labels[i]]
            for word in re.findall(r"[A-Z][\w' -]*", texts[i].removeprefix("The capital of ")):
                balance[groups[i], word.split(" is ")[0].split(" lies ")[0]] += sign
        assert not any(balance.values()) and len(at) > 300
        for i in at:  # a country stands in one group, in whichever set
            country = texts[i].removeprefix("The capital of ").split(" is ")[0].split(" lies ")[0]
            assert home.setdefault(country, groups[i]) == groups[i]
    assert sum("made up" in some for some in kinds) == 156
    assert {label for label, some in zip(labels, kinds, strict=True) if "made up" in some} == {"neither"}


@pytest.mark.real_model
def test_what_smollm2_has_of_truth_turns_round_under_negation_and_carries_over_to_another_sentence(smollm2):
    statements = wb.datasets.load("capitals").filter(label=["true", "false"])
    acts = wb.collect(smollm2, statements.texts, "blocks.12.hook_resid_post")
    kinds = [
        "negated" if n else t for n, t in zip(*map(statements.column, ("negated", "template")), strict=True)
    ]
    sets = split_by(acts, statements.labels, kinds, statements.groups)
    data = transfer_matrix(sets, kinds="mass_mean", n_bootstrap=200).data.isel(probe=0)
    turned = data.sel(train="capital-of", test="negated")
    assert turned["auc_high"] < 0.4 and turned["cosine"] < -0.5
    carried = data.sel(train="is-the-capital", test="capital-of")
    assert carried["auc_low"] > 0.7 and abs(carried["control_auc"] - 0.5) < 0.2
    assert (np.diag(data["auc"]) > 0.58).all()
