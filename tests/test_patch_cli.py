"""`workbench patch` and its methods: a command, a YAML file and the Python call give the same numbers."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import typer
import xarray as xr
import yaml
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench import patching
from workbench.cli import patch as patch_command
from workbench.cli import patch_options
from workbench.cli.patch_options import alignment, numbers, where
from workbench.cli.patch_tables import table
from workbench.errors import DataError, MetricError, PositionError, RunError
from workbench.patching.metrics import (
    Accuracy,
    KLDivergence,
    LogitDifference,
    LogProbability,
    Probability,
    Rank,
)
from workbench.patching.specs.places import one_place, places
from workbench.progress import Silent
from workbench.provenance import Provenance
from workbench.results import Result
from workbench.runs import load_run
from workbench.specs import load_spec, spec_kinds
from workbench.specs import parse_spec as parse

ROOT = Path(__file__).parent.parent
KINDS = [
    "patch", "attribution", "edges", "path_patch", "ablate", "knockout", "back_patch", "patchscope", "all_for_one",
    "das", "circuit", "mediation", "neurons", "input_attribution",
]  # fmt: skip
NAMES = ["Mary", "John", "Anna", "Tom"]


def parse_spec(raw: Any) -> Any:
    """The spec, of whatever kind."""
    return parse(raw)


def pair(a: str, b: str) -> dict:
    clean = f"the {a} and {b} went to the store and {b} gave a drink to"
    s2 = clean.index(f"and {b} gave") + len("and ")
    spans = {"io": [4, 4 + len(a)], "both": [4, 9 + len(a) + len(b)], "s2": [s2, s2 + len(b)]}
    return {
        "clean": clean,
        "corrupt": clean.replace(f"and {b} gave", f"and {a} gave"),
        "answer": a,
        "wrong_answer": b,
        "template": "long" if a in ("Mary", "John") else "short",
        "spans": spans,
    }


PAIRS = [pair(NAMES[i], NAMES[(i + k) % 4]) for k in (1, 2, 3) for i in range(4)]
CLEAN, CORRUPT = ([p[side] for p in PAIRS[:3]] for side in ("clean", "corrupt"))
DIFFERENCES = [LogitDifference(p["answer"], p["wrong_answer"]) for p in PAIRS[:3]]
ONE_PROMPT = ["--prompt", CLEAN[0], "--answer", "Mary"]
ONE = ["--clean", CLEAN[0], "--corrupt", CORRUPT[0]]


def halves(which: str) -> tuple[list[str], list[str], list[Any]]:
    """Two of the first four pairs."""
    some = PAIRS[:2] if which == "first" else PAIRS[2:4]
    metrics = [LogitDifference(p["answer"], p["wrong_answer"]) for p in some]
    return [p["clean"] for p in some], [p["corrupt"] for p in some], metrics


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a tiny model, a file of pairs, and one of sums with the answers that the model gives."""
    path = tmp_path_factory.mktemp("patch")
    tiny.hf_model("llama").save_pretrained(path / "tiny-llama")
    tiny.tokenizer().save_pretrained(path / "tiny-llama")
    (path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
    model = wb.load_model(str(path / "tiny-llama"))
    sums = []
    for a, b in itertools.product(["one", "two", "three"], repeat=2):
        text = f"the {a} plus {b} equals"
        said = model.tokenizer.convert_ids_to_tokens(int(model.logits(text)[0, -1].argmax()))
        sums.append({"clean": text, "corrupt": f"the {a} plus zero equals", "answer": said, "kind": a})
    (path / "sums.jsonl").write_text("".join(json.dumps(s) + "\n" for s in sums))
    return path


@pytest.fixture(scope="module")
def model(here):
    return wb.load_model(str(here / "tiny-llama"))


@pytest.fixture
def workbench(monkeypatch, capsys, here, tmp_path):
    """The command in this process: exit code, stdout, stderr. Model and runs folder are set."""

    def call(*arguments: str, model: str | None = None) -> tuple[int, str, str]:
        from workbench.cli.main import main

        monkeypatch.setenv("COLUMNS", "400")
        monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
        given = list(arguments)
        if given[0] == "patch":
            given += ["--model", model or str(here / "tiny-llama")]
        monkeypatch.setattr(sys, "argv", ["workbench", *given])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def sums(here) -> list[dict]:
    return [json.loads(line) for line in (here / "sums.jsonl").read_text().splitlines()]


DATA = ["--dataset", "pairs.jsonl", "--limit", "3"]
CASES = {
    "patch": (
        [*DATA, "--site", "z"],
        lambda m, h: patching.sweep(m, CLEAN, CORRUPT, DIFFERENCES, kind="z"),
    ),
    "patch ": (
        ["--clean", "the Mary and John went to the store", "--corrupt", "the Tom went to the store", "--answer", "Mary",
         "--wrong", "John", "--by", "span", "--span", "who=Mary and John=Tom", "--span", "where=store=store"],
        lambda m, h: patching.sweep(
            m, "the Mary and John went to the store", "the Tom went to the store", LogitDifference("Mary", "John"),
            by="span", alignment=patching.Alignment.of_spans(
                m, "the Mary and John went to the store", "the Tom went to the store",
                {"who": ("Mary and John", "Tom"), "where": ("store", "store")}, unequal="last",
            ),
        ),
    ),
    "attribution": (
        ["attribution", *DATA, "--site", "mlp_out", "--site", "k", "--integrate", "2", "--recheck", "4", "--layers", "0-1"],
        lambda m, h: patching.attribution(
            m, CLEAN, CORRUPT, DIFFERENCES, kind=["mlp_out", "k"], integrate=2, recheck=4, layers=[0, 1]
        ),
    ),
    "edges": (
        ["edges", *ONE, "--answer", "Mary", "--wrong", "John", "--no-heads", "--direction", "noising", "--seed", "3"],
        lambda m, h: patching.edges(
            m, CLEAN[0], CORRUPT[0], DIFFERENCES[0], heads=False, direction="noising", seed=3
        ),
    ),
    "path_patch": (
        ["path", *DATA, "--receiver", "blocks.2.attn.hook_q:1", "--receiver", "blocks.2.hook_mlp_out",
         "--sender", "0.1+0.mlp", "--sender", "1.3", "--freeze", "all"],
        lambda m, h: patching.path_patch(
            m, CLEAN, CORRUPT, DIFFERENCES, [("blocks.2.attn.hook_q", 1), "blocks.2.hook_mlp_out"],
            senders=[[(0, 1), (0, "mlp")], [(1, 3)]], freeze="all",
        ),
    ),
    "ablate": (
        ["ablate", *DATA, "--sites", "blocks.*.attn.hook_z", "--heads", "1-2", "--how", "resample", "--positions", "-1,3",
         "--metric", "log_probability", "--reference", PAIRS[5]["clean"], "--reference", PAIRS[9]["clean"]],
        lambda m, h: patching.ablate(
            m, CLEAN, "blocks.*.attn.hook_z", [LogProbability(p["answer"]) for p in PAIRS[:3]], how="resample",
            reference=[PAIRS[5]["clean"], PAIRS[9]["clean"]], positions=[-1, 3], heads=[1, 2],
        ),
    ),
    "knockout": (
        ["knockout", *DATA, "--keys", "span:both", "--queries", "last", "--queries", "9", "--layers", "0-1", "--layers",
         "2", "--heads", "0,3", "--metric", "rank"],
        lambda m, h: patching.knockout(
            m, CLEAN, [Rank(p["answer"]) for p in PAIRS[:3]], queries=[[9, 13]] * 3, keys=[[1, 2, 3]] * 3,
            layers=[[0, 1], [2]], heads=[0, 3],
        ),
    ),
    "back_patch": (
        ["back-patch", *DATA, "--position", "span:both", "--layers", "0,2"],
        lambda m, h: patching.back_patch(
            m, CLEAN, [p["answer"] for p in PAIRS[:3]], positions=3, layers=[0, 2]
        ),
    ),
    "patchscope": (
        ["patchscope", "--source", CLEAN[0], "--source-position", "match:store", "--target", "a red , blue",
         "--target-position", "2", "--layers", "1", "--target-layers", "0-1", "--max-new-tokens", "3"],
        lambda m, h: patching.patchscope(
            m, CLEAN[0], "a red , blue", source_position=7, target_position=2, source_layers=[1], target_layers=[0, 1],
            max_new_tokens=3,
        ),
    ),
    "all_for_one": (
        ["all-for-one", "--dataset", "sums.jsonl", "--limit", "4", "--wait", "1", "--peek", "1", "--reference-dataset",
         "sums.jsonl", "--n-least", "3", "--allowed", "2"],
        lambda m, h: patching.all_for_one(
            m, [s["clean"] for s in sums(h)[:4]], [s["answer"] for s in sums(h)[:4]], wait=1, peek=1,
            reference=[s["clean"] for s in sums(h)], n_least=3, allowed=2,
        ),
    ),
    "search": (
        ["all-for-one", "--dataset", "sums.jsonl", "--waits", "0-2", "--peeks", "1", "--keep", "0.5", "--n-least", "1"],
        lambda m, h: patching.search(
            m, [s["clean"] for s in sums(h)], [s["answer"] for s in sums(h)], waits=[0, 1, 2], peeks=[1], keep=0.5,
            n_least=1,
        ),
    ),
    "das": (
        ["das", "--dataset", "pairs.jsonl", "--site", "blocks.1.hook_resid_post", "--position", "span:s2", "--rank", "2",
         "--steps", "3", "--learning-rate", "0.1", "--train-share", "0.5"],
        lambda m, h: patching.das(
            m, [p["clean"] for p in PAIRS], [p["corrupt"] for p in PAIRS], [p["wrong_answer"] for p in PAIRS],
            site="blocks.1.hook_resid_post", positions=9, rank=2, steps=3, learning_rate=0.1, train_share=0.5,
        ),
    ),
    "circuit": (
        ["circuit", "--dataset", "pairs.jsonl", "--limit", "4", "--no-heads", "--integrate", "2", "--sizes", "2,5",
         "--random", "2", "--null", "layers", "--ablate", "mean"],
        lambda m, h: patching.circuit_curves(
            m, *halves("second"),
            patching.edges(m, *halves("first"), heads=False, integrate=2, control=False),
            sizes=[2, 5], n_random=2, null="layers", ablate="mean",
        ),
    ),
    "mediation": (
        ["mediation", *DATA, "--component", "attn_out", "--layers", "1", "--positions", "9,-1", "--candidate", "Mary",
         "--candidate", "John", "--candidate", "Anna", "--candidate", "Tom"],
        lambda m, h: patching.mediation(
            m, CLEAN, CORRUPT, [p["answer"] for p in PAIRS[:3]], [p["wrong_answer"] for p in PAIRS[:3]],
            components=["attn_out"], layers=[1], positions=[9, -1], candidates=NAMES,
        ),
    ),
    "neurons": (
        ["neurons", *DATA, "--head", "1,2", "--control-heads", "2", "--no-freeze", "--layers", "1-2"],
        lambda m, h: patching.comparative(
            m, CLEAN, [p["answer"] for p in PAIRS[:3]], head=(1, 2), control_heads=2, freeze=False, layers=[1, 2]
        ),
    ),
    "input_attribution": (
        ["input", *ONE_PROMPT, "--wrong", "John", "--baseline", CORRUPT[0], "--steps", "4", "--no-control"],
        lambda m, h: patching.input_attribution(
            m, CLEAN[0], DIFFERENCES[0], baseline=[CORRUPT[0]], steps=4, control=False
        ),
    ),
}  # fmt: skip

# -- the same numbers every way ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_command_and_its_yaml_give_the_numbers_of_the_python_call(
    workbench, monkeypatch, here, model, name
):
    monkeypatch.chdir(here)
    arguments, python = CASES[name]
    code, out, err = workbench("patch", *arguments, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["kind"] == name.strip().replace("search", "all_for_one") and made["summary"]
    run = load_run(made["path"])
    expected = python(model, here).data
    assert run.result.data.equals(expected)
    raw = yaml.safe_load((run.path / "spec.yaml").read_text())
    assert parse_spec(raw) == run.spec and run.spec.to_dict() == raw
    code, out, err = workbench("run", str(run.path / "spec.yaml"), "--json")
    assert code == 0, err
    assert load_run(json.loads(out)["path"]).result.data.identical(run.result.data)


def test_a_stopped_sweep_of_a_command_goes_on_from_its_checkpoint(workbench, monkeypatch, here, tmp_path):
    """Stopped by Ctrl-C in the middle: the file is there, the same command ends with the same numbers, it is gone."""
    from workbench.patching import wave

    monkeypatch.chdir(here)
    command = [
        "patch",
        *DATA,
        "--site",
        "mlp_out",
        "--checkpoint",
        str(tmp_path / "sweep.safetensors"),
        "--json",
    ]
    real, calls = wave.run, []

    def stops(rows, *a):
        calls.append(len(rows))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(rows, *a)

    with monkeypatch.context() as patched:
        patched.setattr(wave, "run", stops)
        code, _, _ = workbench(*command)
    assert code != 0 and (tmp_path / "sweep.safetensors").exists()
    calls.clear()
    code, out, err = workbench(*command)
    assert code == 0 and not (tmp_path / "sweep.safetensors").exists(), err
    code, whole, _ = workbench(
        *[word for word in command if "checkpoint" not in word and "safetensors" not in word]
    )
    again, expected = (load_run(json.loads(text)["path"]).result.data for text in (out, whole))
    assert again.equals(expected)


def test_every_method_has_a_spec_and_a_command():
    assert set(KINDS) <= set(spec_kinds())
    assert {kind: spec_kinds()[kind].kind for kind in KINDS} == {kind: kind for kind in KINDS}
    assert len(patch_command.METHODS) >= len(KINDS) - 1


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("patch_*.yaml")), ids=lambda f: f.stem)
def test_the_example_specs_are_valid(file):
    spec = load_spec(file)
    assert parse_spec(yaml.safe_load(spec.to_yaml())) == spec
    assert f"workbench run examples/{file.name}" in file.read_text()


