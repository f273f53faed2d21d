"""Figures of input attribution: the strips hold the result's numbers, on one range, and say what they leave out."""

from __future__ import annotations

import json
from html import unescape

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from fake_results import AWKWARD, TOKENS, where_from
from plotly.colors import hex_to_rgb, sample_colorscale, unlabel_rgb

from dashboards.figures import theme
from dashboards.figures.tables import tables
from dashboards.figures.tokens import control_statement, describe, figures, text_colours
from workbench.results import Result, array

METRIC = "logit(' Mary') − logit(' John')"


def attributed(
    prompts: list[list[str]] | None = None,
    *,
    control: bool = True,
    curves: bool = False,
    samples: bool = False,
    corrupt: bool = False,
    scale: float = 1.0,
) -> Result:
    """An input attribution with made-up numbers; the strongest is prompt 0, position 10 (or the last) with 3.5."""
    prompts = prompts or [TOKENS]
    rng = np.random.default_rng(5)
    n, longest = len(prompts), max(map(len, prompts))
    shape, dims = (n, longest), ("prompt", "position")
    inside = np.array([[p < len(prompt) for p in range(longest)] for prompt in prompts])
    moved = inside & ~((np.arange(longest) == 0) | (corrupt & (np.arange(longest) % 5 != 0)))
    own = np.where(moved, rng.normal(0, 0.4, shape), 0.0)
    own[0, min(10, len(prompts[0]) - 1)] = 3.5
    own = np.where(inside, own, np.nan) * scale
    variables = {
        "attribution": array(dims, own),
        "metric": array(("prompt",), np.linspace(4, 5, n)),
        "baseline_metric": array(("prompt",), np.linspace(0.2, 0.4, n)),
        "completeness_error": array(("prompt",), np.linspace(0.01, -0.06, n)),
        "relative_error": array(("prompt",), np.linspace(0.002, 0.013, n)),
        "converged": array(("prompt",), np.ones(n, bool)),
        "steps": array(("prompt",), 16 * 2 ** (np.arange(n) % 3)),
    }
    if samples:
        variables["attribution_se"] = array(dims, np.where(inside, 0.02, np.nan))
    if control:
        draws = np.where(moved[:, None], rng.normal(0, 0.15, (n, 8, longest)), 0.0)
        variables["control_attribution"] = array(
            ("prompt", "draw", "position"), np.where(inside[:, None], draws, np.nan)
        )
    if n > 1 and len(set(map(len, prompts))) == 1:
        mean = own.mean(0)
        variables["mean_attribution"] = array(("position",), mean)
        variables["attribution_low"] = array(("position",), mean - 0.2)
        variables["attribution_high"] = array(("position",), mean + 0.3)
        if control:
            variables["p_value"] = array(("position",), np.linspace(0.01, 0.9, longest))
    summary: dict[str, object] = {}
    if curves:
        share = np.linspace(0, 1, 14)
        line = np.exp(-5 * share)[None] + 0.02 * np.arange(n)[:, None]
        chance = 1 - share + 0.1 * rng.normal(size=(n, 20, 1)) * np.sin(np.pi * share)
        for name, own_line, random in (
            ("deletion", line, chance),
            ("insertion", 1 - line, chance[..., ::-1]),
        ):
            variables[name] = array(("prompt", "share"), own_line)
            variables[f"{name}_area"] = array(("prompt",), own_line.mean(1))
            variables[f"random_{name}"] = array(("prompt", "order", "share"), random)
            for end, q in (("low", 0.025), ("high", 0.975)):
                variables[f"random_{name}_{end}"] = array(("share",), np.quantile(random.mean(0), q, axis=0))
            summary[name] = {"p_value": 0.0476}
        variables["random_area"] = array(("prompt", "order"), chance.mean(2))
    text = np.array([[*prompt, *[""] * (longest - len(prompt))] for prompt in prompts], dtype=str)
    coords = {
        "prompt": np.arange(n),
        "position": np.arange(longest),
        "length": ("prompt", [len(prompt) for prompt in prompts]),
        "token": (dims, text),
        "moved": (dims, moved),
        **({"share": np.linspace(0, 1, 14)} if curves else {}),
        **({"baseline_token": (dims, np.where(moved, " Anna", text))} if corrupt else {}),
    }
    attrs = {
        "method": "expected_gradients" if samples else "integrated_gradients",
        "metric": METRIC,
        "baseline": "another prompt of the same length" if corrupt else "mean embedding",
        "tolerance": 0.02,
        "control": "8 random answers" if control else "not run",
        "n_prompts": n,
    }
    return Result("input_attribution", xr.Dataset(variables, coords, attrs), where_from(), summary)


