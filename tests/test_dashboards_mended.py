"""The dashboard: faults that reviews found, each with what a user saw."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import fake_results
import numpy as np
import pytest
import test_dashboard
from test_dashboard import FAKES, as_text, call, find, make_run, notes

from dashboards import following, ids
from dashboards.app import create_app, page_content
from dashboards.demo.stages import stages
from dashboards.figures import figures
from dashboards.pages import patch, probes, probes_cell, run, start
from dashboards.state import AppState
from probes.spec import ProbeSpec
from workbench.jobs import JobWorker
from workbench.progress import Preview
from workbench.specs import ModelSpec, parse_spec


@pytest.fixture
def state(tmp_path):
    worker = JobWorker(tmp_path / "runs", load=lambda _spec: object())  # type: ignore[arg-type]
    yield AppState.make(None, worker, "smollm2-135m")
    worker.close()


# --- Runs that were copied or linked ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linked", "a copy (2)"])
def test_a_linked_or_copied_run_does_not_keep_the_dashboard_from_starting(state, tmp_path, name):
    elsewhere = AppState.make(tmp_path / "elsewhere", state.worker, "smollm2-135m")
    made = elsewhere.runs / make_run(elsewhere, "lens")
    state.runs.mkdir(parents=True)
    if name == "linked":
        (state.runs / name).symlink_to(made)
    else:
        shutil.copytree(made, state.runs / name)
    create_app(worker=state.worker)
    text = as_text(page_content(state, "/", "light"))
    assert name in text  # listed, as on the page of runs
    assert start.status(state)["device"] == "known after the first run"
    make_run(state, "lens")
    assert start.status(state)["device"].startswith("cpu, float32")


def test_a_run_without_its_log_still_has_its_report(state):
    for spoil in (lambda log: log.unlink(), lambda log: log.write_text('{"time": 1\n')):
        run_id = make_run(state, "lens")
        spoil(state.runs / run_id / "log.jsonl")
        text = as_text(run.layout(state, run_id, "light"))
        assert text.count('"Graph"') == 2
        assert "log.jsonl cannot be read further" in text


# --- Forms and sentences ----------------------------------------------------------------------------------


def test_a_sweep_over_named_spans_is_shown_on_the_page_of_patches():
    strongest = {"layer": 3, "span": "name", "effect": 0.5}
    summary = {"n_pairs": 1, "strongest": strongest}
    said = patch.strongest_sentence(replace(fake_results.patching(), summary=summary))
    assert "layer 3, span name: effect 0.5" in said
    note = "No position is patched in every pair, so there is no mean over pairs."
    summary = {"n_pairs": 2, "strongest": None, "note": note}
    assert patch.strongest_sentence(replace(fake_results.patching(), summary=summary)) == note


def test_a_probe_run_on_all_examples_can_be_run_again_from_its_form():
    spec = ProbeSpec(dataset="sentiment")
    values = probes.form_values(spec)
    assert values[5] is None
    shown: list[Any] = [
        "" if i == 5 else value for i, value in enumerate(values)
    ]  # what an empty field holds
    assert parse_spec(probes.fields(*shown)).to_dict() == spec.to_dict() | {"labels": values[1]}


@pytest.mark.parametrize(
    "sites",
    [
        ["blocks.0.hook_resid_post", "blocks.{1,-1}.hook_mlp_out"],
        "blocks.{0,3}.hook_resid_post",
        "blocks.*.hook_resid_pre",
    ],
)
def test_a_probe_run_of_several_sites_can_be_run_again_from_its_form(sites):
    spec = ProbeSpec(dataset="sentiment", sites=sites, limit=20)
    assert parse_spec(probes.fields(*probes.form_values(spec))).to_dict()["sites"] == sites


def test_a_run_on_a_data_set_that_is_gone_is_still_shown(state):
    """A file that was moved, or a relative path and a dashboard started elsewhere."""
    spec = ProbeSpec(dataset="mine/gone.jsonl", labels=["a", "b"], filter={"topic": "x"})
    values = probes.form_values(spec)
    assert values[:4] == ["mine/gone.jsonl", ["a", "b"], [], ["topic=x"]]
    assert probes.form_values(ProbeSpec(dataset="mine/gone.jsonl"))[1] == []


@pytest.mark.parametrize("layer", [0, 14])
def test_a_click_on_the_auc_of_one_layer_chooses_that_layer(layer):
    every = fake_results.probes()
    result = replace(every, data=every.data.isel(layer=[layer]))
    traces: Any = figures(result)["auc"].data
    for i, trace in enumerate(traces):
        x = float(np.asarray(trace.x)[0])
        assert probes_cell.clicked({"points": [{"curveNumber": i, "x": x}]}, result) == (str(layer), None)
    assert any(float(np.asarray(trace.x)[0]) < layer for trace in traces)


# --- A tab that outlives the server -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        {"lens": {"job": "job-1", "search": "", "done": True, "run": "20260101-000000-lens-aaaa"}},
        {"lens": {"job": "job-7", "search": "", "done": True, "run": "20260101-000000-lens-aaaa"}},
        {"lens": {"job": "job-7", "search": "", "done": False}},
        {"patch": {"job": "job-9", "search": "", "done": True, "run": ""}, "lens": following.NONE},
    ],
)
def test_a_tab_of_an_earlier_start_follows_the_first_job_of_this_one(state, before):
    """Jobs are numbered from 1 again: the new job-1 looked older than the job the tab had waited for."""
    submitted = following.submit(state, FAKES["lens"], "lens")
    assert submitted["job"] == "job-1"
    mine = following.entry("lens", following.current(state, before), submitted)
    state.worker.wait("job-1", 60)
    _, done, there = following.step(state, "lens", mine, "")
    assert there == f"?run={done['run']}"
    assert following.current(state, {"lens": done}) == {"lens": done}  # this start's own is kept


def test_the_page_goes_to_the_result_of_the_first_job_after_a_restart(state):
    app = create_app(worker=state.worker)
    submitted = following.submit(state, FAKES["lens"], "lens")
    run_id = state.worker.wait("job-1", 60).run_id
    stale = {"lens": {"job": "job-3", "search": "", "done": True, "run": "20260101-000000-lens-gone"}}
    answer = watch(app, {"submitted.data": submitted, "following.data": stale, "location.search": ""})
    assert answer["location"]["search"] == f"?run={run_id}"
    assert answer["following"]["data"]["lens"]["job"] == "job-1"


def test_going_back_to_the_page_of_a_running_sweep_shows_what_there_is(state):
    """The page was made before it had been told its query, and its first look ended in an internal error."""
    test_dashboard._go.clear()
    job = state.submit(test_dashboard.Blocked(prompt="x"))
    job.preview = Preview("resid_pre, pair 1 of 1", np.array([[0.5, np.nan]]), "layer", "position")
    app = create_app(worker=state.worker)
    values: dict[str, object] = {"following.data": {"patch": {"job": job.id, "search": "", "done": False}}}
    first = call(app, "pages.patch", "paint", values, changed="poll.n_intervals")
    query = json.dumps(ids.query("patch"), sort_keys=True, separators=(",", ":"))
    values[f"{query}.data"] = {"search": "", "scheme": "dark"}
    second = call(app, "pages.patch", "paint", values, changed="poll.n_intervals")
    test_dashboard._go.set()
    assert notes(first) == [] and first["response"] == {}
    assert "1 of 2 cells" in json.dumps(second["response"]["patch-preview"])


def watch(app, values: dict[str, object]) -> dict:
    """The panel of the page of lenses looks once, over HTTP."""
    key, entry = find(app, "dashboards.components.job_panel.register.<locals>.watch", "poll.n_intervals")

    def one(wanted: str) -> object:
        name, prop = wanted.rsplit(".", 1)
        if not name.startswith("{"):
            return {"id": name.split("@")[0], "property": prop}
        return [{"id": json.loads(name) | {"page": "lens"}, "property": prop}]

    def filled(given: dict) -> object:
        if given["id"].startswith("{"):
            there = json.loads(given["id"]) | {"page": "lens"}
            return [{"id": there, "property": given["property"], "value": there}]
        return {**given, "value": values.get(f"{given['id']}.{given['property']}")}

    payload = {
        "output": key,
        "outputs": [one(wanted) for wanted in key.strip(".").split("...")],
        "inputs": [filled(given) for given in entry["inputs"]],
        "state": [filled(given) for given in entry["state"]],
        "changedPropIds": ["poll.n_intervals"],
    }
    answer = app.server.test_client().post("/_dash-update-component", json=payload)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.data)["response"]


# --- Demo -------------------------------------------------------------------------------------------------


def test_the_demo_steers_a_layer_that_the_model_has():
    sites = {n: stages(ModelSpec(name="m"), n)[-1].spec.site for n in (1, 12, 30, 80)}  # type: ignore[attr-defined]
    assert sites == {n: f"blocks.{i}.hook_resid_post" for n, i in ((1, 0), (12, 6), (30, 16), (80, 42))}