def test_there_is_an_example_spec_of_every_kind():
    files = (ROOT / "examples").glob("patch_*.yaml")
    assert {yaml.safe_load(file.read_text())["kind"] for file in files} >= set(KINDS)


METRICS = {
    "logit_difference": lambda p: LogitDifference(p["answer"], p["wrong_answer"]),
    "log_probability": lambda p: LogProbability(p["answer"]),
    "probability": lambda p: Probability(p["answer"]),
    "kl": lambda p: KLDivergence(),
    "rank": lambda p: Rank(p["answer"]),
    "accuracy": lambda p: Accuracy(p["answer"]),
}


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_by_name_is_that_metric_with_each_pairs_answers(here, model, monkeypatch, metric):
    monkeypatch.chdir(here)
    kind, call = "edges", patching.edges
    if metric in ("rank", "accuracy"):  # without gradient
        kind, call = "ablate", patching.ablate
    spec = parse_spec({"kind": kind, "dataset": "pairs.jsonl", "limit": 3, "metric": metric})
    metrics = [METRICS[metric](p) for p in PAIRS[:3]]
    if kind == "edges":
        expected = call(model, CLEAN, CORRUPT, metrics)
    else:
        expected = call(model, CLEAN, "blocks.*.hook_attn_out", metrics)
    assert spec.run(model, Silent()).data.equals(expected.data)


