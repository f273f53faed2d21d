"""Figures: what is drawn is what the result holds, on fixed scales, beside its control, and small enough."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from html import unescape

import numpy as np
import plotly.graph_objects as go
import pytest
from fake_results import AWKWARD, TOKENS, lens, of_every_kind, patching, probes, steering, where_from
from plotly.colors import hex_to_rgb, sample_colorscale, unlabel_rgb

from dashboards.figures import KINDS, describe, figure, figures, theme
from dashboards.figures.grid import text_colours
from dashboards.figures.tables import tables
from workbench.errors import RunError
from workbench.results import Result

NAMES = {
    "logit_lens": ["lens", "layers"],
    "patching_sweep": ["effect", "control"],
    "probe_sweep": ["auc", "accuracy"],
    "dose_response": ["score", "kl"],
}
VARIANTS = {
    "lens": lens(),
    "lens, long": lens(tokens=(TOKENS * 15)[:200]),
    "lens, awkward": lens(awkward=True, tokens=AWKWARD),
    "patching": patching(),
    "patching, pairs": patching(n_pairs=4),
    "patching, heads": patching("z", n_pairs=2),
    "patching, no control": patching(control=False),
    "patching, long": patching(n_columns=200),
    "probes": probes(),
    "probes, sites": probes("site"),
    "probes, positions": probes(n_positions=5),
    "probes, no control": probes(controls=False),
    "steering": steering(),
    "steering, one prompt": steering(n_prompts=1),
    "steering, no control": steering(random=False),
}


@pytest.fixture(params=VARIANTS, ids=str)
def result(request) -> Result:
    return VARIANTS[request.param]


def under(drawn: go.Figure) -> str:
    """The subtitle as a reader sees it."""
    return unescape(drawn.layout.title.subtitle.text).replace("<br>", " ")


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two `#rrggbb`."""

    def luminance(colour: str) -> float:
        channels = np.array(hex_to_rgb(colour)) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ np.array([0.2126, 0.7152, 0.0722]))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def numbers_in(drawn: go.Figure):
    """Every array of numbers of every trace, with where it stands."""
    for trace in drawn.data:
        for key in ("x", "y", "z", "customdata"):
            value = getattr(trace, key, None)
            if value is not None and np.asarray(value).dtype.kind in "fiu":
                yield f"{trace.name}.{key}", value


# --- every kind -----------------------------------------------------------------------------------------


def test_every_kind_has_its_figures_with_the_main_one_first():
    made = {kind: list(figures(result)) for kind, result in of_every_kind().items()}
    assert made == NAMES and tuple(made) == KINDS[: len(made)]


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones():
    result = Result("logit_lense", lens().data, where_from())
    with pytest.raises(RunError, match=r"'logit_lense'.*patching_sweep.*Did you mean 'logit_lens'"):
        figures(result)
    assert describe(result) == {}


def test_a_result_finds_its_figures_by_entry_point():
    assert list(lens().figures()) == ["lens", "layers"]


def test_figures_of_a_saved_result_are_those_of_the_result(tmp_path):
    for kind, result in of_every_kind().items():
        loaded = Result.load(result.save(tmp_path / kind))
        for name, drawn in figures(result).items():
            assert figures(loaded)[name].to_json() == drawn.to_json(), name


def test_numbers_travel_as_float32(result):
    for drawn in figures(result).values():
        found = dict(numbers_in(drawn))
        assert found
        assert {name: value.dtype for name, value in found.items() if value.dtype != np.float32} == {}


def test_no_figure_carries_more_than_the_budget(result):
    for name, drawn in figures(result).items():
        assert len(drawn.to_json()) < 2_000_000, name


def test_a_lens_of_30_layers_and_14_positions_is_under_100_kilobytes():
    assert 20_000 < len(figure(lens()).to_json()) < 100_000