LONG = (TOKENS * 22)[:300]
VARIANTS = {
    "one": attributed(),
    "one, curves": attributed(curves=True),
    "several": attributed([TOKENS, TOKENS[:9], TOKENS[2:]], curves=True),
    "one length": attributed([TOKENS] * 10, curves=True),
    "awkward": attributed([AWKWARD, AWKWARD[:3]]),
    "long": attributed([LONG]),
    "corrupt, no control": attributed(corrupt=True, control=False),
    "samples": attributed(samples=True),
    "one length, no control": attributed([TOKENS] * 3, control=False),
}


@pytest.fixture(params=VARIANTS, ids=str)
def result(request) -> Result:
    return VARIANTS[request.param]


def under(drawn: go.Figure) -> str:
    """The subtitle as a reader sees it."""
    return unescape(drawn.layout.title.subtitle.text).replace("<br>", " ")


def strip(drawn: go.Figure) -> dict[str, go.Heatmap]:
    return {trace.name.split(" (")[0]: trace for trace in drawn.data if trace.type == "heatmap"}


def read(trace: go.Heatmap, values: np.ndarray) -> np.ndarray:
    """What a strip says, line after line from the top, without what lies behind the ends of prompts."""
    return values[::-1].ravel()[np.isfinite(trace.z[::-1].ravel())]


def test_the_strips_hold_every_token_with_its_attribution_in_reading_order(result):
    data, drawn = result.data, figures(result)["tokens"]
    cells = strip(drawn)["attribution"]
    n = min(8, data.sizes["prompt"])
    inside = np.arange(data.sizes["position"]) < data["length"].values[:n, None]
    np.testing.assert_allclose(
        read(cells, cells.z), data["attribution"].values[:n][inside], rtol=1e-5, atol=1e-7
    )
    texts = next(trace for trace in drawn.data if trace.type == "scatter")
    at = np.array(texts.text, dtype=object).reshape(cells.z.shape)
    shown = [unescape(str(text)).split("<br>") for text in read(cells, at)]
    tokens, moved = data["token"].values[:n][inside], data["moved"].values[:n][inside]
    for (token, number), expected, moves in zip(shown, tokens, moved, strict=True):
        start = token.rstrip("…").lstrip("·")
        assert start and (
            start in str(expected) or start.strip("'") in repr(str(expected)).replace("\\\\", "\\")
        )
        assert (number == "=") == (not moves)


def test_the_control_is_the_root_mean_square_of_its_draws_on_the_same_range():
    result = attributed([TOKENS, TOKENS[:9]])
    found = strip(figures(result)["tokens"])
    expected = np.sqrt((result.data["control_attribution"].values ** 2).mean(1))
    np.testing.assert_allclose(
        read(found["control"], found["control"].z), expected[np.isfinite(expected)], rtol=1e-5
    )
    assert found["control"].coloraxis == found["attribution"].coloraxis == "coloraxis"
    assert found["control"].yaxis == "y2" and list(found["control"].y) == list(found["attribution"].y)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_range_is_symmetric_around_white_and_no_wider_than_what_is_drawn(scale):
    axis = figures(attributed(scale=scale, control=False))["tokens"].layout.coloraxis
    assert axis.cmax == pytest.approx(3.5 * scale, rel=1e-5) and axis.cmin == -axis.cmax and axis.cmid == 0
    control_only = figures(attributed(scale=1e-6))["tokens"].layout.coloraxis
    assert 0.1 < control_only.cmax < 0.5
    nothing = figures(attributed(scale=0, control=False))["tokens"].layout.coloraxis
    assert nothing.cmax == 1


def test_lines_are_of_equal_width_and_named_after_their_positions():
    one = strip(figures(attributed())["tokens"])["attribution"]
    assert list(one.y) == ["7–13", "0–6"] and one.z.shape == (2, 7)
    several = strip(figures(attributed([TOKENS, TOKENS[:9]]))["tokens"])["attribution"]
    assert list(several.y[::-1]) == ["prompt 0, 0–6", "prompt 0, 7–13", "prompt 1, 0–6", "prompt 1, 7–8"]
    short = figures(attributed([TOKENS[:9], TOKENS[:3]]))["tokens"]
    assert list(strip(short)["attribution"].y[::-1]) == ["prompt 0", "prompt 1"]
    assert short.layout.xaxis.title.text == "position" and short.layout.xaxis.showticklabels


