"""The tray of named directions without a browser: list, change, import, export, cosines, tokens, saving into it."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import steer_app
import torch
from steer_app import asked, called, direction, key
from test_dashboard import as_text, notes

import workbench as wb
from dashboards import ids
from dashboards.components import tray_rows
from workbench.directions import library
from workbench.runs import run_spec

tray_folder = pytest.fixture(autouse=True)(steer_app.tray_of_its_own)
model = pytest.fixture(scope="module")(steer_app.tiny_llama)
state = pytest.fixture(steer_app.own_state)
app = pytest.fixture(steer_app.own_app)


def pressed(app, what: str, name: str):
    """A click in a row's menu."""
    click = f"{key(type='tray-do', what=what, name=name)}.n_clicks"
    return called(app, "choose", {click: 1}, changed=click)


def confirmed(app, what: str, name: str, new: str | None = None):
    """The button of the dialogue, with the new name typed."""
    click = f"{key(type='tray-confirm', what=what, name=name)}.n_clicks"
    typed = f"{key(type='tray-new-name', name=name)}.value"
    return called(app, "change", {click: 1, typed: new}, changed=click)


def listed(app, text: str = "", chosen: tuple[str, ...] = ()):
    values = {"tray-drawer.opened": True, "tray-search.value": text, "tray-selected.value": list(chosen)}
    return called(app, "list_directions", values, changed="tray-drawer.opened")["response"]


@pytest.fixture
def three(model):
    library().save("mine", direction(0, fingerprint=model.fingerprint), tags=["probe"])
    library().save("also mine.v2", direction(1, fingerprint=model.fingerprint))
    library().save("foreign", direction(2, fingerprint="of another model"))


# --- The list ---------------------------------------------------------------------------------------------------


def test_an_empty_tray_says_how_it_is_filled(app):
    assert "Nothing here yet" in json.dumps(listed(app))


def test_the_list_names_site_source_scale_and_model_and_links_to_the_steer_page(app, three):
    shown = json.dumps(listed(app))
    entry = library().entry("mine")
    for said in (
        "3 of 3 directions",
        entry.site,
        f"scale {entry.scale:.4g}",
        "test",
        "probe",
        "/steer?direction=also+mine.v2",
    ):
        assert said in shown, said


def test_a_search_keeps_what_has_every_word_and_says_of_how_many(app, three):
    shown = json.dumps(listed(app, "PROBE resid_post"))
    assert "1 of 3 directions" in shown
    assert "foreign" not in shown


def test_a_damaged_file_is_shown_with_what_is_wrong(app, three, tray_folder):
    (tray_folder / "broken.safetensors").write_bytes(b"nonsense")
    shown = json.dumps(listed(app))
    assert "damaged" in shown
    assert "4 of 4" in shown


def test_a_direction_of_another_model_is_shown_as_such_once_the_model_is_known(app, state, three, model):
    job = state.worker.wait(state.submit(asked(model={"name": "tiny-llama"})).id, 60)
    assert job.state == "finished", job.error
    fits = {e.name: tray_rows.fit_of(state, e, "tiny-llama") for e in library().entries()}
    assert fits == {"mine": "same", "also mine.v2": "same", "foreign": "other"}
    assert json.dumps(listed(app)).count("another model") == 1
    entry = library().entry("foreign")
    assert "refused unless Force" in as_text(tray_rows.about(entry, "other", force=False))
    assert "refused" not in as_text(tray_rows.about(entry, "other", force=True))


def test_without_fingerprints_the_name_of_the_model_decides(state, model):
    made = wb.steering.mean_difference(
        model, ["red blue"], ["one two"], "blocks.1.hook_resid_post", shuffles=0
    )
    library().save("made", made)
    entry = library().entry("made")
    assert [tray_rows.fit_of(state, entry, m) for m in ("tiny-llama", "/models/tiny-llama", "other")] == [
        "same", "same", "other",
    ]  # fmt: skip
    library().save("bare", direction(3))
    assert tray_rows.fit_of(state, library().entry("bare"), "tiny-llama") == "unknown"


# --- Changes ----------------------------------------------------------------------------------------------------


def test_nothing_is_deleted_before_it_is_confirmed(app, three):
    asked_ = pressed(app, "delete", "also mine.v2")["response"]
    assert asked_["tray-dialog"]["opened"]
    assert "for good" in json.dumps(asked_)
    assert "also mine.v2" in library()
    done = confirmed(app, "delete", "also mine.v2")
    assert "also mine.v2" not in library()
    assert done["response"]["tray-version"]["data"]
    assert len(library()) == 2


def test_renaming_keeps_the_bytes_and_refuses_a_name_that_is_taken(app, three):
    before = library().direction("mine")
    confirmed(app, "rename", "mine", " truth ")
    assert torch.equal(library().direction("truth").vector, before.vector)
    (note,) = notes(confirmed(app, "rename", "truth", "foreign"))
    assert "already" in note["message"]
    (note,) = notes(confirmed(app, "rename", "truth", "../escape"))
    assert "cannot be the name" in note["message"]
    assert "truth" in library()