def test_an_answer_of_several_tokens_is_measured_where_the_method_can(model, tmp_path):
    file = tmp_path / "long.jsonl"
    long = [{**p, "answer": f"{p['answer']} went to"} for p in PAIRS]
    long[1]["answer"] = "Mary"  # of another length than the first: left out
    file.write_text("".join(json.dumps(p) + "\n" for p in long))
    fields = {"dataset": str(file), "limit": 2, "metric": "log_probability"}
    result = parse_spec({"kind": "patch", "site": "v", **fields}).run(model, Silent())
    used = [long[0], long[2]]
    expected = patching.sweep(
        model, [p["clean"] for p in used], [p["corrupt"] for p in used],
        [LogProbability(p["answer"]) for p in used], kind="v",
    )  # fmt: skip
    assert result.data.equals(expected.data)
    assert result.summary["pairs"] == f"2 of 12 in {file} (11 have 14 tokens and an answer of 3)"
    with pytest.raises(MetricError, match="3 tokens"):
        parse_spec({"kind": "ablate", **fields}).run(model, Silent())


# -- prompts, data sets, positions -------------------------------------------------------------------------


def test_prompts_of_ones_own_with_one_answer_for_all_or_one_for_each(model):
    asked = {
        "kind": "ablate",
        "prompts": CLEAN,
        "answers": "Mary",
        "wrong": ["John", "Anna", "Tom"],
        "how": "zero",
    }
    result = parse_spec(asked).run(model, Silent())
    metrics = [LogitDifference("Mary", wrong) for wrong in ("John", "Anna", "Tom")]
    expected = patching.ablate(model, CLEAN, "blocks.*.hook_attn_out", metrics, how="zero")
    assert result.data.equals(expected.data) and "prompts" not in result.summary