def test_the_first_prompts_and_lines_are_drawn_and_the_subtitle_says_so():
    drawn = figures(attributed([TOKENS[:9]] * 30))["tokens"]
    assert strip(drawn)["attribution"].z.shape[0] == 8
    assert "The first 8 of 30 prompts are drawn" in under(drawn)
    drawn = figures(attributed([TOKENS * 70]))["tokens"]
    assert strip(drawn)["attribution"].z.shape[0] == 60
    assert "Up to token 720 of 980 of prompt 0 are drawn" in under(drawn)
    assert "drawn" not in under(figures(attributed())["tokens"])


def test_the_subtitle_has_baseline_error_steps_strongest_and_control():
    text = under(figures(attributed([TOKENS, TOKENS[:9], TOKENS[2:]]))["tokens"])
    for fact in (
        "smollm2-135m", "n = 3 prompts", "integrated gradients", "control: 8 random answers",
        "Baseline: mean embedding; mean metric 0.3 there, 4.5 for the prompt",
        "Largest completeness error 0.06, 1.3 % of metric − baseline metric, after 16 to 64 steps; 3 of 3 within 2 %",
        "Strongest: prompt 0, position 10 ' gave': 3.5 (control 0.1",
    ):  # fmt: skip
        assert fact in text, (fact, text)
    alone = under(figures(attributed(control=False, samples=True))["tokens"])
    assert "control: not run" in alone and "(control" not in alone and "Thin strips" not in alone
    assert "after 16 samples" in alone and "Strongest: position 10 ' gave': 3.5." in alone


def test_hover_names_token_position_baseline_and_every_number():
    cells = strip(figures(attributed(corrupt=True, samples=True))["tokens"])["attribution"]
    result = attributed(corrupt=True, samples=True)
    assert unescape(cells.text[0, 3]) == "·gave"  # for the table of numbers
    assert unescape(cells.hovertext[0, 3]) == "prompt 0, position 10: ' gave', baseline ' Anna'"
    assert unescape(cells.hovertext[1, 1]) == "prompt 0, position 1: ' Mary', the same in the baseline"
    rms = float(np.sqrt((result.data["control_attribution"][0, :, 10] ** 2).mean()))
    np.testing.assert_allclose(cells.customdata[0, 3], [3.5, 0.02, rms], rtol=1e-5)
    for i, word in enumerate(("attribution ", "± ", "control ")):
        assert cells.hovertemplate.split(f"%{{customdata[{i}]")[0].endswith(word)


def test_a_thin_strip_lies_under_its_own_line_and_touches_no_other():
    """In pixels, from Plotly's gaps and the two shifted axes."""
    drawn = figures(attributed())["tokens"]
    layout, found = drawn.layout, strip(drawn)
    plot = layout.height - layout.margin.t - layout.margin.b
    spans = {}
    for name, axis in (("attribution", layout.yaxis), ("control", layout.yaxis2)):
        pitch = plot / (axis.range[1] - axis.range[0])
        for row in range(2):
            middle, half = (row - axis.range[0]) * pitch, (pitch - found[name].ygap) / 2
            spans[name, row] = (middle - half, middle + half)
    for row in range(2):
        assert (
            spans["control", row][0] >= 0 and 0 <= spans["attribution", row][0] - spans["control", row][1] < 3
        )
    assert spans["control", 1][0] - spans["attribution", 0][1] > 3


def test_text_can_be_read_on_every_colour_of_the_diverging_scale():
    share = np.linspace(-1, 1, 201)

    def luminance(colour: str) -> float:
        channels = np.array(hex_to_rgb(colour)) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ np.array([0.2126, 0.7152, 0.0722]))

    cells = sample_colorscale(theme.DIVERGING, ((share + 1) / 2).tolist())
    for cell, text in zip(cells, text_colours(share), strict=True):
        back = luminance("#" + "".join(f"{round(v):02x}" for v in unlabel_rgb(cell)))
        fore = 0.0 if text == "#000" else 1.0
        assert (max(back, fore) + 0.05) / (min(back, fore) + 0.05) > 4.4


