"""Figures of the patching methods: what holds for every kind."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from fake_results import TOKENS, where_from
from patching_results import (
    VARIANTS,
    ablation,
    drawn_of,
    edges,
    grids,
    heads_at_positions,
    made,
    mediation,
    patchscope,
    path_sets,
    spans,
    under,
)

import workbench as wb
from dashboards.figures import KINDS, control_statement, describe, figures, theme
from dashboards.figures.tables import tables
from workbench.results import Result

# --- results of realistic size --------------------------------------------------------------------------


@pytest.fixture(params=VARIANTS, ids=str)
def name(request) -> str:
    return request.param


@pytest.fixture
def result(name) -> Result:
    return made(name)


NASTY = ("<b>bold</b>", "%{z}", "$x$", "</script>", "&amp;")


# --- results of realistic size --------------------------------------------------------------------------


@pytest.fixture
def every(name) -> dict[str, go.Figure]:
    return drawn_of(name)


# --- every kind -----------------------------------------------------------------------------------------


NAMES = {
    "sweep, heads at positions": ["effect", "control", "positions"],
    "attribution": ["effect", "control", "top", "recheck"],
    "edges": ["effect", "control", "top"],
    "paths": ["effect", "control", "top"],
    "paths, sets": ["top"],
    "ablation, heads": ["effect", "control", "top"],
    "ablation, sites": ["effect"],
    "knockout": ["effect"],
    "back-patching": ["pairs", "oracle"],
    "patchscope": ["texts", "control", "changed"],
    "patchscope, decoded": ["texts", "control", "changed", "decoded"],
    "all for one": ["faithfulness"],
    "all-for-one search": ["grid", "smallest"],
    "das": ["accuracy", "loss"],
    "mediation": ["effect_mlp_out", "effect_attn_out", "control_mlp_out", "control_attn_out"],
    "circuits": ["curves"],
    "neurons": ["layers", "top"],
    "neurons, head silenced": ["layers", "top", "heads"],
    "neuron ablation": ["ablation"],
}


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_has_its_figures_with_the_main_one_first(name):
    assert list(drawn_of(name)) == NAMES[name]


def test_every_kind_that_patching_makes_has_a_figure():
    room = Path(wb.__file__).parent / "patching"
    code = "\n".join(path.read_text() for path in room.glob("*.py"))
    kinds = set(re.findall(r'Result\(\s*"(\w+)"', code)) | set(re.findall(r'kind="(\w+)", data=', code))
    assert {"attribution", "path_patching", "circuit", "neuron_importance"} <= kinds
    assert kinds <= set(KINDS)


def test_numbers_travel_as_float32_and_within_the_budget(every):
    for name, drawn in every.items():
        assert len(drawn.to_json()) < 2_000_000, name
        for trace in drawn.data:
            for key in ("x", "y", "z", "customdata"):
                value = getattr(trace, key, None)
                if value is not None and np.asarray(value).dtype.kind in "fiu":
                    assert value.dtype == np.float32, (name, trace.name, key)


def test_title_and_subtitle_say_what_of_which_model_how_many_and_against_what(every):
    for name, drawn in every.items():
        assert 10 < len(unescape(drawn.layout.title.text)) <= 95, name
        said = under(drawn)
        assert said.startswith("smollm2-135m · n = ") and " · " in said[16:], said
        assert "control: " in said and "nan" not in said.lower() and "None" not in said, said


def test_no_two_cells_have_one_label(every):
    for name, drawn in every.items():
        for trace in grids(drawn):
            for labels in (trace.x, trace.y):
                assert len(set(labels)) == len(labels), name
            assert trace.z.shape == (len(trace.y), len(trace.x))


def test_signed_effects_are_white_at_zero_and_shares_start_there(every):
    for drawn in every.values():
        axis = drawn.layout.coloraxis
        if axis.colorscale is None:
            continue
        largest = max(float(np.nanmax(np.abs(trace.z))) for trace in grids(drawn))
        if axis.cmid == 0:
            assert axis.cmin == -axis.cmax and axis.cmax >= largest - 1e-6
            assert [stop[1] for stop in axis.colorscale][5] == "#f7f7f7"
        else:
            assert axis.cmin == 0 and axis.cmax >= largest - 1e-6


def test_cells_that_do_not_exist_are_grey_and_only_those(every):
    for drawn in every.values():
        for trace in grids(drawn):
            grey = [t for t in drawn.data if t.meta == "background" and t.xaxis == trace.xaxis]
            missing = np.isnan(trace.z)
            assert bool(grey) == bool(missing.any())
            for one in grey:
                np.testing.assert_array_equal(np.isfinite(one.z), missing)


def test_the_scheme_is_in_the_template_alone(every):
    for drawn in every.values():
        light = drawn.to_plotly_json()
        dark = theme.use_scheme(drawn, "dark").to_plotly_json()
        theme.use_scheme(drawn, "light")
        assert dark["layout"].pop("template") != light["layout"].pop("template")
        assert str(light) == str(dark)


def test_words_are_there_for_every_figure_and_for_the_control(result, every):
    words = describe(result)
    assert list(words) == list(every)
    for text in (*words.values(), control_statement(result)):
        assert len(text) > 50 and "nan" not in text.lower().replace("unan", "") and "None" not in text, text
        assert (text[0].isupper() or ": " in text[:8]) and text.endswith("."), text


def test_without_a_control_the_words_say_so():
    for name in VARIANTS:
        if "no control" in name or "without control" in name:
            assert control_statement(made(name)).startswith("No "), name


def test_tables_hold_every_number_that_is_drawn(every):
    for name, drawn in every.items():
        found = tables(drawn)
        assert all(one.rows for one in found), name
        n_cells = sum(len(row) - 1 for one in found for row in one.rows)
        n_grid = sum(trace.z.size for trace in grids(drawn))
        scatters = [t for t in drawn.data if t.type == "scatter" and t.mode != "text"]
        points = [t for t in scatters if t.mode == "markers" and t.text is not None]
        n_others = sum(len(t.y) for t in drawn.data if t.type == "bar")
        n_others += sum(len(t.y) for t in scatters if not (t.mode == "markers" and t.text is not None))
        lines = sum(len(one.rows) * (len(one.columns) - 1) for one in found if " by " in one.caption)
        assert n_others <= lines, name
        assert n_cells == n_grid + 2 * sum(len(t.y) for t in points) + lines, name


def test_figures_of_a_saved_result_are_those_of_the_result(result, every, tmp_path):
    loaded = Result.load(result.save(tmp_path / "result"))
    again = figures(loaded)
    for name, drawn in every.items():
        assert again[name].to_json() == drawn.to_json(), name
    assert describe(loaded) == describe(result)


def nasty() -> dict[str, Result]:
    """Results whose every text of a model or user is markup of some kind."""
    sweep, edge, scope, path = heads_at_positions(), edges(), patchscope(6, 6, texts=list(NASTY)), path_sets()
    for one in ("clean_token", "corrupt_token"):
        sweep.data.coords[one] = ("position", np.array([NASTY[i % len(NASTY)] for i in range(len(TOKENS))]))
    scope.data.attrs |= {"source_token": "<i>%{z} $x$", "target_token": "<i>", "mapping": "<i>"}
    mediated, spanned, ablated = mediation(), spans(), ablation()
    for one in ("token", "other_token"):
        mediated.data.coords[one] = sweep.data["clean_token"].variable
    spanned = Result(spanned.kind, spanned.data.assign_coords(span=list(NASTY[:3])), where_from())
    path.data.coords["set_name"] = ("set", np.array(NASTY[:3]))
    for one in (sweep, edge, path, spanned, ablated):
        one.data.attrs["metric"] = "<i>%{z} $x$"
    return {"sweep": sweep, "edges": edge, "scope": scope, "path": path, "mediation": mediated, "spans": spanned,
            "ablation": ablated}  # fmt: skip


@pytest.mark.parametrize("name", ["sweep", "edges", "scope", "path", "mediation", "spans", "ablation"])
def test_texts_of_a_model_are_never_markup(name):
    for which, drawn in figures(nasty()[name]).items():
        text = drawn.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
        for markup in ("<i>", "<b>bold", "</script>", "$", '&amp;"'):
            assert markup not in text, (which, markup)
        for trace in drawn.data:
            assert "%{z}" not in (trace.hovertemplate or ""), which
