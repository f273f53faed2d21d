"""Faults that a review found in the specs and commands of probes: options without effect, sites, labels of a rule."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_model
from probe_sets import DECIDED, QUICK, RECORDS
from pydantic import ValidationError
from test_probes import activations, noise

import probes
import workbench as wb
from probes.specs.apply import ApplySpec
from probes.specs.causal import CausalSpec
from probes.specs.numbers import NumbersSpec
from probes.specs.sweep import ProbeSpec
from probes.specs.transfer import TransferSpec
from workbench.errors import DataError
from workbench.progress import Silent
from workbench.runs import load_run
from workbench.specs import load_spec

SITE, GLOB = "blocks.0.hook_resid_post", "blocks.*.hook_resid_post"
FEW = {"folds": 3, "n_bootstrap": 10, "n_control": 1}
ONCE = {"n_bootstrap": 10, "n_control": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Prompts of different length at two kinds of sites, one row a prompt; the colour is the last word."""
    rows = [
        {"text": "a " * (i * 7 % 11) + r["text"], "red": r["colour"] == "red", "who": r["group"]}
        for i, r in enumerate(DECIDED)
    ]
    folder = tmp_path_factory.mktemp("store") / "acts"
    return wb.collect_to(folder, tiny_model("llama"), rows, [GLOB, "blocks.*.hook_mlp_out"], "last"), folder


def swept(folder, **fields):
    spec = ProbeSpec(store=str(folder), label_sets={"x": "red=true"}, kinds=["mass_mean"], **FEW, **fields)
    return spec, spec.run(None, Silent())


# --- stores ---------------------------------------------------------------------------------------------------------


def test_a_rule_on_a_store_stays_with_its_rows(store, workbench):
    held, folder = store
    assert (held.index.prompt[1:] < held.index.prompt[:-1]).any()
    _, found = swept(folder, sites=SITE, group_by="who")
    assert float(found.data["auc"].min()) == 1.0
    asked = ("--store", str(folder), "--label", "x=red=true", "--group-by", "who", "--sites", SITE)
    made = workbench.json("probe", *asked, "--kinds", "mass_mean", *QUICK)
    assert made["summary"]["best"]["auc"] == 1.0


def test_sites_of_a_store_that_are_asked_for_are_taken_also_where_they_are_the_default_of_a_data_set(
    store, tmp_path
):
    spec, some = swept(store[1], sites=GLOB)
    assert [s.split(".")[2] for s in some.data["site"].values] == ["hook_resid_post"] * 3
    every, all_of_it = swept(store[1])
    assert set(all_of_it.data["site"].values) == set(store[0].sites)
    for one in (spec, every):
        assert load_spec(one.save(tmp_path / f"{one is spec}.yaml")).sites == one.sites


# --- sites ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"sets": {"is": {"verb": "is"}, "was": {"verb": "was"}}}, {"by": "verb"}])
def test_a_transfer_at_several_sites_at_once_is_refused(here, how):
    spec = TransferSpec(dataset=str(here / "colours.jsonl"), site=GLOB, kinds=["mass_mean"], **how, **FEW)
    with pytest.raises(DataError, match="sites"):
        spec.run(tiny_model("llama"), Silent())
    found = spec.model_copy(update={"site": "blocks.{0}.hook_resid_post"}).run(tiny_model("llama"), Silent())
    assert found.data["auc"].shape == (2, 2, 1) and found.data.attrs["site"] == found.summary["site"] == SITE


# --- what has no effect ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, name",
    [
        ({"site": SITE}, "site"),
        ({"probe": "ridge"}, "probe"),
        ({"penalty": 2.0}, "penalty"),
        ({"positive": "true"}, "positive"),
    ],
)
def test_what_only_a_fit_looks_at_is_refused_beside_a_direction(given, name):
    with pytest.raises(ValidationError, match=f"{name} has no effect where a direction is given"):
        CausalSpec(dataset="capitals", direction="d", **given)
    CausalSpec(dataset="capitals", **given)
    CausalSpec(dataset="capitals", direction="d", labels=["true", "false"], limit=9)
    with pytest.raises(ValidationError, match="template has no effect where prompts are given"):
        CausalSpec(prompts=["a"], direction="d", template="{text} is")


@pytest.mark.parametrize(
    "option",
    [
        ["--site", "blocks.14.hook_resid_post"],
        ["--kind", "mass_mean"],
        ["--penalty", "1"],
        ["--positive", "true"],
    ],
)
def test_the_command_refuses_them_also_at_their_defaults(workbench, option):
    said = workbench.fails("probe", "causal", "colours.jsonl", "--direction", "d.st", *option)
    assert f"{option[0]} has no effect with --direction" in said
    said = workbench.fails("probe", "causal", "--prompt", "a", "--direction", "d", "--where", "verb=is")
    assert "--where has no effect with --prompt" in said


@pytest.mark.parametrize("option", [["--where", "verb=is"], ["--labels", "true,false"], ["--limit", "2"]])
def test_options_that_choose_prompts_are_refused_beside_texts(workbench, option):
    said = workbench.fails("probe", "apply", "p.st", "--text", "the Mary", *option)
    assert f"{option[0]} has no effect with --text" in said
    with pytest.raises(ValidationError, match="filter chooses prompts"):
        ApplySpec(probe="p", texts=["a"], filter={"verb": "is"})