@pytest.mark.parametrize("suffix", ["safetensors", "gguf", "json"])
def test_what_is_exported_can_be_imported_and_never_overwrites(app, three, suffix):
    download = pressed(app, suffix, "mine")["response"]["tray-download"]["data"]
    assert download["filename"] == f"mine.{suffix}"
    contents = f"data:application/octet-stream;base64,{download['content']}"
    values = {"tray-upload.contents": contents, "tray-upload.filename": f"C:/fake/{download['filename']}"}
    answer = called(app, "take_in", values, changed="tray-upload.contents")
    assert "'mine-2' is in the tray" in notes(answer)[0]["title"]
    old = library().direction("mine")
    new = library().direction("mine-2")
    assert torch.allclose(old.vector, new.vector, atol=1e-6)
    assert new.scale == pytest.approx(old.scale, rel=1e-5)
    assert new.site == old.site


@pytest.mark.parametrize("data", [b"\x80\x04}q\x00.", b"nonsense", b""])
def test_a_pickle_or_nonsense_is_refused_and_nothing_is_saved(app, data):
    contents = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    values = {"tray-upload.contents": contents, "tray-upload.filename": "../../x.pt"}
    (note,) = notes(called(app, "take_in", values, changed="tray-upload.contents"))
    assert note["color"] == "red"
    assert len(library()) == 0


# --- Figures ----------------------------------------------------------------------------------------------------


def look(app, button: str, chosen: list[str], *, force: bool = False):
    values = {f"tray-{button}.n_clicks": 1, "tray-selected.value": chosen, "tray-force.checked": force}
    return called(app, "look_at", values, changed=f"tray-{button}.n_clicks")


def test_the_cosine_matrix_is_that_of_the_vectors(app, three):
    answer = look(app, "compare", ["mine", "also mine.v2"])
    (graph,) = [
        p for p in answer["response"]["tray-figures"]["children"] if p["props"].get("className") == "graph"
    ]
    traces = graph["props"]["children"]["props"]["figure"]["data"]
    z = next(t["z"] for t in traces if t.get("coloraxis"))
    values = np.frombuffer(base64.b64decode(z["bdata"]), dtype=z["dtype"])
    expected = float(library().direction("mine").vector @ library().direction("also mine.v2").vector)
    assert values[np.isfinite(values)] == pytest.approx([expected] * 2, abs=1e-5)  # not the diagonal
    assert "random directions" in json.dumps(answer)


def test_cosines_across_models_need_force_and_at_least_two(app, three):
    (note,) = notes(look(app, "compare", ["mine", "foreign"]))
    assert "of one model" in note["message"]
    assert notes(look(app, "compare", ["mine", "foreign"], force=True)) == []
    for chosen in ([], ["mine"]):
        (note,) = notes(look(app, "compare", chosen))
        assert "at least two" in note["message"]


def test_tokens_are_a_job_whose_figures_appear_beside_random_directions(app, state, three, model):
    (note,) = notes(look(app, "tokens", ["mine", "foreign"]))
    assert "exactly one" in note["message"]
    answer = look(app, "tokens", ["mine"])["response"]
    job = state.worker.wait(answer["tray-job"]["data"], 120)
    assert job.state == "finished", job.error
    first = wb.directions.top_tokens(model, library().direction("mine"), 10).data["token"].values[0, 0, 0]
    values = {"tray-job.data": job.id, "seen.data": {job.id: "finished"}}
    shown = called(app, "show_tokens", values, changed="seen.data")["response"]
    figures_ = json.dumps(next(v for k, v in shown.items() if k.startswith("tray-figures")))
    assert figures_.count('"Graph"') == 3
    assert json.dumps(str(first))[1:-1] in figures_
    assert "p = " in figures_


def test_a_tokens_job_that_fails_says_why_and_an_unfinished_one_nothing(app, state, three):
    job = state.worker.wait(look(app, "tokens", ["foreign"])["response"]["tray-job"]["data"], 60)
    assert job.state == "failed"
    values = {"tray-job.data": job.id}
    shown = called(app, "show_tokens", values, changed="seen.data")["response"]
    assert "fingerprint" in json.dumps(shown)
    assert not called(app, "show_tokens", {}, changed="seen.data").get("response")


# --- With the Steer page ----------------------------------------------------------------------------------------


def chosen(app, search: str, held: str | None = None):
    query = key(**ids.query("steer"))
    values = {f"{query}.data": {"search": search, "scheme": "light"}, "steer-direction.value": held}
    return called(app, "offer", values, changed=f"{query}.data")


def test_a_link_of_the_tray_chooses_its_direction(app, three):
    answer = json.dumps(chosen(app, "?direction=also+mine.v2")["response"])
    assert '"value": "also mine.v2"' in answer
    assert '"value": "tray"' in answer
    (note,) = notes(chosen(app, "?direction=nothing"))
    assert "no direction 'nothing'" in note["message"]


def test_the_direction_of_a_run_is_saved_into_the_tray_bit_for_bit(app, state, model):
    run = run_spec(asked(), runs=state.runs, model=model)
    values = {
        (click := f"{key(type='steer-save', page='steer')}.n_clicks"): 1,
        f"{key(type='steer-name', page='steer')}.value": " made ",
        f"{key(type='steer-tags', page='steer')}.value": "one, two words",
        f"{key(**ids.query('steer'))}.data": {"search": f"?run={run.id}", "scheme": "light"},
    }
    answer = called(app, "save", values, changed=click)
    assert "'made' is in the tray" in notes(answer)[0]["title"]
    spec = asked()
    made = wb.steering.mean_difference(model, spec.positive, spec.negative, spec.site)
    assert torch.equal(library().direction("made").vector, made.vector)
    assert library().entry("made").tags == ("one", "two words")
    (note,) = notes(called(app, "save", values, changed=click))
    assert "already" in note["message"]