@pytest.mark.parametrize(
    "big",
    [lens(tokens=TOKENS * 100), lens(tokens=TOKENS * 40, awkward=True, top_k=50)],
    ids=["long", "top 50"],
)
def test_the_largest_lens_stays_under_2_megabytes_and_says_what_it_leaves_out(big):
    drawn = figure(big)
    assert len(drawn.to_json()) < 2_000_000
    n, n_drawn = big.data.sizes["position"], drawn.data[0].z.shape[1]
    assert n_drawn == n or f"The last {n_drawn} of {n} positions are drawn" in under(drawn)
    assert f"of the {big.data.sizes['k']} in the result" in under(drawn)


def test_a_patching_grid_too_large_to_draw_says_so():
    drawn = figure(patching(n_columns=1_000))
    assert drawn.data[0].z.shape == (30, 833)
    assert "The last 833 of 1000 positions are drawn" in under(drawn)


def test_templates_are_slim_and_hold_all_that_depends_on_the_scheme(result):
    for drawn in figures(result).values():
        light = drawn.to_plotly_json()
        dark = theme.use_scheme(drawn, "dark").to_plotly_json()
        assert len(json.dumps(light["layout"].pop("template"))) < 2_500
        assert dark["layout"].pop("template")["layout"]["paper_bgcolor"] == theme.TOKENS["dark"].background
        assert str(light) == str(dark)