def test_only_pairs_that_fit_are_used_and_how_many_is_said(model, tmp_path):
    file = tmp_path / "mixed.jsonl"
    odd = {"clean": "Mary went to", "corrupt": "John and Mary went to", "answer": "a", "wrong_answer": "the"}
    longer = {
        **PAIRS[0],
        "clean": "a " + PAIRS[0]["clean"],
        "corrupt": "a " + PAIRS[0]["corrupt"],
        "spans": {},
    }
    file.write_text("".join(json.dumps(p) + "\n" for p in [odd, PAIRS[0], longer, *PAIRS[1:4]]))
    result = parse_spec({"kind": "patch", "dataset": str(file), "limit": 3, "site": "q"}).run(model, Silent())
    expected = patching.sweep(model, CLEAN, CORRUPT, DIFFERENCES, kind="q")
    assert result.data.equals(expected.data)
    note = f"3 of 6 in {file} (4 have 14 tokens)"
    assert result.summary["pairs"] == result.data.attrs["pairs"] == note


def test_where_and_split_choose_from_a_data_set(model, here):
    asked = {
        "kind": "back_patch",
        "dataset": str(here / "pairs.jsonl"),
        "where": {"template": "short"},
        "layers": [0, 2],
    }
    result = parse_spec(asked).run(model, Silent())
    short = [p for p in PAIRS if p["template"] == "short"]
    answers = [p["answer"] for p in short]
    expected = patching.back_patch(
        model, [p["clean"] for p in short], answers, positions="last", layers=[0, 2]
    )
    assert result.data.equals(expected.data)
    assert result.summary["prompts"] == f"6 of 6 in {here / 'pairs.jsonl'} template=short"
    parts = [parse_spec({**asked, "split": part}).chosen(model).texts for part in ("train", "test")]
    assert set(parts[0]).isdisjoint(parts[1]) and set(parts[0]) | set(parts[1]) == {p["clean"] for p in short}


def test_a_set_made_on_demand_is_asked_for_as_many_as_are_wanted():
    from workbench.patching.specs.records import pairs_of

    usual = len(wb.datasets.load("two-hop"))
    found = pairs_of("two-hop", limit=usual + 200, needs=("answer",), what_for="a test")
    assert len(found) == usual + 200
    assert len(pairs_of("two-hop", limit=3, needs=("answer",), what_for="a test")) == usual


def test_reference_prompts_come_from_a_data_set_with_as_many_tokens(model, here, tmp_path):
    others = tmp_path / "texts.jsonl"
    texts = ["a b c", *(p["clean"] for p in PAIRS[4:])]
    others.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    asked = {
        "kind": "ablate",
        "dataset": str(here / "pairs.jsonl"),
        "limit": 3,
        "reference_dataset": str(others),
    }
    result = parse_spec(asked).run(model, Silent())
    expected = patching.ablate(model, CLEAN, "blocks.*.hook_attn_out", DIFFERENCES, reference=texts[1:])
    assert result.data.equals(expected.data)
    assert result.summary["reference"] == f"8 of 9 in {others}"
    drawn = parse_spec({**asked, "reference_limit": 4, "how": "noise"})
    assert drawn.references(model, seed=1)[0] == wb.datasets.load(others).sample(4, seed=1).texts
    with pytest.raises(DataError, match="None of the 1 reference prompts"):
        short = tmp_path / "short.txt"
        short.write_text("a b c\n")
        parse_spec({**asked, "reference_dataset": str(short)}).run(model, Silent())


