"""The other commands of `workbench probe`: each gives the numbers of its Python call, and so does its spec."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from probe_sets import DECIDED, RECORDS

import workbench as wb
from probes.causal.move import causal_check
from probes.cli import COMMANDS
from probes.cli.options import conditions, penalties, rules
from probes.cli.transfer import parts
from probes.erasure import erase_scores
from probes.mil import three_way
from probes.regress import regress
from probes.trust import split_by, transfer_matrix, trust_report
from workbench.cli.common import result_table
from workbench.directions import Direction, library
from workbench.errors import DataError
from workbench.runs import load_run
from workbench.specs import parse_spec, spec_kinds

SITE = "blocks.1.hook_resid_post"
TEXTS, LABELS, GROUPS = ([r[k] for r in DECIDED] for k in ("text", "label", "group"))
ALL = [[r[k] for r in RECORDS] for k in ("text", "label", "group")]


@pytest.fixture(scope="module")
def model(here):
    return wb.load_model(str(here / "tiny-llama"))


def acts(model, texts=TEXTS, sites=SITE, positions=-1):
    return wb.collect(model, texts, sites, positions)


def plain_and_other(model):
    x = acts(model).rows(SITE)
    chosen = {
        "people": [i for i, r in enumerate(DECIDED) if not r["place"] and r["verb"] == "is"],
        "places": [i for i, r in enumerate(DECIDED) if r["place"]],
    }
    return {n: (x[at], [LABELS[i] for i in at], [GROUPS[i] for i in at]) for n, at in chosen.items()}


CASES = {
    "trust": (
        ["trust", "colours.jsonl", "--kind", "mass_mean", "--sites", SITE, "--folds", "3", "--n-control", "2"],
        lambda m: trust_report(
            m, TEXTS, LABELS, groups=GROUPS, sites=SITE, kind="mass_mean", folds=3, n_control=2
        ),
        "probe_trust",
    ),
    "transfer by a field": (
        ["transfer", "colours.jsonl", "--by", "verb", "--site", SITE, "--kinds", "mass_mean", "--folds", "3"],
        lambda m: transfer_matrix(
            split_by(acts(m), LABELS, [f"verb={r['verb']}" for r in DECIDED], GROUPS), kinds="mass_mean", folds=3
        ),
        "probe_transfer",
    ),
    "transfer by conditions": (
        ["transfer", "colours.jsonl", "--set", "people:place=false,verb=is", "--set", "places:place=true", "--site", SITE,
         "--kinds", "ridge", "--folds", "2", "--seed", "1"],
        lambda m: transfer_matrix(plain_and_other(m), kinds="ridge", folds=2, seed=1),
        "probe_transfer",
    ),
    "erase": (
        ["erase", "colours.jsonl", "--label", "colour", "--site", SITE, "--folds", "3", "--penalty", "0.5"],
        lambda m: erase_scores(
            acts(m, ALL[0]).rows(SITE).numpy(), [r["colour"] for r in RECORDS], groups=ALL[2], folds=3, penalty=0.5
        ),
        "probe_erase",
    ),
    "numbers": (
        ["numbers", "colours.jsonl", "--target", "count", "--folds", "3", "--sites", SITE, "--sites", "blocks.2.hook_resid_post"],
        lambda m: regress(
            acts(m, ALL[0], [SITE, "blocks.2.hook_resid_post"]), {"count": [r["count"] for r in RECORDS]},
            groups=ALL[2], folds=3,
        ),
        "probe_numbers",
    ),
    "mil": (
        ["mil", "colours.jsonl", "--site", SITE, "--folds", "3", "--known-positive", "1", "--alpha", "0.3"],
        lambda m: three_way(
            acts(m, ALL[0], SITE, "all"), ALL[1], groups=ALL[2], folds=3, known_positive=1, alpha=0.3
        ),
        "probe_mil",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_command_and_its_spec_give_the_numbers_of_the_python_call(workbench, model, name):
    arguments, python, kind = CASES[name]
    made = workbench.json("probe", *arguments)
    run, expected = load_run(made["path"]), python(model)
    assert made["kind"] == kind and run.result.kind == expected.kind
    assert run.result.data.equals(expected.data)
    for key, value in expected.summary.items():
        assert str(made["summary"][key]) == str(value), key
    assert " of 72 in colours.jsonl" in made["summary"]["prompts"]
    assert made["provenance"]["model"]["fingerprint"] == model.fingerprint
    raw = yaml.safe_load((run.path / "spec.yaml").read_text())
    assert parse_spec(raw) == run.spec and run.spec.to_dict() == raw
    columns, rows = result_table(run.result)
    assert rows and all(len(row) == len(columns) for row in rows)
    assert run.result.figures() and (run.path / "report.html").is_file()


def test_a_causal_check_fits_on_one_part_and_asks_the_other(workbench, model, here):
    """The direction is that of a probe of the training groups; no checked statement is of one of these."""
    from probes import sweep
    from workbench.datasets import load
    from workbench.patching.metrics import LogitDifference

    command = ["causal", "colours.jsonl", "--site", SITE, "--template", "not {text} is that", "--answer", "one", "--wrong",
               "two", "--n-random", "3", "--strength", "-2", "--strength", "2", "--n-prompts", "100", "--seed", "2"]  # fmt: skip
    made = workbench.json("probe", *command)
    train, test = load(str(here / "colours.jsonl")).filter(label=["false", "true"]).split(0.7, seed=2)
    found = sweep(
        acts(model, train.texts), train.labels, kinds=["mass_mean"], groups=train.groups, penalty=1.0, seed=2
    )
    prompts = [f"not {text} is that" for text in test.texts]
    expected = causal_check(
        model, prompts, found.direction(layer=1), LogitDifference("one", "two"), position=4, strengths=[-2, 2],
        n_random=3, seed=2,
    )  # fmt: skip
    data = load_run(made["path"]).result.data
    assert np.allclose(data["change"], expected.data["change"], atol=1e-5)
    assert data["prompt_text"].values.tolist() == expected.data["prompt_text"].values.tolist()
    assert data.attrs["trained_on"] == f"{len(train)} of 48 prompts"
    assert data.attrs["checked_on"].startswith(
        f"{len(test)} of {len(test)} prompts that it was not trained on"
    )
    assert made["summary"]["n_random"] == 3 and "p_value" in made["summary"]


def test_a_causal_check_of_a_direction_from_a_file_or_the_library_or_of_a_saved_probe(
    workbench, model, tmp_path
):
    import torch

    direction = Direction.from_vector(
        torch.arange(48.0), site=SITE, scale=2.0, model_fingerprint=model.fingerprint
    )
    file = direction.save(tmp_path / "d.safetensors")
    library().save("mine", direction)
    said = [["--direction", str(file)], ["--direction", "mine"]]
    common = [
        "causal",
        "--prompt",
        "the Mary is",
        "--prompt",
        "the Tom was",
        "--answer",
        "red",
        "--wrong",
        "blue",
    ]
    slopes = [workbench.json("probe", *common, *one)["summary"]["slope"] for one in said]
    assert slopes[0] == slopes[1]
    probe = tmp_path / "p.safetensors"
    sweep = [
        "colours.jsonl",
        "--folds",
        "3",
        "--sites",
        SITE,
        "--kinds",
        "mass_mean",
        "--save-probe",
        str(probe),
    ]
    saved = workbench.json("probe", *sweep)
    made = workbench.json("probe", *common, "--direction", str(probe))
    at = load_run(saved["path"]).result.data.isel(layer=0, probe=0)
    assert made["summary"]["scale"] == pytest.approx(float(at["scale"]), rel=1e-3)  # four digits
    assert "prompts alone give no direction" in workbench.fails("probe", *common)
    assert "holds no direction and no probe" in workbench.fails(
        "probe", *common, "--direction", "colours.jsonl"
    )
    assert "has no direction 'nothing'" in workbench.fails("probe", *common, "--direction", "nothing")


def test_transfer_between_data_sets_and_between_sites(workbench, here):
    lines = (here / "colours.jsonl").read_text().splitlines()
    (here / "half.jsonl").write_text("\n".join(lines[36:]) + "\n")
    made = workbench.json("probe", "transfer", "colours.jsonl", "half.jsonl", "--site", SITE, "--folds", "2")
    data = load_run(made["path"]).result.data
    assert data["train"].values.tolist() == ["colours.jsonl", "half.jsonl"]
    assert int(data["shared_groups"].isel(train=0, test=1, probe=0)) == 6
    glob = ["--across-sites", "--site", "blocks.*.hook_resid_post", "--folds", "2", "--kinds", "mass_mean"]
    data = load_run(workbench.json("probe", "transfer", "colours.jsonl", *glob)["path"]).result.data
    assert data.sizes["train"] == data.sizes["test"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["transfer", "colours.jsonl"], "say in one way what the sets are"),
        (["transfer", "colours.jsonl", "--by", "verb", "--across-sites"], "say in one way"),
        (["transfer", "colours.jsonl", "--set", "people"], "--set 'people' cannot be read"),
        (["transfer", "colours.jsonl", "--set", "a:place=true"], "one set was given"),
        (["transfer", "colours.jsonl", "--set", "a:place=true", "--set", "b:verb=are"], "Set 'b' is empty"),
        (["transfer", "colours.jsonl", "--by", "vreb"], "Did you mean 'verb'?"),
        (["trust", "colours.jsonl", "--kind", "mlp"], "probe"),
        (["numbers", "colours.jsonl", "--target", "verb"], "Fields of numbers: count."),
        (["erase", "colours.jsonl", "--site", "blocks.*.hook_resid_post"], "stands for 3 sites: erase at one"),
        (["causal", "colours.jsonl", "--template", "nothing"], "the template says once"),
        (["mil", "colours.jsonl", "--site", SITE, "--alpha", "2"], "alpha"),
        (["mil", "colours.jsonl", "--site", SITE, "--labels", "true,false,odd"], "No record of"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_says_what_to_do(workbench, arguments, says):
    assert says in workbench.fails("probe", *arguments)


def test_every_command_has_help_with_an_example_and_a_spec_of_its_kind(workbench):
    code, out, _ = workbench("probe", "--help")
    assert code == 0 and "--kinds" in out and "Example: workbench probe capitals" in out
    for name in COMMANDS:
        assert f"\n  {name} " in out
        code, shown, _ = workbench("probe", name, "--help")
        assert code == 0 and "Example: workbench probe" in shown and "--json" in shown
    kinds = {"probe", *(f"probe_{name}" for name in COMMANDS if name != "sweep")}
    assert kinds <= set(spec_kinds()) and {k: spec_kinds()[k].kind for k in kinds} == {k: k for k in kinds}


def test_texts_of_options_are_read():
    assert conditions(["a=1", "b=x=y", "a=2"]) == {"a": ["1", "2"], "b": "x=y"}
    assert rules(["africa=continent=Africa", "negated", "n=negated"]) == {
        "africa": "continent=Africa", "negated": "negated", "n": "negated",
    }  # fmt: skip
    assert penalties("0.1") == 0.1 and penalties("1, 10") == [1.0, 10.0] and len(penalties("path") or []) == 8
    assert parts(["plain:negated=false,made_up=false"]) == {"plain": {"negated": "false", "made_up": "false"}}
    for bad in (["=x"], ["a==b"], [""]):
        with pytest.raises(DataError, match="--label"):
            rules(bad)