def test_nothing_under_figures_loads_dash_or_torch():
    heavy = ["torch", "dash", "dash_mantine_components", "transformers", "transformer_lens"]
    code = (
        "import sys; import dashboards; assert 'plotly' not in sys.modules; "
        "from dashboards import figure; import dashboards.report; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_texts_of_a_model_are_never_markup():
    """Tags, entities, LaTeX and templates in tokens are shown as they are."""
    result = lens(awkward=True, tokens=AWKWARD)
    result.data.attrs["target"] = "<i>%{z} $x$"
    for name, drawn in figures(result).items():
        text = drawn.to_json()
        for markup in ("<i>", "<b>bold", "</script>", "$"):
            assert markup not in text.replace("\\u003c", "<").replace("\\u003e", ">"), (name, markup)
        for trace in drawn.data:
            assert "%{z}" not in (trace.hovertemplate or "").replace("%{z:.3f}", "")
    assert "'<i>%{z} $x$'" in under(figure(result))


def test_alt_texts_are_there_for_every_figure(result):
    words = describe(result)
    assert list(words) == list(figures(result))
    assert all(len(text) > 80 and "nan" not in text.lower() for text in words.values())


# --- palette --------------------------------------------------------------------------------------------


def test_lines_can_be_seen_on_both_backgrounds():
    for scheme in theme.TOKENS.values():
        assert min(contrast(colour, scheme.background) for colour in theme.SERIES[:3]) > 3
        assert contrast(scheme.text, scheme.background) > 7
        assert contrast(scheme.muted, scheme.background) > 4.5


def test_text_in_cells_can_be_read_on_every_colour_of_the_scale():
    p = np.linspace(0, 1, 101)
    cells = [
        "#" + "".join(f"{round(v):02x}" for v in unlabel_rgb(c))
        for c in sample_colorscale("Cividis", p.tolist())
    ]
    worst = min(
        contrast(cell, {"#000": "#000000", "#fff": "#ffffff"}[text])
        for cell, text in zip(cells, text_colours(p), strict=True)
    )
    assert worst > 4.5


# --- logit lens -----------------------------------------------------------------------------------------


def test_lens_colour_is_probability_on_a_fixed_range_with_the_first_layer_below():
    result = lens()
    result.data["top_probability"] *= 0.1
    drawn = figure(result)
    assert (drawn.layout.coloraxis.cmin, drawn.layout.coloraxis.cmax) == (0, 1)
    assert drawn.data[0].y[0] == "0" and drawn.layout.yaxis.range == (-0.5, 29.5)
    np.testing.assert_allclose(drawn.data[0].z, result.data["top_probability"][:, :, 0], rtol=1e-6)


def test_lens_outlines_the_layers_from_which_on_the_target_stays_top():
    result = lens(depth=24)  # and top-1 in layer 3, which does not last
    boxes = {(s.x0, s.x1, s.y0, s.y1) for s in figure(result).layout.shapes}
    assert boxes == {(12.5, 13.5, 23.5, 29.5)}
    assert "' Mary' stays top-1 from layer 24 on" in under(figure(result))


def test_lens_outlines_nothing_where_the_target_does_not_end_on_top():
    drawn = figure(lens(depth=None))
    assert len(drawn.layout.shapes) == 0 and "not top-1 after the last layer" in under(drawn)


def test_lens_hover_has_all_tokens_and_numbers_of_the_cell():
    result = lens()
    cell = result.data.isel(layer=20, position=4)
    cells = figure(result).data[0]
    said = unescape(cells.hovertext[20, 4]).split("<br>")
    assert said == [
        f"{str(token)!r} {p:.3f}"
        for token, p in zip(cell["top_token"].values, cell["top_probability"].values, strict=True)
    ]
    names = ("entropy", "kl_to_final", "target_rank", "target_probability", "control_rank")
    np.testing.assert_allclose(cells.customdata[20, 4], [float(cell[n]) for n in names], rtol=1e-6)
    for i, word in enumerate(("entropy", "KL to final", "' Mary': rank", "probability", "median rank")):
        before = cells.hovertemplate.split(f"%{{customdata[{i}]")[0]
        assert before.rstrip().endswith(word), word


def test_lens_writes_tokens_into_cells_only_where_they_fit_and_keeps_all_labels():
    short, long = figure(VARIANTS["lens"]), figure(VARIANTS["lens, long"])
    assert [trace.mode for trace in short.data[1:]] == ["text"] and len(long.data) == 1
    assert len(short.data[1].text) == 30 * 14
    assert len(set(long.data[0].x)) == 200 == long.data[0].z.shape[1]
    assert "zoom or hover for all labels" in long.layout.xaxis.title.text
    assert short.data[0].x[1] == "1 ' Mary'"


def test_lens_is_tall_enough_for_its_texts():
    drawn = figure(lens())
    plot = drawn.layout.height - drawn.layout.margin.t - drawn.layout.margin.b
    assert plot / 30 >= theme.SIZE["cell"] * 1.5


def test_lens_layers_follow_the_last_position_with_the_control_dashed():
    result = lens()
    drawn = figures(result)["layers"]
    entropy, kl, rank, control = drawn.data
    for trace, name in (
        (entropy, "entropy"),
        (kl, "kl_to_final"),
        (rank, "target_rank"),
        (control, "control_rank"),
    ):
        np.testing.assert_allclose(trace.y, result.data[name].values[:, -1], rtol=1e-6)
    assert control.line.dash == "dash" and rank.line.dash is None and control.yaxis == rank.yaxis == "y3"
    assert [drawn.layout[f"yaxis{i}"].type for i in ("", "2", "3")] == [None, None, "log"]


# --- patching -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_effect_and_control_have_one_symmetric_range_around_zero(scale):
    result = patching()
    result.data["control_effect"] *= scale
    largest = max(
        np.abs(result.data["mean_effect"]).max(), np.abs(result.data["control_effect"].mean("pair")).max()
    )
    for drawn in figures(result).values():
        axis = drawn.layout.coloraxis
        assert axis.cmax == pytest.approx(float(largest)) and axis.cmin == -axis.cmax and axis.cmid == 0
        assert all(trace.coloraxis == "coloraxis" and trace.zmax is None for trace in drawn.data)
    assert [stop[1] for stop in axis.colorscale][5] == "#f7f7f7"


def test_a_sweep_without_any_effect_still_has_a_range():
    result = patching(control=False)
    result.data["mean_effect"] *= 0
    assert figure(result).layout.coloraxis.cmax == 1


def test_the_strongest_cell_is_marked_and_named_whatever_its_sign():
    drawn = figure(patching())
    assert {(s.x0, s.x1, s.y0, s.y1) for s in drawn.layout.shapes} == {(8.5, 9.5, 7.5, 8.5)}
    assert "layer 8, position 9 ' John'→' Mary': −1.25" in under(drawn)
    assert drawn.data[0].text[8, 9] == "−1.25"


def test_the_control_grid_shows_the_mean_control():
    result = patching(n_pairs=4)
    effect, control = figures(result)["control"].data
    np.testing.assert_allclose(effect.z, result.data["mean_effect"], rtol=1e-5)
    np.testing.assert_allclose(control.z, result.data["control_effect"].mean("pair"), rtol=1e-5, atol=1e-7)


def test_patching_hover_has_metric_control_and_with_several_pairs_the_interval():
    for n_pairs in (1, 4):
        data = (result := patching(n_pairs=n_pairs)).data
        cell = figure(result).data[0]
        expected = [data["mean_effect"][8, 9], data["metric"].mean("pair")[8, 9]]
        expected += [data["effect_low"][8, 9], data["effect_high"][8, 9]] if n_pairs > 1 else []
        expected.append(data["control_effect"].mean("pair")[8, 9])
        np.testing.assert_allclose(cell.customdata[8, 9], [float(v) for v in expected], rtol=1e-5)
        assert ("95 % interval" in cell.hovertemplate) == (n_pairs > 1)
        assert f"control effect %{{customdata[{len(expected) - 1}]" in cell.hovertemplate


def test_patching_title_says_kind_direction_metric_pairs_and_both_ends():
    drawn = figure(patching(n_pairs=4))
    assert (
        unescape(drawn.layout.title.text)
        == "Denoising patches of resid_pre: effect on logit(' Mary') − logit(' John')"
    )
    for fact in ("smollm2-135m", "n = 4 pairs", "clean 4", "corrupt −2", "wrong source", "first pair"):
        assert fact in under(drawn), fact


def test_heads_are_columns_for_z_and_labels_name_both_tokens_otherwise():
    assert list(figure(patching("z")).data[0].x) == [str(i) for i in range(9)]
    labels = list(figure(patching()).data[0].x)
    assert labels[9] == "9 ' John'→' Mary'" and labels[3] == "3 ' John'"


def test_a_sweep_without_control_has_no_control_figure_and_says_so():
    made = figures(patching(control=False))
    assert list(made) == ["effect"] and "control: not run" in under(made["effect"])


# --- probes ---------------------------------------------------------------------------------------------


def test_each_probe_has_its_band_and_its_control_dashed_in_the_same_hue():
    result = probes()
    traces = {trace.name: trace for trace in figure(result).data}
    for i, name in enumerate(("logistic", "mass mean")):
        at = result.data.isel(probe=i)
        for suffix, variable in (
            ("", "auc"), (", low", "auc_low"), (", high", "auc_high"),
            (", control", "control_auc"), (", control, highest", "control_auc_high"),
        ):  # fmt: skip
            np.testing.assert_allclose(traces[name + suffix].y, at[variable], rtol=1e-6)
        control = traces[f"{name}, control"]
        assert control.line.color == traces[name].line.color and control.line.dash == "dash"
        assert traces[name].line.dash is None
    assert traces["logistic"].line.color != traces["mass mean"].line.color
    assert traces["logistic"].marker.symbol != traces["mass mean"].marker.symbol


def test_auc_has_the_chance_line_and_no_point_outside_its_range():
    result = probes()
    result.data["auc_low"][0, 0] = 0.2
    drawn = figure(result)
    (chance,) = drawn.layout.shapes
    assert chance.y0 == chance.y1 == 0.5 and drawn.layout.annotations[0].text == "chance"
    low, high = drawn.layout.yaxis.range
    assert low < 0.2 and high > 1


def test_probe_subtitle_has_n_folds_and_control():
    for fact in ("n = 480 examples (240 'true')", "5 folds that keep 120 groups together", "labels permuted"):
        assert fact in under(figure(probes()))


def test_accuracy_has_the_majority_line_and_selectivity_its_own_panel():
    result = probes()
    drawn = figures(result)["accuracy"]
    assert [(s.y0, s.yref) for s in drawn.layout.shapes] == [(0.5, "y"), (0.0, "y2")]
    selectivity = [t for t in drawn.data if t.yaxis == "y2"]
    np.testing.assert_allclose(selectivity[1].y, result.data["selectivity"][:, 1], rtol=1e-6)


def test_sweeps_over_positions_show_the_best_one_and_say_so_with_a_heatmap_of_all():
    result = probes(n_positions=5)  # positions 3 to 7, best at 4
    made = figures(result)
    assert list(made) == ["auc", "accuracy", "positions"]
    best = result.data["position"].values[result.data["auc"].max(["layer", "probe"]).values.argmax()]
    assert f"position {best}, that of the best AUC among 5" in under(made["auc"])
    np.testing.assert_allclose(made["positions"].data[1].z, result.data["auc"][:, :, 1], rtol=1e-6)


def test_sites_that_are_no_layers_are_named():
    drawn = figure(probes("site"))
    assert drawn.data[0].x[2] == "blocks.2.hook_mlp_out" and drawn.layout.xaxis.title.text == "site"


# --- steering -------------------------------------------------------------------------------------------


def test_steered_is_solid_random_is_dashed_and_bands_are_the_interval():
    result = steering()
    traces = {trace.name: trace for trace in figure(result).data}
    assert traces["steered"].line.dash == "solid" and traces["random (control)"].line.dash == "dash"
    for i, name in enumerate(("steered", "random (control)")):
        for suffix, variable in (("", "mean_score"), (", low", "score_low"), (", high", "score_high")):
            np.testing.assert_allclose(traces[name + suffix].y, result.data[variable][i], rtol=1e-6)


def test_the_level_of_strength_zero_is_drawn_if_it_was_measured():
    result = steering()
    (level,) = figure(result).layout.shapes
    assert level.y0 == pytest.approx(float(result.data["mean_score"].sel(direction="steered", strength=0)))
    without = Result(result.kind, result.data.sel(strength=[-8, 8]), result.provenance)
    assert len(figure(without).layout.shapes) == 0


def test_kl_is_a_figure_of_its_own_and_not_a_second_axis():
    result = steering()
    score, kl = figures(result).values()
    assert "yaxis2" not in score.to_plotly_json()["layout"]
    mean = next(trace for trace in kl.data if trace.name == "steered")
    np.testing.assert_allclose(mean.y, result.data["kl"].sel(direction="steered").mean("prompt"), rtol=1e-6)
    assert kl.layout.height < score.layout.height


def test_steering_names_what_is_scored_with_its_units():
    assert figure(steering()).layout.yaxis.title.text == "mean logit(' good') − logit(' bad') (nats)"
    assert "control: not run" in under(figure(steering(random=False)))


# --- words and tables -----------------------------------------------------------------------------------


def test_words_name_the_cell_the_number_and_the_control():
    words = describe(patching(n_pairs=4))["effect"]
    for fact in (
        "30 layers by 14 positions",
        "layer 8, position 9 ' John'→' Mary'",
        "−1.25",
        "interval −1.35 to −1.15",
    ):
        assert fact in words, words
    assert "stays top-1 there from layer 24 on" in describe(lens())["lens"]
    assert "Without steering" in describe(steering())["score"]
    assert "control there" in describe(probes())["auc"]


def test_tables_hold_every_number_that_is_drawn(result):
    for name, drawn in figures(result).items():
        cells = sum(len(row) - 1 for one in tables(drawn) for row in one.rows)
        grids = sum(trace.z.size for trace in drawn.data if trace.type == "heatmap")
        lines = sum(len(t.y) for t in drawn.data if t.type == "scatter" and t.mode != "text")
        assert cells == grids + lines, name


def test_a_table_of_the_lens_starts_with_the_last_layer_and_has_token_and_probability():
    result = lens()
    (table,) = tables(figure(result))
    assert table.rows[0][0] == "29" and table.columns[1] == "0 'When'"
    token, p = table.rows[-1][1].rsplit(" ", 1)
    assert float(p) == pytest.approx(float(result.data["top_probability"][0, 0, 0]), rel=5e-3)
    assert token.replace("·", " ").replace("\\n", "\n") == str(result.data["top_token"].values[0, 0, 0])


def test_typed_arrays_decode_to_the_numbers():
    """What the browser gets is base64 of little-endian float32."""
    drawn = figure(patching())
    sent = json.loads(drawn.to_json())["data"][0]["z"]
    decoded = np.frombuffer(base64.b64decode(sent["bdata"]), dtype="<f4").reshape(30, 14)
    assert sent["dtype"] == "f4"
    np.testing.assert_array_equal(decoded, drawn.data[0].z)
