"""`workbench steer` and its commands, in this process, with a tiny model; and the specs behind them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from probe_sets import Command

import workbench as wb
from dashboards.figures import control_statement, describe, figures
from workbench.cli.steer_options import rule
from workbench.directions import Direction, carried, library
from workbench.directions.named import named, one_named
from workbench.errors import DataError
from workbench.progress import Silent
from workbench.specs import parse_spec

SITE = "blocks.1.hook_resid_post"
LABELS = ["--positive", "true", "--negative", "false"]
SPEC = {"dataset": "colours.jsonl", "positive": "true", "negative": "false"}


@pytest.fixture
def model(here):
    return wb.load_model(str(here / "tiny-llama"))


def steer(workbench: Command, *arguments: str) -> dict:
    code, out, err = workbench("steer", *arguments, "--model", str(workbench.here / "tiny-llama"), "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_direction_is_made_kept_and_is_that_of_the_python_call(workbench, model):
    made = steer(workbench, "make", "colours.jsonl", *LABELS, "--save", "truth")
    best = made["summary"]["best"]
    assert made["saved"] == f"'truth' in the library ({best['site']})"
    spec = parse_spec({"kind": "direction_make", **SPEC})
    expected = wb.steering.mean_difference(model, *spec.sides(), best["site"], shuffles=50)
    kept = library().direction("truth")
    assert torch.equal(kept.vector, expected.vector) and kept.scale == pytest.approx(expected.scale)
    result = wb.load_run(made["path"]).result
    at = result.data.sel(site=best["site"])
    assert float(at["auc"]) == expected.settings["held_out"]["auc"] == result.data["auc"].max()
    assert (result.data["control_auc"].values < 0.8).all()


@pytest.mark.parametrize("method", ["pca_of_differences", "in_context_vector"])
def test_methods_of_pairs_pair_by_a_field(workbench, model, method):
    made = steer(
        workbench,
        "make",
        "colours.jsonl",
        *LABELS,
        "--method",
        method,
        "--pair-by",
        "count",
        "--save",
        "d",
        "--all-sites",
    )
    assert len(library().load("d")) == 3 and made["summary"]["best"]["auc"] > 0.9
    spec = parse_spec({"kind": "direction_make", **SPEC, "pair_by": "count", "method": method})
    first, second = spec.sides()
    assert [t.rsplit(" ", 1)[0] for t in first] == [t.rsplit(" ", 1)[0] for t in second], "the same statement"


def test_texts_along_a_kept_direction_are_those_of_the_sweep(workbench, model):
    direction = Direction.from_vector(
        torch.randn(48), site=SITE, name="d", scale=5.0, model_fingerprint=model.fingerprint
    )
    library().save("mine", direction)
    said = steer(
        workbench, "texts", "--direction", "mine", "--natural", "--strength", "2", "--prompt", "Mary and", "--tokens", "5",
        "--where", "from=1",
    )  # fmt: skip
    data = wb.load_run(said["path"]).result.data
    expected = wb.steering.generate(
        model, ["Mary and"], direction, 10.0, where=wb.steering.From(index=1), max_new_tokens=5
    ).texts
    assert data["text"].sel(direction="steered", strength=10.0).values.tolist() == list(expected)
    assert data["text"].sel(strength=0.0).values[0] == data["text"].sel(strength=0.0).values[1]
    back = carried.direction_of(wb.load_run(said["path"]).result)
    assert torch.equal(back.vector, direction.vector) and back.scale == 5.0


def test_a_dose_response_is_of_a_kept_direction_or_of_a_file(workbench, tmp_path):
    direction = Direction.from_vector(torch.ones(48), site=SITE, name="d", scale=3.0)
    library().save("mine", direction)
    direction.save(tmp_path / "file.safetensors")
    scores = []
    for where in ("mine", str(tmp_path / "file.safetensors")):
        told = steer(
            workbench,
            "--direction",
            where,
            "--natural",
            "--strength",
            "1",
            "--answer",
            "Mary",
            "--wrong",
            "John",
        )
        data = wb.load_run(told["path"]).result.data
        assert data["strength"].values.tolist() == [0.0, 3.0]
        scores.append(data["mean_score"].values)
    assert np.array_equal(*scores)


def test_a_sentence_is_written_and_its_vector_writes_it_again(workbench, model):
    told = steer(workbench, "write", "red", "--layer", "1", "--prefix", "the", "--save", "z")
    data = wb.load_run(told["path"]).result.data
    assert data["exact"].values.all() and str(data["written"].values[0]) == "red"
    z = library().direction("z")
    assert wb.steering.generate(model, "the", z, z.scale, max_new_tokens=1).texts == (
        str(data["written"].values[0]),
    )


def test_every_kind_has_figures_words_and_a_table(workbench):
    from workbench.cli.common import result_table

    library().save("mine", Direction.from_vector(torch.ones(48), site=SITE, name="d"))
    for arguments in (
        ["make", "colours.jsonl", *LABELS],
        ["texts", "--direction", "mine", "--prompt", "Mary and", "--tokens", "3"],
        ["write", "red blue", "green one", "--layer", "1", "--prefix", "the", "--restarts", "1"],
    ):
        result = wb.load_run(steer(workbench, *arguments)["path"]).result
        drawn, words = figures(result), describe(result)
        assert list(drawn) == list(words) and all(
            len(text) > 40 and "nan" not in text for text in words.values()
        )
        assert "ontrol" in control_statement(result)
        for figure in drawn.values():
            assert "n = " in figure.layout.title.subtitle.text and figure.layout.yaxis.title.text
        columns, rows = result_table(result)
        assert rows and all(len(row) == len(columns) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["texts"], "--direction NAME or FILE"),
        (["texts", "--direction", "mine", "--strength", "nan"], "finite"),
        (["texts", "--direction", "mine", "--op", "turn"], "turn"),
        (["texts", "--direction", "mine", "--parameter", "value"], "NAME=NUMBER"),
        (["texts", "--direction", "mine", "--where", "from="], "names no position"),
        (["--direction", "mien"], "Did you mean 'mine'?"),
        (["--direction", "missing.gguf"], "There is no file 'missing.gguf'"),
        (["--direction", "mine", "--site", SITE], "give one of both"),
        (["--natural"], "--direction"),
        (["--direction", "mine", "texts"], "would be lost"),
        (["make", "colours.jsonl", "--positive", "ture", "--negative", "false"], "no texts labelled 'ture'"),
        (["make", "colours.jsonl", *LABELS, "--method", "guess"], "method"),
        (["make", "colours.jsonl", *LABELS, "--pair-by", "verb"], "for several texts labelled"),
        (["make", "colours.jsonl", "--positive", "true", "--negative", "true"], "give two that differ"),
        (["make", "colours.jsonl", *LABELS, "--n-train", "2"], "cannot be measured"),
        (["make", "colours.jsonl", *LABELS, "--site", "blocks.9.hook_resid_post"], "does not exist"),
        (["write", "red", "--layer", "9"], "9"),
        (["compare", "--task", "sentimant"], "Did you mean 'sentiment'?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_says_what_to_do(workbench, arguments, says):
    library().save("mine", Direction.from_vector(torch.ones(48), site=SITE, name="d"))
    more = (
        []
        if arguments[-1] == "texts" and len(arguments) > 1
        else ["--model", str(workbench.here / "tiny-llama")]
    )
    code, _, err = workbench("steer", *arguments, *more)
    assert code == 2 and says in err and "Traceback" not in err, err


def test_names_files_and_rules_are_read():
    assert (
        rule("all") == "all"
        and rule("from=-2") == {"from": -2}
        and rule("from= Mary") == {"from_text": " Mary"}
    )
    with pytest.raises(DataError, match="no direction"):
        named("nothing")


def test_a_set_of_several_is_not_one(tmp_path, monkeypatch):
    from workbench.directions import DirectionSet

    monkeypatch.setenv("WORKBENCH_DIRECTIONS", str(tmp_path))
    several = DirectionSet(
        [
            Direction.from_vector(torch.ones(8), site=f"blocks.{i}.hook_resid_post", name=str(i))
            for i in (0, 1)
        ]
    )
    library().save("both", several)
    library().save("one", DirectionSet([several[0]]))
    assert one_named("one").site == several[0].site and len(named("both")) == 2
    with pytest.raises(DataError, match="set of 2 directions"):
        one_named("both")


def test_a_comparison_runs_from_its_spec(monkeypatch, llama):
    from workbench.steering import measure
    from workbench.steering.measure import shipped_tasks

    task = measure.SteeringTask(
        "length", positive=["red blue", "one two"], negative=["Mary", "John"], selection=["the red", "the blue"],
        test=["the green", "the one", "the two"], scorer=measure.OneSentence(), max_new_tokens=3,
    )  # fmt: skip
    monkeypatch.setattr(
        shipped_tasks, "shipped_task", lambda model, name, **asked: task
    )  # its texts need a real model
    spec = parse_spec(
        {"kind": "steer_compare", "tasks": ["sentiment"], "sites": [SITE], "target_kl": 0.05, "n_random": 1}
    )
    result = spec.run(llama, Silent())
    assert result.kind == "steering_methods" and result.data.attrs["target_kl"] == 0.05
    assert list(figures(result)) == ["change", "cost"] == list(describe(result))