def test_means_of_all_for_one_are_over_the_same_part_of_the_same_set(model, here):
    file = str(here / "sums.jsonl")
    asked = {
        "kind": "all_for_one",
        "dataset": file,
        "where": {"kind": "two"},
        "reference_dataset": file,
        "n_least": 1,
    }
    asked |= {"wait": 1, "peek": 1}
    result = parse_spec(asked).run(model, Silent())
    two = [s for s in sums(here) if s["kind"] == "two"]
    texts, answers = [s["clean"] for s in two], [s["answer"] for s in two]
    expected = patching.all_for_one(model, texts, answers, wait=1, peek=1, reference=texts, n_least=1)
    assert result.data.equals(expected.data)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("last", [[3], [2]]),
        (0, [[0], [0]]),
        ("0,-1", [[0, 3], [0, 2]]),
        ("all", [[0, 1, 2, 3], [0, 1, 2]]),
        ("match:Mary|gave", [[1, 3], [2]]),
        (["token:Mary", 0], [[0, 1], [0, 2]]),
        ("span:who", [[1, 2], [2]]),
        ([[2], [0]], [[2], [0]]),
    ],
)
def test_positions_said_in_words(rule, expected):
    texts = ["the Mary and gave", "to the Mary"]
    spans = [{"who": (4, 12)}, {"who": (7, 11)}]
    model = tiny_model("gpt2")
    assert places(model, texts, spans, rule, "keys") == expected
    assert one_place(model, texts, spans, rule, "keys") == [some[-1] for some in expected]


def test_a_rule_that_finds_nothing_in_a_prompt_is_an_error_that_names_it(llama):
    with pytest.raises(
        PositionError, match="keys 'match:gave' finds no token in 1 of 2 prompts, the first is 1"
    ):
        places(llama, ["Mary gave", "Mary went"], [{}, {}], "match:gave", "keys")
    with pytest.raises(PositionError, match="'span:ios'.*Did you mean|has no span 'ios'"):
        places(llama, ["Mary gave"], [{"io": (0, 4)}], "span:ios", "keys")


def test_positions_are_those_of_the_models_own_tokens():
    """With a start word that the tokenizer adds, the entity is at 1."""
    model = wb.load_model("two-hop")
    problem: Any = wb.datasets.load("two-hop", limit=1)[0]
    assert places(model, [problem.clean], [problem.spans], "span:entity", "keys") == [[1]]
    assert model.batch(problem.clean).tokens[0][1].strip() == problem.extra["entity"]


def test_patchscope_with_aliases_says_where_the_text_names_them(model):
    asked = {"kind": "patchscope", "source": CLEAN[0], "target": "a red , blue", "max_new_tokens": 2}
    plain = parse_spec(asked).run(model, Silent())
    word = str(plain.data["text"].values[1, 0]).split()[0]
    result = parse_spec({**asked, "aliases": [word]}).run(model, Silent())
    expected = patching.decodes(plain, [word])
    assert result.data["decoded"].equals(expected["decoded"]) and bool(result.data["decoded"].any())
    assert result.data["control_resolved"].equals(expected["control_resolved"])
    assert result.summary["n_decoded"] == int(expected["decoded"].sum())
    assert result.summary["unpatched_decoded"] == expected.attrs["unpatched"]


def test_the_two_hop_patchscope_names_the_answer_by_the_bridge_and_not_without():
    """Where the stream behind the first relation holds the bridge, r2 of it is said: the problem's answer."""
    from workbench.cli.patch_patchscope import two_hop_question
    from workbench.organisms.registry import get

    model = wb.load_model("two-hop")
    task: Any = get("two-hop")
    for seed in range(3):
        asked = two_hop_question(seed)
        e, r1, r2, _ = asked["source"].split()
        x, q, asks, _ = asked["target"].split()
        apply = lambda r, entity: f"e{task.facts[int(r[1:]), int(entity[1:])]}"  # noqa: E731
        assert asked["aliases"] == [apply(r2, apply(r1, e))] != [apply(asks, apply(q, x))]
        assert asks == r2 and x != e
        summary = parse_spec({"kind": "patchscope", **asked}).run(model, Silent()).summary
        assert summary["n_decoded"] > 0 == summary["n_control_decoded"] and not summary["unpatched_decoded"]


