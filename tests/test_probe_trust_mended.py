"""Faults that a review found in the controls, specs and commands of probes: NaN, ties, settings, options without effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import tiny_model
from probe_sets import QUICK
from pydantic import ValidationError
from test_probes import activations, noise

import probes
import workbench as wb
from probes.cli.transfer import parts
from probes.erasure import erase_scores
from probes.scores import auc
from probes.specs.apply import ApplySpec
from probes.specs.erase import EraseSpec
from probes.specs.mil import MilSpec
from probes.specs.numbers import NumbersSpec
from probes.trust.fitting import held_out
from probes.trust.permutation import p_values, permutation_test, permuted_aucs
from probes.trust.report import trust_report
from probes.trust.text_baselines import text_only
from probes.trust.transfer import transfer_matrix
from probes.trust.undefined import undefined_rows
from workbench.errors import DataError

SITE = "blocks.0.hook_resid_post"
FEW: Any = {"n_bootstrap": 10, "n_control": 1}

# -- p-values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observed", "null", "message"),
    [
        ([0.6, np.nan], np.zeros((99, 2)), "1 of 2 cells .* NaN, the first is cell 1"),
        ([0.6], np.full((99, 1), np.nan), "1 of 1 cells .* NaN"),
        ([], np.zeros((99, 0)), "Expected statistics"),
    ],
)
def test_a_statistic_that_is_not_known_has_no_p_value(observed, null, message):
    """It compares as larger than every permutation, and would get the least p-value there is."""
    with pytest.raises(DataError, match=message):
        p_values(np.array(observed), null)


@pytest.mark.parametrize("kind", ["mass_mean", "ridge"])
@pytest.mark.parametrize("d", [16, 64, 576])
def test_rows_that_are_equal_are_ties_whatever_a_matrix_product_rounds(kind, d):
    """Four tokens, read where nothing but the token is: rows of one token and fold have one score."""
    random = np.random.default_rng(d)
    which, fold = random.integers(0, 4, 203), random.permutation(203) % 5
    x, y = (random.normal(size=(4, d)) * 5)[which], random.random(203) < 0.5
    own = permuted_aucs(x, np.stack([y, ~y]), fold, kind)[0]
    scores = held_out(x, y[None], fold, kind)[0]
    for cell in range(20):
        here = (fold == cell // 4) & (which == cell % 4)
        scores[here] = scores[here].mean() if here.any() else 0.0
    assert own == pytest.approx(auc(scores, y, fold), abs=1e-9)


# -- settings ------------------------------------------------------------------------------------------

TEXTS = [f"word{i % 3} is {i}" for i in range(24)]
LABELS = [i % 2 for i in range(24)]
ACTS = activations({SITE: noise(24)})
SETS = {"a": (noise(24), LABELS), "b": (noise(24, seed=1), LABELS)}
ASKED = {
    "text": lambda **given: text_only(TEXTS, LABELS, **given),
    "permute": lambda **given: permutation_test(ACTS, LABELS, **{"n": 19, **given}),
    "transfer": lambda **given: transfer_matrix(SETS, **{"kinds": "ridge", **FEW, **given}),
    "undefined": lambda **given: undefined_rows(
        ACTS, np.array(["no", "yes", "neither"])[np.arange(24) % 3], **{"kinds": "ridge", **FEW, **given}
    ),
    "report": lambda **given: trust_report(
        tiny_model("llama"), TEXTS, LABELS, **{"kind": "ridge", "sites": SITE, **FEW, **given}
    ),
    "erase": lambda **given: erase_scores(noise(24), LABELS, **given),
}


@pytest.mark.parametrize("check", ["text", "permute", "transfer", "undefined", "report"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed must be at least 0 and a whole number"),
        ({"penalty": 0.0}, "penalty above 0"),
        ({"penalty": float("nan")}, "penalty above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_one_clear_error(check, given, message):
    with pytest.raises(DataError, match=message):
        ASKED[check](**given)


@pytest.mark.parametrize(
    ("check", "given", "message"),
    [
        ("text", {"n_bootstrap": 0}, "n_bootstrap must be at least 1"),
        ("text", {"baselines": "token count", "token_ids": [[1]] * 3}, "given 3 for 24 texts"),
        ("undefined", {"n_bootstrap": 0}, "at least 1"),
        ("undefined", {"kinds": []}, "at least one kind"),
        ("erase", {"seed": -1}, "seed must be at least 0"),
    ],
)
def test_what_a_check_needs_is_said(check, given, message):
    with pytest.raises(DataError, match=message):
        ASKED[check](**given)


# -- a cell that is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "position", "rule"),
    [([-2, -1], 1, "-1"), ([1, -1], 0, "1"), ((0, -1), 1, "-1"), (-1, None, "-1"), ([[0, -1]] * 40, 1, "")],
)
def test_a_probe_of_a_sweep_knows_by_which_rule_its_token_was_chosen(positions, position, rule):
    """Prompts differ in length: position 1 of the sweep is the second that was collected, not token 1."""
    names = ["Mary", "John", "Anna", "store", "drink"]
    texts = [f"{' '.join(names[: 1 + i % 5])} {('red', 'blue')[i % 2]}" for i in range(40)]
    acts = wb.collect(tiny_model("llama"), texts, SITE, positions)
    sweep = probes.sweep(acts, [i % 2 for i in range(40)], kinds="mass_mean", **FEW)
    where = probes.best_cell(sweep, position=position)
    assert probes.picked_probe(sweep, where).position == rule


# -- specs and commands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda **given: EraseSpec(dataset="capitals", **given),
        lambda **given: MilSpec(dataset="capitals", **given),
        lambda **given: NumbersSpec(dataset="addition", targets=["a"], **given),
        lambda **given: ApplySpec(probe="truth.safetensors", dataset="capitals", **given),
    ],
)
def test_a_positive_class_is_refused_where_nothing_looks_at_it(make):
    make()
    with pytest.raises(ValidationError, match="positive has no effect"):
        make(positive="true")


def test_two_values_of_one_field_are_no_part():
    assert parts(["plain:negated=false,verb=is"]) == {"plain": {"negated": "false", "verb": "is"}}
    with pytest.raises(DataError, match="two values for one field"):
        parts(["plain:negated=false, negated=true"])


def test_a_probe_and_a_direction_do_not_go_into_one_file(workbench, tmp_path):
    one = str(tmp_path / "a.safetensors")
    asked = ("--model", "tiny-llama", "--labels", "true,false", *QUICK, "--save-probe", one)
    said = workbench.fails("probe", "colours.jsonl", *asked, "--save-direction", one)
    assert "one would replace the other" in said