def test_means_by_position_have_their_interval_p_value_and_control():
    result = attributed([TOKENS] * 10)
    points, control = figures(result)["positions"].data
    data = result.data
    np.testing.assert_allclose(points.y, data["mean_attribution"], rtol=1e-5)
    np.testing.assert_allclose(points.y + points.error_y.array, data["attribution_high"], rtol=1e-4)
    np.testing.assert_allclose(points.y - points.error_y.arrayminus, data["attribution_low"], rtol=1e-4)
    np.testing.assert_allclose(points.customdata[:, 2], data["p_value"], rtol=1e-5)
    np.testing.assert_allclose(control.y, data["control_attribution"].mean(["prompt", "draw"]), atol=1e-6)
    assert control.marker.symbol != points.marker.symbol and points.x[1] == "1 ' Mary'"
    assert "positions" not in figures(attributed([TOKENS, TOKENS[:9]]))
    assert len(figures(attributed([TOKENS] * 3, control=False))["positions"].data) == 1


def test_curves_are_beside_random_orders_with_their_areas():
    result = attributed([TOKENS, TOKENS[:9]], curves=True)
    drawn, data = figures(result)["curves"], result.data
    traces = {trace.name: trace for trace in drawn.data}
    for name, axis in (("deletion", "x"), ("insertion", "x2")):
        own, chance = traces[f"{name}, by attribution"], traces[f"{name}, random orders"]
        np.testing.assert_allclose(own.y, data[name].mean("prompt"), rtol=1e-5)
        np.testing.assert_allclose(chance.y, data[f"random_{name}"].mean(["prompt", "order"]), atol=1e-6)
        for end in ("low", "high"):
            edge = traces[f"{name}, random orders, {end}"]
            np.testing.assert_allclose(edge.y, data[f"random_{name}_{end}"], atol=1e-6)
            assert edge.xaxis == axis
        assert own.line.dash == "solid" and chance.line.dash == "dash" and own.xaxis == chance.xaxis == axis
        area = float(data[f"{name}_area"].mean())
        assert any(
            f"{name}: area {theme.number(area, 2)}" in a.text and "p = 0.048" in a.text
            for a in drawn.layout.annotations
        )
    assert "control: 20 random orders" in under(drawn) and "curves" not in figures(attributed())


# --- what holds for every figure ------------------------------------------------------------------------


def test_numbers_travel_as_float32_and_every_drawn_one_stands_in_a_table(result):
    for name, drawn in figures(result).items():
        for trace in drawn.data:
            for key in ("x", "y", "z", "customdata"):
                value = getattr(trace, key, None)
                if value is not None and np.asarray(value).dtype.kind in "fiu":
                    assert value.dtype == np.float32, (name, trace.name, key)
        cells = sum(len(row) - 1 for one in tables(drawn) for row in one.rows)
        grids = sum(trace.z.size for trace in drawn.data if trace.type == "heatmap")
        lines = sum(len(t.y) for t in drawn.data if t.type == "scatter" and t.mode != "text")
        assert cells == grids + lines, name
        assert len(drawn.to_json()) < 500_000, name


def test_the_scheme_is_in_the_template_alone(result):
    for drawn in figures(result).values():
        light = drawn.to_plotly_json()
        dark = theme.use_scheme(drawn, "dark").to_plotly_json()
        assert dark["layout"].pop("template")["layout"]["paper_bgcolor"] == theme.TOKENS["dark"].background
        light["layout"].pop("template")
        assert str(light) == str(dark)


def test_texts_of_a_model_are_never_markup():
    result = attributed([AWKWARD, AWKWARD[:3]])
    result.data.attrs["metric"] = "ln p('<i>%{z} $x$')"
    for name, drawn in figures(result).items():
        text = json.dumps(drawn.to_plotly_json(), default=lambda a: np.asarray(a).tolist())
        for markup in ("<i>", "<b>bold", "</script>", "$"):
            assert markup not in text, (name, markup)
    assert "'<i>%{z} $x$'" in unescape(figures(result)["tokens"].layout.title.text)


def test_every_figure_is_told_in_words(result):
    words = describe(result)
    assert list(words) == list(figures(result))
    assert all(len(text) > 80 and "nan" not in text.lower() for text in words.values())
    assert "' gave': 3.5" in words["tokens"] or result.data["token"].values[0, 10:11].tolist() != [" gave"]
    said = control_statement(result)
    assert "No control was run" in said or "8 random answers. Largest |attribution| 3.5" in said


def test_figures_of_a_saved_result_are_those_of_the_result(tmp_path, result):
    loaded = Result.load(result.save(tmp_path / "r"))
    for name, drawn in figures(result).items():
        assert figures(loaded)[name].to_json() == drawn.to_json(), name