# -- what people see ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("patch", ["layer", "head", "effect, n = 3 pairs (10 strongest of 12)", "95 % interval", "control", "p against"]),
        ("attribution", ["kind", "cell", "patched exactly"]),
        ("edges", ["sender", "receiver", "effect, n = 1 pair (", "control"]),
        ("path_patch", ["set", "0.1+0.mlp", "effect, n = 3 pairs", "control"]),
        ("ablate", ["site", "head", "blocks.1.attn.hook_z", "effect, n = 3 prompts", "95 % interval", "control"]),
        ("knockout", ["layers", "0–1", "effect, n = 3 prompts", "95 % interval", "control"]),
        ("back_patch", ["prompts", "n", "right with some pair", "other prompt", "forward", "first wrong"]),
        ("patchscope", ["source block", "target block (1 of 2 each)", "text", "other position's"]),
        ("all_for_one", ["run", "faithfulness, n = 4 answered prompts", "95 % interval", "no_peek", "unconditional"]),
        ("search", ["peek", "longest wait", "keeps 0.5", "faithfulness, n = 9", "no peek"]),
        ("das", ["subspace", "accuracy, n = 6 held-out pairs", "95 % interval", "trained", "pca", "random", "whole"]),
    ],
)  # fmt: skip
def test_a_command_prints_a_table_its_folder_and_how_to_do_it_again(
    workbench, monkeypatch, here, name, columns
):
    monkeypatch.chdir(here)
    code, out, err = workbench("patch", *CASES[name][0])
    assert code == 0, err
    for column in columns:
        assert column in out, (column, out)
    (again,) = [line.split()[3] for line in out.splitlines() if line.startswith("Again ")]
    assert load_run(Path(again).parent).spec == load_spec(again)
    assert "{'" not in out, out


def effects_result(kind: str, **variables) -> Result:
    data = xr.Dataset(variables, coords={"thing": ["a", "b", "c"], "pair": [0, 1]})
    return Result(kind, data, Provenance(), {})


def test_a_table_has_the_strongest_cells_first_whatever_their_dimensions_and_no_empty_ones():
    effect = np.array([[0.5, -2.0, np.nan], [0.25, 1.0, 0.0]])
    result = effects_result(
        "something_new",
        mean_effect=(("layer", "thing"), effect),
        effect_low=(("layer", "thing"), effect - 1),
        effect_high=(("layer", "thing"), effect + 1),
        control_effect=(("pair", "layer", "thing"), np.stack([np.zeros((2, 3)), np.ones((2, 3))])),
    )
    columns, rows = table(result)
    assert columns == ["layer", "thing", "effect, n = 2 pairs", "95 % interval", "control"]
    assert rows[0] == ["0", "b", "-2.000", "[-3.000, -1.000]", "+0.500"]
    assert [row[2] for row in rows] == ["-2.000", "+1.000", "+0.500", "+0.250", "+0.000"]
    assert table(Result("other", xr.Dataset({"x": ("y", [1.0])}), Provenance(), {})) == ([], [])


@pytest.mark.parametrize("site", ["resid_pre", "neurons", "pattern"])
def test_every_site_of_a_sweep_has_a_table(model, site):
    result = patching.sweep(model, CLEAN[0], CORRUPT[0], DIFFERENCES[0], kind=site, group_size=20)
    columns, rows = table(result)
    strongest = result.summary["strongest"]
    assert rows[0][0] == str(strongest["layer"]) and float(rows[0][2]) == pytest.approx(
        strongest["effect"], abs=1e-3
    )
    assert columns[1] == {"resid_pre": "position", "neurons": "group", "pattern": "head"}[site]
    if site == "resid_pre":
        assert rows[0][1] == f"{strongest['position']} {strongest['token']!r}"


def test_help_lists_the_methods_in_a_line_each_and_every_example_can_be_read():
    group: Any = typer.main.get_command(patch_command.app)
    with group.make_context("patch", ["knockout", "--keys", "1"], resilient_parsing=True) as context:
        shown = group.get_help(context)
        assert "Example: workbench patch" in shown
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            (line,) = [line for line in shown.splitlines() if line.startswith(f"  {name} ")]
            assert line.strip().endswith(".") and not line.endswith("..."), line
            assert command.epilog and command.epilog.startswith("Example: workbench patch "), name
            example = shlex.split(command.epilog.split(":", 1)[1].split("(")[0])
            assert example[:3] == ["workbench", "patch", name]
            command.make_context(name, example[3:])  # raises for an option that is not there
    for example in patch_command.EPILOG.split("workbench patch ")[1:]:
        words = shlex.split(example.split(", or")[0])
        if words[0].startswith("--"):
            group.make_context("patch", words)