def test_penalties_of_a_regression_are_above_zero():
    for wrong in ([-1.0], [0.0], [float("nan")], []):
        with pytest.raises(ValidationError):
            NumbersSpec(dataset="addition", targets=["a"], penalties=wrong)


# --- labels of a saved probe ----------------------------------------------------------------------------------------


def test_a_probe_of_a_rule_is_judged_by_its_rule(workbench, tmp_path):
    file, sites = str(tmp_path / "p.st"), ["--sites", "blocks.2.hook_resid_post"]
    decided = ["--labels", "true,false"]
    workbench.json(
        "probe",
        "colours.jsonl",
        *sites,
        *decided,
        "--label",
        "truth=label=true",
        *QUICK,
        "--save-probe",
        file,
    )
    assert probes.FittedProbe.load(file).training["reads"] == "label=true"
    read = workbench.json("probe", "apply", file, "--dataset", "colours.jsonl", *decided, model=False)
    assert read["summary"]["accuracy"] == 1.0 and read["summary"]["majority_accuracy"] == 0.5
    assert load_run(read["path"]).result.data["label"].values.tolist() == [
        str(r["label"] == "true") for r in DECIDED
    ]


def test_a_probe_of_another_field_is_judged_by_that_field_or_not_at_all(workbench, here, tmp_path):
    file = str(tmp_path / "p.st")
    workbench.json("probe", "colours.jsonl", "--sites", SITE, "--label", "verb", *QUICK, "--save-probe", file)
    read = workbench.json("probe", "apply", file, "--dataset", "colours.jsonl", model=False)
    labels = load_run(read["path"]).result.data["label"].values.tolist()
    assert labels == [r["verb"] for r in RECORDS]
    other = here / "other.jsonl"
    other.write_text(
        '{"text": "the store is red", "label": "is"}\n{"text": "the store is blue", "label": "was"}\n'
    )
    read = workbench.json("probe", "apply", file, "--dataset", str(other), model=False)
    assert "accuracy" not in read["summary"] and "verb" in read["summary"]["not_judged"]


# --- clear errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [np.float32(0.1), np.int64(1), torch.tensor(1.0), (0.5,)])
def test_a_penalty_is_any_number(penalty):
    found = probes.sweep(
        activations({SITE: noise(20)}), np.arange(20) % 2, penalty=penalty, folds=5.0, **ONCE
    )
    assert found.data.attrs["penalty"] == [float(np.ravel(penalty)[0])] and found.data.attrs["folds"] == 5


NA = pd.Series([True, False] * 9 + [True, None], dtype="boolean")


@pytest.mark.parametrize(
    "given, said",
    [
        ({"penalty": "0.1"}, "penalty must be a number"),
        ({"labels": None}, "labels must be a list .* not None"),
        ({"labels": 3}, "labels must be a list .* not 3"),
        ({"labels": NA}, "1 of 20 labels are None or NaN, the first at 19"),
        ({"groups": 3}, "groups must be a list"),
        ({"kinds": None}, "kinds must name"),
        ({"acts": torch.ones(20, 4)}, "store or the folder of one was expected, not Tensor"),
        ({"folds": 2.5}, "folds must be .* whole number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"labels": {1: [0, 1] * 10, "1": [0, 1] * 10}}, "names that differ as texts"),
    ],
)
def test_a_sweep_says_what_is_wrong_with_what_it_is_given(given, said):
    asked = {"acts": activations({SITE: noise(20)}), "labels": np.arange(20) % 2, **ONCE, **given}
    with pytest.raises(DataError, match=said):
        probes.sweep(asked.pop("acts"), asked.pop("labels"), **asked)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"penalties": []}, "penalties must be"),
        ({"penalties": [-1.0]}, "numbers above 0"),
        ({"penalties": [0.0]}, "numbers above 0"),
        ({"penalties": [float("nan")]}, "numbers above 0"),
        ({"n_bootstrap": 0}, "n_bootstrap must be at least 1"),
        ({"targets": {}}, "No targets"),
        ({"targets": {"a": "m"}}, "is no list of numbers"),
        ({"targets": {"a": [1.0, 2.0, 4.0], "b": [1.0, 2.0]}}, "a 3, b 2"),
    ],
)
def test_a_regression_says_what_is_wrong_with_what_it_is_given(given, said):
    asked = {"targets": np.arange(20.0), **ONCE, **given}
    with pytest.raises(DataError, match=said):
        probes.regress(activations({SITE: noise(20)}), asked.pop("targets"), **asked)


def test_a_regression_takes_one_penalty_and_says_where_there_is_no_control():
    acts = activations({SITE: noise(20)})
    found = probes.regress(acts, np.arange(20.0), penalties=2.0, n_bootstrap=5, n_control=0).data
    assert found.attrs["control"] == "none" and "control_r2" not in found and found["penalty"].item() == 2.0
