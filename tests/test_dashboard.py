"""The dashboard without a browser: forms and specs, jobs, runs, callbacks over HTTP, and who may ask."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import fake_results
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dashboards import cli, following, ids, jobs_view
from dashboards.app import create_app, page_content
from dashboards.components import forms, graphs, reproduce, tokens
from dashboards.figures import figures, theme
from dashboards.pages import lens, patch, probes, run, runs, start
from dashboards.server import allowed_hosts, make_server
from dashboards.state import AppState
from probes.spec import ProbeSpec
from workbench.errors import DataError, MetricError, PromptError, RunError, WorkbenchError
from workbench.jobs import Job, JobWorker
from workbench.lens.spec import LensSpec
from workbench.patching.specs.sweep import PatchSpec
from workbench.runs import run_spec
from workbench.specs import ModelSpec, load_spec, parse_spec
from workbench.steering.specs.labelled import SteerSpec

ASSETS = Path(lens.__file__).parents[1] / "assets"
PROMPT = "When Mary and John went to the store, John gave a drink to"


LENS_SUMMARY = {
    "target": " Mary",
    "position": 13,
    "depth": 24,
    "n_layers": 30,
    "final_rank": 1,
    "final_probability": 0.9,
    "control_rank_last_layer": 24521.0,
}
STRONGEST = {"layer": 16, "position": 9, "token": " John", "effect": -1.01}
PATCH_SUMMARY = {"kind": "resid_pre", "n_pairs": 1, "strongest": STRONGEST}
BEST = {"layer": 14, "probe": "logistic", "site": "blocks.14.hook_resid_post", "auc": 0.985, "auc_low": 0.954}
BEST |= {"auc_high": 0.999, "accuracy": 0.887, "control_auc": 0.49}
PROBE_SUMMARY = {"best": BEST, "n": 160, "majority_accuracy": 0.5125}


class FakeLens(LensSpec):
    """A lens run whose numbers are made up."""

    def run(self, model, progress):
        return replace(fake_results.lens(), summary=LENS_SUMMARY)


class FakePatch(PatchSpec):
    """A patching run whose numbers are made up."""

    def run(self, model, progress):
        return replace(fake_results.patching(), summary=PATCH_SUMMARY)


class FakeProbe(ProbeSpec):
    """A probe run whose numbers are made up."""

    def run(self, model, progress):
        return replace(fake_results.probes(), summary=PROBE_SUMMARY)


class FakeSteer(SteerSpec):
    """A steering run whose numbers are made up: it has a report but no page of its own."""

    def run(self, model, progress):
        return replace(fake_results.steering(), summary={"slope": 0.5})


FAKES = {
    "lens": FakeLens(prompt=PROMPT, target=" Mary"),
    "patch": FakePatch(**patch.EXAMPLE),
    "probe": FakeProbe(dataset="sentiment", limit=40),
    "steer": FakeSteer(),
}


@pytest.fixture
def state(tmp_path):
    worker = JobWorker(tmp_path / "runs", load=lambda _spec: object())
    yield AppState.make(None, worker, "smollm2-135m")
    worker.close()


@pytest.fixture
def app(state):
    return create_app(worker=state.worker)


def make_run(state: AppState, kind: str) -> str:
    return run_spec(FAKES[kind], runs=state.runs, model=object()).id  # type: ignore[arg-type]


def find(app, name: str, changed: str):
    """A callback by its name and one of its inputs."""
    for key, entry in app.callback_map.items():
        found = entry.get("callback")
        listens_to = {f"{v['id']}.{v['property']}" for v in entry["inputs"]}
        if found and f"{found.__module__}.{found.__qualname__}" == name and changed in listens_to:
            return key, entry
    raise AssertionError(f"no callback {name} that listens to {changed}")


def call(app, module: str, function: str, values: dict[str, object], *, changed: str):
    """Call a callback over HTTP, as the browser does. `values` by `id.property`; what is not given is None."""
    key, entry = find(app, f"dashboards.{module}.register.<locals>.{function}", changed)

    def filled(wanted):
        return [{**v, "value": values.get(f"{v['id']}.{v['property']}")} for v in wanted]

    outputs = [
        dict(zip(("id", "property"), o.rsplit(".", 1), strict=True)) for o in key.strip(".").split("...")
    ]
    payload = {
        "output": key,
        "outputs": outputs if key.startswith("..") else outputs[0],
        "inputs": filled(entry["inputs"]),
        "state": filled(entry["state"]),
        "changedPropIds": [changed],
    }
    answer = app.server.test_client().post("/_dash-update-component", json=payload)
    assert answer.status_code in (200, 204), answer.text
    return json.loads(answer.data) if answer.data else {}


def notes(answer) -> list[dict]:
    return answer.get("sideUpdate", {}).get(ids.NOTIFICATIONS, {}).get("sendNotifications", [])


# --- Imports ---------------------------------------------------------------------------------------------------


def test_starting_the_dashboard_imports_no_torch():
    code = "import sys, dashboards.app as a; a.create_app('runs'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- Who may ask -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("localhost:1234", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_only_requests_to_this_servers_own_name_and_port_are_answered(app, host, status):
    assert app.server.test_client().get("/_dash-layout", headers={"Host": host}).status_code == status


def test_allowed_hosts_name_the_port_unless_it_is_the_default_one():
    assert allowed_hosts(8050) == {"127.0.0.1:8050", "localhost:8050", "[::1]:8050"}
    assert "localhost" in allowed_hosts("80")


@pytest.mark.parametrize(("origin", "status"), [("http://evil.example", 403), ("null", 403)])
def test_a_request_from_another_site_that_could_change_something_is_refused(app, origin, status):
    answer = app.server.test_client().post("/_dash-update-component", json={}, headers={"Origin": origin})
    assert answer.status_code == status


def test_answers_carry_security_headers_and_a_policy_without_other_hosts(app):
    answer = app.server.test_client().get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'self'" in policy
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert "unsafe" not in scripts
    assert "sha256-" in scripts
    assert "http" not in policy
    assert "*" not in policy


def test_the_page_has_a_language_and_names_no_other_host(app):
    html = app.server.test_client().get("/").text
    assert '<html lang="en">' in html
    urls = re.findall(r"(?:https?:)?//[\w.-]+", html.replace("http://www.w3.org/2000/svg", ""))
    assert not [u for u in urls if "//" in u and not u.endswith("//")], urls


@pytest.mark.parametrize("path", sorted(ASSETS.glob("*")), ids=lambda p: p.name)
def test_assets_name_no_other_host(path):
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text
    assert "@import" not in text


def test_a_host_that_others_can_reach_is_refused_with_the_way_out():
    done = CliRunner().invoke(cli.app, ["--host", "0.0.0.0", "--no-open"])
    assert isinstance(done.exception, WorkbenchError)
    assert "SSH tunnel" in str(done.exception)


def test_a_port_that_is_taken_is_an_error_that_says_so(app):
    first = make_server(app, port=0)
    with pytest.raises(WorkbenchError, match=r"in use.*--port"):
        make_server(app, port=first.effective_port)
    first.close()


def test_the_command_serves_until_ctrl_c_and_says_where(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "workbench.cli.main", "dashboard", "--no-open", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--runs", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        said = process.stdout.readline()
        assert f"http://127.0.0.1:{port}/" in said
        assert str(tmp_path) in said
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_dash-layout", timeout=20) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Stopped." in process.stdout.read()
    finally:
        process.kill()
        process.stdout.close()


# --- Runs by id ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run_id", ["..", ".", "../secret", "/etc", "a/b", "..%2fsecret", "", "x" * 300, "a\x00b"]
)
def test_a_run_id_is_a_name_and_never_a_path(state, run_id):
    (state.runs.parent / "secret").mkdir()
    with pytest.raises(RunError):
        state.run(run_id)


def test_a_link_out_of_the_folder_of_runs_is_not_followed(state, tmp_path):
    elsewhere = AppState.make(tmp_path / "elsewhere", state.worker, "smollm2-135m")
    run_id = make_run(elsewhere, "lens")
    state.runs.mkdir(parents=True)
    (state.runs / "linked").symlink_to(elsewhere.runs / run_id)
    with pytest.raises(RunError, match="outside"):
        state.run("linked")


def test_files_of_a_run_are_handed_out_by_name_only(app, state):
    run_id = make_run(state, "lens")
    client = app.server.test_client()
    spec = client.get(f"/files/{run_id}/spec.yaml")
    assert spec.status_code == 200
    assert spec.headers["Content-Disposition"].startswith("attachment")
    for address in (
        f"/files/{run_id}/log.jsonl",
        f"/files/{run_id}/..",
        "/files/nothing/spec.yaml",
        "/files/%2e%2e/spec.yaml",
    ):
        assert client.get(address).status_code == 404, address


def test_broken_runs_are_listed_with_their_problem_and_counted(state):
    make_run(state, "lens")
    (state.runs / "20260101-000000-lens-dead").mkdir(parents=True)
    found = state.list_runs()
    rows = [runs.row(info) for info in found]
    broken = next(r for r in rows if r["problem"])
    assert "provenance.json" in broken["title"]
    options = {o["value"]: o["label"] for o in runs.kinds(found)}
    assert options == {"all": "all (2)", "broken": "broken (1)", "lens": "lens (1)"}
    assert [i.id for i in runs.select(found, "broken", None)] == ["20260101-000000-lens-dead"]


def test_runs_are_found_by_text_in_title_model_or_id(state):
    run_id = make_run(state, "lens")
    make_run(state, "probe")
    found = state.list_runs()
    for text in ("mary AND", run_id[-4:]):
        assert [i.id for i in runs.select(found, "all", text)] == [run_id]
    assert len(runs.select(found, None, " smollm2 ")) == 2
    assert runs.select(found, "patch", "") == []


# --- Forms and specs -------------------------------------------------------------------------------------------

STREAM = "blocks.*.hook_resid_post"
SENTIMENT = [
    "sentiment", ["negative", "positive"], [], ["domain=film", "domain=hotel"], None, 60, ["mass_mean"], "0.1", 3,
    "blocks.3.hook_z", -2, False,
]  # fmt: skip
CAPITALS = ["capitals", ["neither", "true"], [], [], None, 200, ["logistic"], "0.01, 1", 5, STREAM, -1, True]
SEVERAL = [
    "capitals", ["false", "true"], ["negated", "continent=Africa"], ["made_up=False"], "country", 90,
    ["logistic", "mlp"], "1", 4, STREAM, -1, True,
]  # fmt: skip
OTHERS = ["capitals", [], ["template"], [], "country", 90, ["lda"], "1", 4, STREAM, -1, True]
FORMS = [
    (lens, [PROMPT, " Mary", "smollm2-135m", "bfloat16"]),
    (lens, ["x", "", "m", "auto"]),
    (probes, [*SENTIMENT, "m", "auto"]),
    (probes, [*CAPITALS, "m", "float16"]),
    (probes, [*SEVERAL, "m", "auto"]),
    (probes, [*OTHERS, "m", "auto"]),
]


@pytest.mark.parametrize(("page", "values"), FORMS)
def test_a_form_becomes_a_spec_and_the_spec_the_same_form(page, values):
    spec = parse_spec(page.fields(*values))
    assert page.form_values(spec) == values


def test_a_pair_and_a_data_set_become_specs_and_the_same_form():
    pair = ["pair", *patch.EXAMPLE.values(), None, 8, "z", "noising", False, "m", "auto"]
    back = patch.form_values(parse_spec(patch.fields(*pair)))
    assert back[:5] == pair[:5]
    assert back[7:] == pair[7:]
    dataset = [
        "dataset",
        None,
        None,
        None,
        None,
        "indirect-objects",
        3,
        "attn_out",
        "denoising",
        True,
        "m",
        "auto",
    ]
    back = patch.form_values(parse_spec(patch.fields(*dataset)))
    assert back[0] == "dataset"
    assert back[5:] == dataset[5:]


@given(prompt=st.text(min_size=1).filter(str.strip), target=st.text())
def test_any_prompt_survives_the_form(prompt, target):
    spec = parse_spec(lens.fields(prompt, target, "m", "auto"))
    assert (spec.prompt, spec.target) == (prompt, target or None)


def test_bad_input_is_an_error_before_anything_runs():
    with pytest.raises(PromptError, match="prompt is empty"):
        lens.fields(" \n", "", "m", "auto")
    pair = dict(patch.EXAMPLE)
    for missing, error in (("corrupt", PromptError), ("wrong", MetricError)):
        values = [None if name == missing else text for name, text in pair.items()]
        with pytest.raises(error, match=missing):
            patch.fields("pair", *values, None, 8, "z", "noising", True, "m", "auto")
    for place, wrong, message in (
        (1, ["positive"], "two labels or more"),
        (1, [], "two labels or more"),
        (6, [], "No kind of probe"),
        (7, "a lot", "C is 'a lot'"),
    ):
        with pytest.raises(DataError, match=message):
            probes.fields(*[wrong if i == place else v for i, v in enumerate([*SENTIMENT, "m", "auto"])])
    with pytest.raises(DataError, match="3 labels make one probe of 3 classes"):
        probes.fields("capitals", labels_of_capitals(), *SEVERAL[2:], "m", "auto")
    with pytest.raises(RunError, match="limit"):
        parse_spec(patch.fields("dataset", *[None] * 4, "x", "", "z", "noising", True, "m", "auto"))


def labels_of_capitals() -> list[str]:
    return probes.labels_of("capitals")


def test_the_probes_page_offers_the_kinds_and_sets_there_are():
    from typing import get_args

    from probes.spec import Kind

    assert set(probes.KINDS) == set(get_args(Kind))
    assert {"capitals", "sentiment"} <= set(probes.statement_sets())
    assert labels_of_capitals() == ["false", "true", "neither"]


def test_the_patch_page_offers_the_sites_that_can_be_patched():
    from workbench.patching.sweep import KINDS

    assert list(patch.SITES) == list(KINDS)


def test_examples_of_the_start_page_are_valid_specs():
    for kind, example in start.EXAMPLES.items():
        assert parse_spec(example["fields"]).kind == kind


def test_forms_offer_the_model_the_dashboard_was_started_with(state):
    assert forms.model_names(replace(state, model="my/model"))[:2] == ["my/model", "smollm2-135m"]


AWKWARD = "It's \"quoted\" \\ and\nbroken $HOME `x` 'YAML'\nYAML "


@pytest.mark.parametrize(
    "spec",
    [
        LensSpec(prompt=AWKWARD, target=" Mary", model=ModelSpec(name="m", dtype="bfloat16"), seed=3),
        PatchSpec(**{**patch.EXAMPLE, "clean": AWKWARD}, site="z", control=False),
        ProbeSpec(
            dataset="capitals", labels=("true", "false"), filter={"negated": False}, kinds=["mass_mean"]
        ),
    ],
    ids=lambda s: s.kind,
)
def test_copied_code_asks_for_the_very_same_run(spec, monkeypatch, tmp_path):
    import workbench as wb

    asked = []

    class Stop(Exception):
        pass

    def stop(given):
        asked.append(given)
        raise Stop

    monkeypatch.setattr(wb, "run_spec", stop, raising=False)
    with pytest.raises(Stop):
        exec(reproduce.python(spec), {})
    assert asked == [spec]

    script = f'workbench() {{ mv "$2" asked.yaml; }}\n{reproduce.shell(spec)}'
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True)
    assert load_spec(tmp_path / "asked.yaml") == spec


# --- Results in words ------------------------------------------------------------------------------------------


def test_the_depth_sentence_says_from_which_layer_on():
    result = fake_results.lens()
    said = lens.depth_sentence(replace(result, summary=LENS_SUMMARY))
    assert said.startswith("' Mary' becomes and stays top-1 at position 13 from layer 24 of 0–29 on")
    assert "24,521" in said
    never = lens.depth_sentence(replace(result, summary={**LENS_SUMMARY, "depth": None, "final_rank": 1234}))
    assert "not top-1" in never
    assert "1,234" in never


def test_the_strongest_cell_is_named_beside_its_control():
    result = fake_results.patching()
    said = patch.strongest_sentence(replace(result, summary={"strongest": STRONGEST, "n_pairs": 8}))
    assert "effect −1.01; control not run; n = 8 pairs" in said
    strongest = STRONGEST | {"control_effect": 0.617, "interval": [-1.2, -0.9]}
    said = patch.strongest_sentence(replace(result, summary={"strongest": strongest, "n_pairs": 8}))
    assert "layer 16, position 9 ' John'" in said
    assert "[95 % interval −1.2 to −0.9]; wrong-source control there 0.617" in said


def test_the_best_probe_is_named_beside_majority_and_shuffled_labels():
    said = probes.best_sentence(replace(fake_results.probes(), summary=PROBE_SUMMARY))
    assert said == (
        "Best: logistic regression at layer 14, AUC 0.985 [95 % interval 0.954 to 0.999], accuracy 0.887 "
        "(majority 0.512); shuffled labels there 0.490; n = 160."
    )


@pytest.mark.parametrize("cell", [(0, 0), (17, 9), (29, 13)])
def test_a_click_on_a_label_of_the_figure_is_its_layer_and_position(cell):
    result = fake_results.lens()
    trace = figures(result)["lens"].data[0]
    click = {"points": [{"y": trace.y[cell[0]], "x": trace.x[cell[1]]}]}
    assert lens.clicked_cell(click) == cell
    table = str(lens.cell_table(result, *cell))
    expected = result.data.sel(layer=cell[0], position=cell[1])["top_probability"].values
    assert all(f"{p:.4f}" in table for p in expected)


def test_no_click_is_no_cell():
    assert lens.clicked_cell(None) is None
    assert lens.clicked_cell({"points": []}) is None


@pytest.mark.parametrize(("token", "shown"), [(" Mary", "·Mary"), ("\n", "↵"), ("", "∅"), ("a b", "a·b")])
def test_spaces_and_line_breaks_of_tokens_can_be_seen(token, shown):
    assert tokens.visible(token) == shown


def test_a_strip_that_leaves_tokens_out_says_so():
    assert "the first 300 of 301 tokens" in as_text(tokens.strip(["a"] * 301))
    assert "of 300 tokens" not in as_text(tokens.strip(["a"] * 300))


def test_a_graph_has_its_description_as_its_name():
    drawn = graphs.graphs(fake_results.lens(), "lens", "dark")["lens"]
    said = drawn.to_plotly_json()["props"]["aria-label"]
    assert "Heatmap of 30 layers by 14 positions" in said


def test_the_page_has_the_colours_of_the_figures():
    css = (ASSETS / "style.css").read_text()
    for scheme, colours in theme.TOKENS.items():
        block = css.split(f'[data-mantine-color-scheme="{scheme}"]')[1].split("}")[0]
        assert f"--mantine-color-body: {colours.background};" in block
        assert f"--surface: {colours.surface};" in block
        assert f"--mantine-color-text: {colours.text};" in block


# --- Jobs ------------------------------------------------------------------------------------------------------


def job(number: int = 1, spec=None, **values) -> Job:
    return replace(Job(f"job-{number}", spec or LensSpec(prompt="x")), **values)


def test_a_job_is_described_by_stage_count_and_time_left():
    running = job(state="running", stage="patch z", done=3, total=12)
    assert jobs_view.describe(running).startswith("patch z · 3 of 12 · about ")
    assert jobs_view.percent(running) == 25.0
    assert jobs_view.describe(job(state="running", stage="load model")) == "load model"
    assert jobs_view.describe(job()) == "waiting for its turn"
    assert jobs_view.describe(job(state="finished", started=1.0, ended=3.5)) == "finished after 2.5 s"
    assert jobs_view.describe(job(state="failed", error="No such site.")) == "No such site."


@pytest.mark.parametrize(
    ("value", "words"), [(0.44, "0.4 s"), (9.94, "9.9 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s")]
)
def test_times_read_well(value, words):
    assert jobs_view.seconds(value) == words


def test_an_end_is_told_once_and_a_failure_stays():
    failed = job(1, state="failed", error="The prompt is empty.")
    done = job(2, state="finished", run_id="20260101-000000-lens-aaaa")
    told = jobs_view.news([done, failed], {"job-2": "running"})
    assert [n["message"] for n in told if n["color"] == "red"] == ["The prompt is empty."]
    assert told[0]["autoClose"] is False
    assert len(told) == 2
    again = jobs_view.news([done, failed], {"job-2": "running"})  # another callback, as late as the first
    assert [note["id"] for note in again] == [note["id"] for note in told]
    assert len({note["id"] for note in told}) == 2
    assert jobs_view.news([done, failed], {"job-1": "failed", "job-2": "finished"}) == []
    assert jobs_view.news([done], {}, shown="job-2") == []


def test_polling_goes_on_for_one_look_after_the_end():
    done = job(state="finished")
    assert not jobs_view.idle([job(state="running")], {"job-1": "running"})
    assert not jobs_view.idle([done], {"job-1": "running"})
    assert not jobs_view.idle([done], {})
    assert jobs_view.idle([done], {"job-1": "finished"})
    assert jobs_view.idle([], {})


def test_the_drawer_says_when_it_does_not_list_every_job():
    jobs = [job(i, state="finished") for i in range(jobs_view.SHOWN + 5)]
    shown = jobs_view.rows(jobs)
    assert len(shown) == jobs_view.SHOWN + 1
    assert f"{jobs_view.SHOWN} of {len(jobs)}" in str(shown[-1])


class Blocked(FakeLens):
    """A lens run that waits for an event of the test."""

    def run(self, model, progress):
        progress.stage("wait", 100)
        while not _go.wait(0.01):
            progress.advance(0)
        return super().run(model, progress)


_go = threading.Event()


def test_a_reloaded_page_takes_up_the_running_job_of_its_kind_once(state):
    _go.clear()
    mine = state.submit(Blocked(prompt="x"))
    taken, entry, there = following.step(state, "lens", None, "?run=before")
    assert (taken, there) == (mine, None)
    assert entry == {"job": mine.id, "search": "?run=before", "done": False}
    assert following.step(state, "patch", None, "") == (None, following.NONE, None)
    assert following.step(state, "lens", following.NONE, "") == (None, following.NONE, None)
    _go.set()
    run_id = state.worker.wait(mine.id, 10).run_id
    _, done, there = following.step(state, "lens", entry, "?run=before")
    assert there == f"?run={run_id}"
    assert following.own(done, run_id)
    assert following.step(state, "lens", done, "?run=before")[2] is None  # not twice
    assert following.step(state, "lens", entry, "?run=other")[2] is None  # not over another run


def test_what_was_submitted_last_wins_whichever_answer_comes_first():
    submitted = {"page": "lens", "job": "job-10", "search": ""}
    older = {"lens": {"job": "job-9", "search": "", "done": False}}
    wanted = {"job": "job-10", "search": "", "done": False}
    assert following.entry("lens", older, submitted) == wanted
    assert following.entry("lens", None, submitted) == wanted
    done = {"lens": {**wanted, "done": True}}
    assert following.entry("lens", done, submitted)["done"]
    assert following.entry("patch", older, submitted) is None
    newer = {"lens": {**wanted, "job": "job-11"}}
    assert following.entry("lens", newer, submitted)["job"] == "job-11"


def test_a_job_of_an_earlier_start_is_forgotten(state):
    assert following.step(state, "lens", {"job": "job-9", "search": "", "done": False}, "")[0] is None


# --- Callbacks, over HTTP --------------------------------------------------------------------------------------

SUBMIT = {
    "lens-run.n_clicks": 1,
    "lens-prompt.value": PROMPT,
    "lens-target.value": " Mary",
    "lens-model.value": "smollm2-135m",
    "lens-dtype.value": "auto",
    "location.search": "?run=before",
}


def test_a_bad_form_becomes_a_red_notification_and_no_job(app, state):
    bad = {**SUBMIT, "lens-prompt.value": "  "}
    (note,) = notes(call(app, "pages.lens", "submit", bad, changed="lens-run.n_clicks"))
    assert note["color"] == "red"
    assert note["autoClose"] is False
    assert "The prompt is empty" in note["message"]
    assert state.worker.jobs() == []
    assert state.list_runs() == []


def test_a_bug_becomes_a_notification_in_general_words_and_a_traceback_in_the_log(
    app, state, monkeypatch, caplog
):
    monkeypatch.setattr(JobWorker, "submit", lambda *_: {}["secret detail"])
    with caplog.at_level(logging.ERROR, "dashboards"):
        (note,) = notes(call(app, "pages.lens", "submit", SUBMIT, changed="lens-run.n_clicks"))
    assert "bug" in note["message"]
    assert "secret detail" not in json.dumps(note)
    assert "secret detail" in caplog.text


def test_a_submitted_form_is_a_job_that_its_page_follows(app, state):
    answer = call(app, "pages.lens", "submit", SUBMIT, changed="lens-run.n_clicks")["response"]
    (submitted,) = state.worker.jobs()
    ((key, value),) = answer.items()
    assert key.startswith("submitted")
    assert value["data"] == {"page": "lens", "job": submitted.id, "search": "?run=before"}
    assert submitted.spec == LensSpec(prompt=PROMPT, target=" Mary", top_k=lens.TOP_K)


def show(app, page: str, search: str, **more):
    query = json.dumps(ids.query(page), sort_keys=True, separators=(",", ":"))
    values = {f"{query}.data": {"search": search, "scheme": "dark"}, **more}
    return call(app, "components.results", "show_run", values, changed=f"{query}.data")


@pytest.mark.parametrize(("page", "kind"), [("lens", "lens"), ("patch", "patch"), ("probes", "probe")])
def test_a_deep_link_brings_back_form_and_figures_within_the_budget(app, state, page, kind):
    run_id = make_run(state, kind)
    answer = show(app, page, f"?run={run_id}")
    shown = json.dumps(answer["response"][f"{page}-result"])
    for name in figures(fake_results.of_every_kind()[state.run(run_id).result.kind]):
        assert f'"name": "{name}"' in shown
    assert theme.TOKENS["dark"].background in shown
    assert len(shown) < 400_000
    asked = FAKES[kind].to_dict()
    for field in ("prompt", "clean", "dataset"):
        if asked.get(field):
            assert answer["response"][f"{page}-{field}"]["value"] == asked[field]
    assert notes(answer) == []


def test_the_form_keeps_the_next_question_when_its_own_run_arrives(app, state):
    run_id = make_run(state, "lens")
    mine = {"following.data": {"lens": {"job": "job-1", "search": "", "done": True, "run": run_id}}}
    assert "lens-prompt" not in show(app, "lens", f"?run={run_id}", **mine)["response"]
    assert "lens-prompt" in show(app, "lens", f"?run={run_id}")["response"]


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ("?run=20260101-000000-lens-none", "No run"),
        ("?run=../../etc", "not the id"),
        ("?run=PATCH", "under /runs/"),
    ],
)
def test_a_link_to_no_such_run_says_so_and_shows_nothing(app, state, search, says):
    search = search.replace("PATCH", make_run(state, "patch"))
    answer = show(app, "lens", search)
    (note,) = notes(answer)
    assert says in note["message"]
    assert '"Graph"' not in json.dumps(answer["response"])


def test_a_damaged_result_says_so(app, state):
    run_id = make_run(state, "lens")
    (state.runs / run_id / "result.zarr" / "zarr.json").write_text("{")
    (note,) = notes(show(app, "lens", f"?run={run_id}"))
    assert "damaged" in note["message"]


def test_a_click_on_the_grid_lists_the_tokens_of_that_cell(app, state):
    run_id = make_run(state, "lens")
    result = state.run(run_id).result
    trace = figures(result)["lens"].data[0]
    grid = json.dumps(ids.figure("lens", "lens"), sort_keys=True, separators=(",", ":"))
    query = json.dumps(ids.query("lens"), sort_keys=True, separators=(",", ":"))
    values = {
        f"{grid}.clickData": {"points": [{"x": trace.x[4], "y": trace.y[11]}]},
        f"{query}.data": {"search": f"?run={run_id}", "scheme": "light"},
    }
    answer = call(app, "pages.lens", "show_cell", values, changed=f"{grid}.clickData")
    shown = json.dumps(answer["response"]["lens-cell"], ensure_ascii=False)
    assert f"{float(result.data['entropy'].sel(layer=11, position=4)):.3f} nats" in shown


@pytest.mark.parametrize("kind", FAKES)
def test_the_report_has_figures_spec_code_provenance_and_summary(state, kind):
    run_id = make_run(state, kind)
    text = as_text(run.layout(state, run_id, "light"))
    assert text.count('"Graph"') == 2
    assert "Copy Python" in text
    assert f"kind: {kind}" in text
    assert "f1e2d3c4" in text  # the model's fingerprint
    for name in state.run(run_id).info.summary:
        assert f'"{name.replace("_", " ")}"' in text
    assert ("Open with its form" in text) == (kind != "steer")


def test_a_run_of_a_package_that_is_not_installed_still_has_a_report(state):
    run_id = make_run(state, "probe")
    folder = state.runs / run_id
    (folder / "spec.yaml").write_text("kind: elsewhere\n")
    stored = json.loads((folder / "result.zarr" / "zarr.json").read_text())
    stored["attributes"]["workbench"]["kind"] = "elsewhere"
    (folder / "result.zarr" / "zarr.json").write_text(json.dumps(stored))
    text = as_text(run.layout(state, run_id, "light"))
    assert '"Graph"' not in text
    assert "'elsewhere', known are" in text
    assert "f1e2d3c4" in text


def as_text(component) -> str:
    return json.dumps(component, default=_plain, ensure_ascii=False)


def _plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.to_plotly_json()


@pytest.mark.parametrize("path", ["/", "/lens", "/patch/", "/probes", "/runs", "/nowhere"])
def test_every_page_has_one_heading_of_the_first_order(state, path):
    text = as_text(page_content(state, path, "light"))
    assert text.count('"order": 1') == 1


def test_many_runs_are_one_table(app, state):
    run_id = make_run(state, "lens")
    header = (state.runs / run_id / "provenance.json").read_text()
    for i in range(300):
        folder = state.runs / f"20250101-000000-lens-{i:04x}"
        folder.mkdir()
        (folder / "provenance.json").write_text(header)
    values = {"runs-kind.value": "lens", "runs-text.value": ""}
    answer = call(app, "pages.runs", "filter_runs", values, changed="runs-text.value")["response"]
    assert answer["runs-count"]["children"] == "301 runs"
    assert len(answer["runs-grid"]["rowData"]) == 301
    narrowed = call(
        app, "pages.runs", "filter_runs", values | {"runs-text.value": "00ff"}, changed="runs-text.value"
    )
    assert narrowed["response"]["runs-count"]["children"] == "1 of 301 runs"