def test_the_methods_are_not_imported_before_they_are_used():
    code = (
        "import sys, workbench.cli.patch as p\n"
        "heavy = [m for m in sys.modules if m.startswith('workbench.cli.patch_') or m in ('torch', 'pydantic', 'xarray')]\n"
        "assert heavy == ['workbench.cli.patch_options'], heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- what each command begins with -------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, workbench):
    """The spec a command makes, without running it."""
    made = []
    monkeypatch.setattr(patch_options, "execute", lambda spec, **_: made.append(spec))

    def call(*arguments: str, model: str = "smollm2-135m"):
        code, _, err = workbench("patch", *arguments, model=model)
        assert code == 0, err
        return made.pop()

    return call


@pytest.mark.parametrize("command", [[], ["attribution"], ["edges"], ["path"], ["ablate"], ["knockout", "--keys", "1"],
                                     ["das", "--site", "blocks.1.hook_resid_post"], ["circuit"], ["mediation"],
                                     ["neurons"], ["input"]])  # fmt: skip
def test_without_prompts_a_command_takes_the_models_own_problems_or_indirect_objects(asked, command):
    assert asked(*command).dataset == "indirect-objects"
    assert asked(*command, model="two-hop").dataset == "two-hop"
    assert asked(*command, "--dataset", "x.jsonl", model="two-hop").dataset == "x.jsonl"


def test_a_bare_command_is_the_spec_with_all_its_defaults(asked):
    for command, kind, more in [
        ([], "patch", {}), (["attribution"], "attribution", {}), (["edges"], "edges", {}), (["path"], "path_patch", {}),
        (["ablate"], "ablate", {}), (["knockout", "--keys", "1"], "knockout", {"keys": "1"}),
        (["das", "--site", "x"], "das", {"site": "x"}), (["circuit"], "circuit", {}), (["mediation"], "mediation", {}),
        (["neurons"], "neurons", {}), (["input"], "input_attribution", {}),
    ]:  # fmt: skip
        assert asked(*command) == parse_spec({"kind": kind, "dataset": "indirect-objects", **more})
    assert asked("back-patch", model="two-hop") == parse_spec(
        {"kind": "back_patch", "dataset": "two-hop", "model": "two-hop"}
    )


def test_all_for_one_on_sums_takes_means_over_trained_sums_of_one_operator(asked):
    spec = asked("all-for-one", "--limit", "40", model="addition")
    assert (spec.dataset, spec.where, spec.limit) == ("addition", {"template": "plus"}, 40)
    assert (spec.reference_dataset, spec.reference_split, spec.wait) == ("addition", "train", None)
    drawn = wb.datasets.load("addition", split="train", limit=spec.reference_limit).filter(**spec.where)
    for place in (0, 2):
        numbers_there = [text.split()[place] for text in drawn.texts]
        assert min(numbers_there.count(str(n)) for n in range(100)) >= spec.n_least
    other = asked("all-for-one", "--where", "template=minus", "--n-least", "9", model="addition")
    assert (other.where, other.n_least) == ({"template": "minus"}, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attribution", "--clean", CLEAN[0]], "give clean, corrupt, answer and wrong, or a dataset"),
        (["attribution", *ONE, "--answer", "Mary", "--wrong", "John", "--metric", "rank"], "'rank' has no gradient: give one of"),
        (["attribution", *ONE, "--metric", "kl", "--site", "resid"], "site.0: input should be 'resid_pre'"),
        (["attribution", *ONE, "--metric", "kl", "--recheck", "some"], "recheck"),
        (["attribution", *ONE, "--metric", "kl", "--layers", "0-x"], "--layers '0-x' cannot be read"),
        (["attribution", *ONE, "--metric", "kl", "--layers", "9"], "blocks"),
        (["edges", *ONE, "--metric", "logit"], "metric: input should be 'logit_difference'"),
        (["edges", *ONE, "--metric", "probability"], "give clean, corrupt and answer, or a dataset"),
        (["edges", *ONE, "--dataset", "pairs.jsonl"], "not both"),
        (["path", *ONE, "--metric", "kl", "--receiver", "blocks.1.attn.hook_z"], "cannot receive"),
        (["path", *ONE, "--metric", "kl", "--sender", "1-3"], "--sender '1-3' cannot be read"),
        (["path", *ONE, "--metric", "kl", "--sender", "7.1"], "Sender (7, 1) does not exist"),
        (["ablate", "--prompt", CLEAN[0], "--answer", "Mary"], "give prompts, answers and wrong, or a dataset"),
        (["ablate", "--prompt", "the", "--answer", "a", "--wrong", "to", "--how", "mean"], "give reference prompts"),
        (["ablate", "--prompt", "the", "--prompt", "a", "--prompt", "to", "--answer", "a", "--answer", "to",
          "--metric", "rank"], "2 answers for 3 prompts"),
        (["ablate", "--dataset", "pairs.jsonl", "--metric", "kl"], "'kl' compares two runs"),
        (["ablate", "--dataset", "pairs.jsonl", "--where", "template"], "--where 'template' cannot be read"),
        (["ablate", "--dataset", "pairs.jsonl", "--where", "template=shor"], "Did you mean 'short'"),
        (["ablate", "--dataset", "sentiment"], "holds statements, no pairs"),
        (["ablate", "--dataset", "sums.jsonl"], "lack an answer or a wrong answer"),
        (["ablate", "--prompt", "the", "--answer", "a", "--metric", "rank", "--split", "test"], "choose from a dataset"),
        (["ablate", "--dataset", "pairs.jsonl", "--reference", "a", "--reference-dataset", "b"], "not both"),
        (["ablate", "--dataset", "pairs.jsonl", "--heads", "0-9", "--sites", "blocks.*.attn.hook_z"], "out of 0–3"),
        (["knockout", "--dataset", "pairs.jsonl"], "Missing option '--keys'"),
        (["knockout", "--dataset", "pairs.jsonl", "--keys", "span:subject"], "no span 'subject'"),
        (["knockout", "--dataset", "pairs.jsonl", "--keys", "match:Mary"], "finds no token in"),
        (["back-patch"], "needs prompts with answers"),
        (["back-patch", "--prompt", CLEAN[0]], "give prompts and answers, or a dataset"),
        (["back-patch", "--prompt", CLEAN[0], "--answer", "Mary", "--position", "99"], "Position 99 is outside"),
        (["patchscope"], "give --source"),
        (["patchscope", "--source", "the", "--target-model", "smollm2-135n"], "Did you mean 'smollm2-135m'"),
        (["all-for-one"], "give --dataset"),
        (["all-for-one", "--dataset", "sums.jsonl", "--wait", "1"], "give both wait and peek"),
        (["all-for-one", "--dataset", "sums.jsonl", "--wait", "1", "--peek", "1", "--peeks", "2"], "not|either wait"),
        (["all-for-one", "--dataset", "sums.jsonl", "--wait", "1", "--peek", "1"], "fewer than n_least=100"),
        (["das", "--dataset", "pairs.jsonl", "--site", "blocks.*.hook_resid_post"], "names 3 sites"),
        (["das", "--dataset", "pairs.jsonl"], "Missing option '--site'"),
        (["das", "--dataset", "pairs.jsonl", "--site", "blocks.1.hook_resid_post", "--rank", "0"], "rank: input should be"),
        (["--limit", "3", "--site", "z", "edges", "--dataset", "pairs.jsonl"], "--limit and --site stood before 'edges'"),
        (["edge"], "No such command 'edge'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error_and_nothing_is_written(
    workbench, monkeypatch, here, tmp_path, arguments, message
):
    monkeypatch.chdir(here)
    code, out, stderr = workbench("patch", *arguments)
    assert code == 2, (out, stderr)
    errors = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and any(one in errors[0] for one in message.split("|")), stderr
    assert "Traceback" not in stderr and "workbench patch" in stderr + "workbench patch"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"kind": "das", "site": "x", "base": ["a"], "source": ["b"]}, "give base, source and answers"),
        ({"kind": "das", "site": "x", "base": ["a"], "dataset": "b"}, "not both"),
        ({"kind": "path_patch", "dataset": "x", "receivers": []}, "receivers"),
        ({"kind": "path_patch", "dataset": "x", "senders": [[[0, "attn"]]]}, "senders.0.0.1"),
        ({"kind": "attribution", "dataset": "x", "sites": "z"}, "sites: extra inputs are not permitted"),
        ({"kind": "attribution", "dataset": "x", "site": []}, "site"),
        ({"kind": "knockout", "dataset": "x"}, "keys: field required"),
        ({"kind": "back_patch", "dataset": "x", "limit": 0}, "limit"),
        ({"kind": "ablate", "dataset": "x", "reference_split": "test"}, "reference_split is a part of"),
        ({"kind": "patchscope"}, "source: field required"),
    ],
)
def test_a_spec_that_cannot_be_says_which_field_and_why(raw, message):
    with pytest.raises(RunError, match=rf"\({raw['kind']}\) is not valid: .*{message}"):
        parse_spec(raw)


