"""The Steer page and the tray without a browser: form and spec, what a run holds, callbacks over HTTP."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import steer_app
import torch
from hypothesis import given
from hypothesis import strategies as st
from steer_app import SITE, SPEC, asked, direction
from test_dashboard import as_text, call, show

import workbench as wb
from dashboards.pages import steer, steer_code, steer_fields, steer_form, steer_show
from dashboards.pages.steer_fields import fields, form_values, parse_strengths
from workbench.directions import Direction, DirectionSet, carried, library
from workbench.errors import DataError, PromptError, RunError
from workbench.runs import run_spec
from workbench.specs import load_spec, parse_spec

tray_folder = pytest.fixture(autouse=True)(steer_app.tray_of_its_own)
model = pytest.fixture(scope="module")(steer_app.tiny_llama)
state = pytest.fixture(steer_app.own_state)
app = pytest.fixture(steer_app.own_app)


# --- Form and spec ----------------------------------------------------------------------------------------------

MADE = [
    "Mary went\nJohn and",
    "made",
    None,
    False,
    "red\nblue",
    "one\ntwo",
    "mlp_out",
    2,
    "-2, 2",
    "natural",
    "add",
    0,
    0,
]
MADE += ["all", "", 12, "greedy", 0.8, 3, " good", " bad", 5, "m", "auto"]
CLAMPED = [
    "the",
    "tray",
    "truth",
    True,
    "",
    "",
    "resid_post",
    0,
    "0.5, 1",
    "natural",
    "clamp",
    7,
    0,
    "from_text",
    "he",
    9,
]
CLAMPED += ["sampled", 0.7, 1, " good", " bad", 5, "m", "float32"]


def test_prompts_become_a_mean_difference_and_the_spec_the_same_form():
    spec = parse_spec(fields("dose_response", *MADE))
    assert (spec.site, spec.positive, spec.negative) == (
        "blocks.2.hook_mlp_out",
        ["red", "blue"],
        ["one", "two"],
    )
    assert (spec.strengths, spec.units, spec.direction, spec.temperature) == ([-2, 2], "natural", "", 0)
    back = dict(zip(steer.FORM, form_values(spec), strict=True))
    kept = {"direction", "value", "offset", "start", "temperature"}  # not part of what was asked
    assert {k: v for k, v in back.items() if k not in kept} == {
        k: v for k, v in zip(steer.FORM, MADE, strict=True) if k not in kept
    }


def test_a_named_direction_its_operation_and_its_rule_become_a_spec_and_the_same_form():
    spec = parse_spec(fields("texts", *CLAMPED))
    assert (spec.direction, spec.force, spec.parameters) == ("truth", True, {"value": 7})
    assert (spec.where, spec.temperature, spec.units) == ({"from_text": "he"}, 0.7, "activation")
    back = dict(zip(steer.FORM, form_values(spec), strict=True))
    for name in (
        "source",
        "direction",
        "force",
        "op",
        "value",
        "where",
        "start",
        "tokens",
        "decoding",
        "temperature",
    ):
        assert back[name] == dict(zip(steer.FORM, CLAMPED, strict=True))[name], name


def test_the_form_offers_the_operations_and_rules_there_are():
    from workbench.steering.operations import OPERATIONS
    from workbench.steering.rules import NAMED

    assert set(steer_form.OPERATIONS) == set(OPERATIONS)
    assert set(steer_form.RULES) == {*NAMED, "from", "from_text"}
    needed = {name: set(kind.parameters) for name, kind in OPERATIONS.items() if kind.parameters}
    assert {name: set(boxes.values()) for name, boxes in steer_fields.PARAMETERS.items()} == needed


@given(
    st.lists(
        st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3)), min_size=1, max_size=20, unique=True
    )
)
def test_any_list_of_strengths_is_read_as_it_is_written(strengths):
    assert parse_strengths(", ".join(map(repr, strengths))) == list(dict.fromkeys(strengths))


def test_ranges_hold_both_ends_and_a_typographic_minus_is_one():
    assert parse_strengths("−8:8:4, 12") == [-8, -4, 0, 4, 8, 12]
    assert parse_strengths("0:1:0.1") == [round(0.1 * i, 12) for i in range(11)]


@pytest.mark.parametrize(
    "text", ["", "x", "1:2", "8:-8:4", "1:2:0", "nan", "inf", "1e999", "0:1e9:1", "0:100:1"]
)
def test_what_is_no_strength_is_an_error_that_shows_one(text):
    with pytest.raises(DataError, match=r"trength|at most"):
        parse_strengths(text)


@pytest.mark.parametrize(
    ("field", "value", "error", "says"),
    [
        ("prompts", " \n ", PromptError, "no prompt"),
        ("negative", "", DataError, "negative prompts is empty"),
        ("strengths", "", DataError, "No strengths"),
        ("where", "from", DataError, "not a position"),
        ("where", "from_text", DataError, "need that text"),
        ("tokens", "", RunError, "max_new_tokens"),
        ("tokens", 0, RunError, "at least 1 new token"),
        ("op", "clamp", RunError, "choose these, or look at texts"),
        ("source", "tray", DataError, "No direction is chosen"),
    ],
)
def test_bad_input_is_an_error_before_anything_runs(field, value, error, says):
    form = dict(zip(steer.FORM, MADE, strict=True)) | {field: value}
    look_at = "dose_response" if field == "op" else "texts"
    with pytest.raises(error, match=says):
        parse_spec(fields(look_at, *form.values()))


def test_natural_units_are_multiples_of_the_scale_and_not_offered_for_angles():
    with pytest.raises(RunError, match="not a norm"):
        asked(op="rotate")
    with pytest.raises(RunError, match="either"):
        asked(direction="truth")


def test_names_that_the_page_has_of_its_own_are_those_of_the_room():
    from dashboards.pages import steer_names
    from workbench.steering import texts
    from workbench.steering.specs import apply

    assert steer_names.NORMS == apply.NORMS and steer_names.TEXTS == texts.KIND


# --- What a run holds -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts_run(tmp_path_factory, model):
    return run_spec(asked(), runs=tmp_path_factory.mktemp("runs"), model=model)


def test_texts_are_those_of_generate_one_by_one(texts_run, model):
    data = texts_run.result.data
    made = wb.steering.mean_difference(model, SPEC["positive"], SPEC["negative"], SITE)
    assert np.allclose(data["strength"].values, [-made.scale, 0, made.scale])
    lone = Direction.random(made, seed=0)
    for along, side in ((made, "steered"), (lone, "random")):
        for s in data["strength"].values:
            for i, prompt in enumerate(SPEC["prompts"]):
                said = wb.steering.generate(model, prompt, along, float(s), max_new_tokens=6).texts[0]
                assert str(data["text"].sel(direction=side, strength=s).values[i]) == said
    plain = wb.steering.generate(model, SPEC["prompts"], max_new_tokens=6).texts
    assert data["text"].sel(direction="random", strength=0.0).values.tolist() == list(plain)


def test_the_cost_of_a_text_is_its_mean_log_probability_in_a_plain_forward_pass(texts_run, model):
    cell = texts_run.result.data.isel(direction=0, strength=2, prompt=1)
    made = wb.steering.mean_difference(model, SPEC["positive"], SPEC["negative"], SITE)
    said = wb.steering.generate(model, SPEC["prompts"][1], made, made.scale, max_new_tokens=6)
    ids_ = torch.tensor([[*said.prompts[0], *said.tokens[0]]])
    with torch.no_grad():
        logp = model.hf(ids_).logits[0].log_softmax(-1)
    n = len(said.tokens[0])
    expected = -float(logp[-n - 1 : -1].gather(-1, ids_[0, -n:, None]).mean())
    assert float(cell["cross_entropy"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("several", [False, True], ids=["one", "a set"])
def test_the_direction_comes_back_from_a_run_bit_for_bit(texts_run, tmp_path, several):
    held = direction(1, fingerprint="abc")
    given_ = (
        DirectionSet([held, direction(2, "blocks.0.attn.hook_z", d=32)], name="both") if several else held
    )
    data = carried.with_direction(texts_run.result.data.drop_vars("vector"), given_)
    saved = replace(texts_run.result, data=data).save(tmp_path / "r.zarr")
    back = carried.direction_of(wb.Result.load(saved))
    for a, b in zip(carried.members(back), carried.members(given_), strict=True):
        assert torch.equal(a.vector, b.vector)
        assert (a.site, a.scale, a.name, a.model_fingerprint) == (
            b.site,
            b.scale,
            b.name,
            b.model_fingerprint,
        )


def test_a_dose_response_is_that_of_the_library_and_holds_its_direction(model, tmp_path):
    more = {"look_at": "dose_response", "answer": "Mary", "wrong": "John", "n_random": 2, "max_new_tokens": 0}
    run = run_spec(asked(**more), runs=tmp_path, model=model)
    made = wb.steering.mean_difference(model, SPEC["positive"], SPEC["negative"], SITE)
    strengths = [-made.scale, made.scale]
    metric = wb.LogitDifference("Mary", "John")
    alone = wb.steering.dose_response(model, SPEC["prompts"], made, strengths, metric, n_random=2)
    assert np.allclose(run.result.data["score"], alone.data["score"], atol=1e-5)
    assert torch.equal(carried.direction_of(run.result).vector, made.vector)
    assert "random directions" in steer_show.sentence(run.result)


def test_another_models_direction_is_refused_unless_forced(model, tmp_path):
    library().save("foreign", direction(0, fingerprint="of another model"))
    spec = {"positive": [], "negative": [], "site": "", "direction": "foreign"}
    with pytest.raises(DataError, match="fingerprint"):
        run_spec(asked(**spec), runs=tmp_path, model=model)
    assert run_spec(asked(**spec, force=True), runs=tmp_path, model=model).result.summary["n_prompts"] == 2


@pytest.mark.parametrize("op", ["clamp", "in_context", "ablate"])
def test_the_copied_python_gives_the_very_texts_of_the_run(model, tmp_path, monkeypatch, op):
    parameters = {"clamp": {"value": 3.0}, "in_context": {"similarity": 1.0}}.get(op, {})
    more = {"op": op, "parameters": parameters, "units": "activation", "strengths": [0.5, 1.0]}
    spec = asked(**more, where={"from": 1}, temperature=0.9, seed=4)
    run = run_spec(spec, runs=tmp_path, model=model)
    monkeypatch.setattr(wb, "load_model", lambda *_a, **_k: model)
    said: dict = {}
    exec(steer_code.python(spec), said)
    expected = run.result.data["text"].sel(direction="steered")
    for s, texts in zip(said["sweep"].strengths, said["sweep"].texts, strict=True):
        assert list(texts) == expected.sel(strength=s).values.tolist()
    assert load_spec(run.path / "spec.yaml") == spec


def test_the_page_shows_texts_costs_control_n_and_code(texts_run):
    text = as_text(steer_show.show(texts_run, "light"))
    data = texts_run.result.data
    assert all(json.dumps(str(t), ensure_ascii=False) in text for t in data["text"].values.ravel() if str(t))
    for said in (
        "random direction, same norm (control)",
        "n = 2 prompts",
        "nats/token",
        "1 × scale",
        "Copy Python",
    ):
        assert said in text, said
    assert "AUC" in steer_show.quality_sentence(texts_run.result)


# --- Callbacks, over HTTP ---------------------------------------------------------------------------------------


def form_of(values: list, **more):
    known = {
        f"steer-{n}.{'checked' if n == 'force' else 'value'}": v
        for n, v in zip(steer.FORM, values, strict=True)
    }
    return known | {f"steer-{n}.value": v for n, v in more.items()}


@pytest.mark.parametrize(("button", "look_at"), [("run", "texts"), ("dose", "dose_response")])
def test_each_button_is_a_job_that_the_page_follows_and_shows(app, state, button, look_at):
    values = form_of(
        MADE, layer=1, answer="Mary", wrong="John", tokens=3, random=1, prompts="Mary went\nthe capital of"
    )
    values[f"steer-{button}.n_clicks"] = 1
    answer = call(app, "pages.steer", "submit", values, changed=f"steer-{button}.n_clicks")
    (job,) = state.worker.jobs()
    ((_, value),) = answer["response"].items()
    assert value["data"] == {"page": "steer", "job": job.id, "search": ""}
    job = state.worker.wait(job.id, 60)
    assert (job.state, job.spec.look_at, job.error) == ("finished", look_at, "")
    shown = show(app, "steer", f"?run={job.run_id}")["response"]
    assert shown["steer-prompts"]["value"] == "Mary went\nthe capital of"
    assert "Reproduce" in json.dumps(shown["steer-result"])
    assert ('"Graph"' in json.dumps(shown["steer-result"])) == (button == "dose")