# -- shorthands --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), min_size=1, max_size=5))
def test_ranges_of_layers_are_what_they_say(ranges):
    text = ",".join(f"{a}-{a + n}" if n else str(a) for a, n in ranges)
    assert numbers(text, "--layers") == [i for a, n in ranges for i in range(a, a + n + 1)]


def test_shorthands_that_cannot_be_read_are_errors():
    assert numbers("-1", "--layers") == [-1] and numbers(None, "--layers") is None
    for bad in ("", "3-1", "a", "1,,2", "1-2-3"):
        with pytest.raises(DataError, match="cannot be read"):
            numbers(bad, "--layers")
    assert where(["a=1", "b=true", "c=x=y"]) == {"a": 1, "b": True, "c": "x=y"} and where([]) is None
    with pytest.raises(DataError, match="cannot be read"):
        where(["=x"])
    assert alignment(True, None) == "diff" and alignment(False, None) is None
    assert alignment(False, ["a=b c=d"]) == {"a": ("b c", "d")}
    for bad in (["a=b"], ["a==b"], ["a"]):
        with pytest.raises(DataError, match="NAME=CLEAN TEXT"):
            alignment(False, bad)
    with pytest.raises(DataError, match="give one of them"):
        alignment(True, ["a=b=c"])


def test_every_patching_kind_is_an_entry_point_of_its_own_file():
    """One spec file a method: adding one touches no other."""
    values = {e.name: e.value for e in entry_points(group="workbench.specs") if e.name in KINDS}
    assert len({value.split(":")[0] for value in values.values()}) == len(KINDS)


@pytest.mark.parametrize(("name", "column"), [("circuit", "random circuits"), ("neurons", "control"),
                                              ("input_attribution", "random answers")])  # fmt: skip
def test_circuits_neurons_and_tokens_have_a_table_of_what_matters(here, model, name, column):
    data = CASES[name][1](model, here)
    columns, rows = table(data)
    assert rows and all(len(row) == len(columns) for row in rows)
    assert any(column in title for title in columns) and "nan" not in str(rows)
    if name == "circuit":
        assert [row[0] for row in rows] == ["2", "5"]
        assert float(rows[1][2]) == pytest.approx(float(data.data["mean_faithfulness"][1]), abs=1e-3)
    else:
        largest = {"neurons": "mean_comparative", "input_attribution": "attribution"}[name]
        values = data.data[largest].values
        best = np.nanmax(values) if name == "neurons" else values.flat[np.nanargmax(np.abs(values))]
        assert float(rows[0][2]) == pytest.approx(float(best), abs=1e-3)
