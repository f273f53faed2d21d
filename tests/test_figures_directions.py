"""Figures of directions: the numbers of the result, the bands of random directions, and both in words."""

from __future__ import annotations

import json
from html import unescape

import numpy as np
import pytest
import torch
import xarray as xr
from fake_results import AWKWARD, NAMES, where_from

from dashboards.figures import theme
from dashboards.figures.directions import control_statement, describe, figures
from dashboards.figures.tables import tables
from workbench.directions import Direction, DirectionSet
from workbench.results import Result, array

SITE = "blocks.1.hook_resid_post"


def direction(seed: int, name: str, d: int = 48) -> Direction:
    drawn = torch.randn(d, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(drawn, site=SITE, name=name)


def cosines(n: int = 4, *, reference: bool = False, awkward: bool = False) -> Result:
    names = AWKWARD if awkward else [f"direction {i}" for i in range(n)]
    several = [direction(i, name) for i, name in enumerate(names[:n])]
    several[1] = Direction.from_vector(several[0].vector + 0.1 * several[1].vector, site=SITE, name=names[1])
    rows = torch.randn(200, 48, generator=torch.Generator().manual_seed(9)) * torch.linspace(0.01, 3, 48)
    return DirectionSet(several).cosines(reference=rows if reference else None)


def tokens(
    k: int = 10, *, network: bool = True, n: int = 8, awkward: bool = False, name: str = "truth"
) -> Result:
    effects = ["direct", "last_stream", "network"][: 3 if network else 2]
    rng = np.random.default_rng(0)
    dims, shape = ("effect", "side", "k"), (len(effects), 2, k)
    value = -np.sort(-rng.gamma(2, 1, shape), axis=-1) * np.array([1, -1])[None, :, None]
    control = -np.sort(-rng.gamma(1, 0.5, shape), axis=-1) * np.array([1, -1])[None, :, None]
    half = np.full(shape, 0.2 if n > 1 else np.nan)
    pool = AWKWARD if awkward else [*NAMES, *(f" w{i}" for i in range(60))]
    token = rng.choice(pool, size=shape)
    data = xr.Dataset(
        {
            "token": array(dims, token.astype(str)),
            "token_id": array(dims, rng.integers(0, 999, shape)),
            "value": array(dims, value),
            "low": array(dims, value - half),
            "high": array(dims, value + half),
            "control_mean": array(dims, control),
            "control_low": array(dims, control - 0.1),
            "control_high": array(dims, control + 0.1),
            "p_value": array(dims[:2], np.full(shape[:2], 1 / 21)),
        },
        coords={
            "effect": np.array(effects),
            "side": np.array(["promoted", "suppressed"]),
            "k": np.arange(k),
            "units": ("effect", np.array(["logits", "nats", "nats"][: len(effects)])),
        },
        attrs={
            "direction": name, "site": SITE, "strength": 8.0, "n_prompts": n, "n_random": 20, "d_vocab": 49152,
            "control": "20 random directions of the same strength",
        },
    )  # fmt: skip
    return Result("direction_tokens", data, where_from(), {})


def angles() -> Result:
    groups = [DirectionSet([direction(10 * g + i, f"{g} {i}") for i in range(3)]) for g in range(2)]
    return groups[0].principal_angles(groups[1], n_null=50)


VARIANTS = {
    "cosines": cosines(),
    "two": cosines(2),
    "reference": cosines(reference=True),
    "many": cosines(30),
    "awkward cosines": cosines(8, awkward=True),
    "tokens": tokens(),
    "one prompt": tokens(n=1, network=False),
    "many tokens": tokens(60),
    "awkward tokens": tokens(awkward=True, name="<i>%{z} $x$"),
    "angles": angles(),
}


@pytest.fixture(params=VARIANTS, ids=str)
def result(request) -> Result:
    return VARIANTS[request.param]


def under(figure) -> str:
    return unescape(figure.layout.title.subtitle.text).replace("<br>", " ")


def test_the_heatmap_has_every_cosine_and_numbers_outside_the_band_only():
    result = cosines()
    cells = figures(result)["cosines"].data[-1]
    expected = result.data["cosine"].values.copy()
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(cells.z, expected, rtol=1e-5)
    band = float(result.data["null_band"][0])
    written = cells.text != ""
    np.testing.assert_array_equal(written, np.nan_to_num(np.abs(expected)) >= band)
    assert written[0, 1] and theme.number(band) in under(figures(result)["cosines"])
    axis = figures(result)["cosines"].layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-1, 1)


def test_pairs_are_the_largest_first_over_the_bands_of_both_nulls():
    result = cosines(reference=True)
    drawn = figures(result)["pairs"]
    cosine = result.data["cosine"].values[np.triu_indices(4, 1)]
    np.testing.assert_allclose(
        np.array(drawn.data[0].x)[::-1], cosine[np.argsort(-np.abs(cosine))], rtol=1e-5
    )
    assert unescape(drawn.data[0].y[-1]) == "direction 0 · direction 1"
    bands = result.data["null_band_of_all"].values
    lines = {round(shape.x0, 6): shape.line.dash for shape in drawn.layout.shapes}
    assert lines == {round(s * b, 6): d for b, d in zip(bands, ("dot", "dash"), strict=True) for s in (-1, 1)}
    assert "The 20 of largest |cos|" in under(figures(cosines(30))["pairs"])


def test_tokens_are_two_lists_of_bars_with_intervals_and_the_control():
    result = tokens()
    drawn = figures(result)
    assert list(drawn) == ["network", "last_stream", "direct"]
    for effect, figure in drawn.items():
        promoted, control, suppressed, _ = figure.data
        cell = result.data.sel(effect=effect)
        for bar, side in ((promoted, "promoted"), (suppressed, "suppressed")):
            here = cell.sel(side=side)
            np.testing.assert_allclose(np.array(bar.x)[::-1], here["value"], rtol=1e-5)
            np.testing.assert_allclose((bar.x + bar.error_x.array)[::-1], here["high"], rtol=1e-4)
            np.testing.assert_allclose((bar.x - bar.error_x.arrayminus)[::-1], here["low"], rtol=1e-4)
        here = cell.sel(side="promoted")
        np.testing.assert_allclose(np.array(control.x)[::-1], here["control_mean"], rtol=1e-5)
        np.testing.assert_allclose((control.x + control.error_x.array)[::-1], here["control_high"], rtol=1e-4)
        assert promoted.xaxis == "x" and suppressed.xaxis == "x2"
        text = under(figure)
        for fact in ("n = 8 prompts", "20 random directions", "strength 8", SITE, "of 49,152 tokens"):
            assert fact in text, fact
        assert f"change ({cell['units'].item()})" == figure.layout.xaxis.title.text
    assert "The first 20 of" in under(figures(tokens(60))["direct"])
    assert figures(tokens(n=1))["direct"].data[0].error_x.array is None


def test_angles_lie_over_the_band_of_random_spans():
    result = angles()
    low, high, null, own = figures(result)["angles"].data
    np.testing.assert_allclose(own.y, result.data["degrees"], rtol=1e-5)
    np.testing.assert_allclose(null.y, result.data["null_mean"], rtol=1e-5)
    np.testing.assert_allclose(low.y, result.data["null_low"], rtol=1e-5)
    np.testing.assert_allclose(high.y, result.data["null_high"], rtol=1e-5)


# --- what holds for every figure ------------------------------------------------------------------------


def test_numbers_travel_as_float32_and_every_figure_has_a_table(result):
    for name, drawn in figures(result).items():
        for trace in drawn.data:
            for key in ("x", "y", "z", "customdata"):
                value = getattr(trace, key, None)
                if value is not None and np.asarray(value).dtype.kind in "fiu":
                    assert value.dtype == np.float32, (name, trace.name, key)
        found = tables(drawn)
        assert found and all(one.rows for one in found), name
        assert len(drawn.to_json()) < 300_000, name


def test_the_scheme_is_in_the_template_alone(result):
    for drawn in figures(result).values():
        light = drawn.to_plotly_json()
        dark = theme.use_scheme(drawn, "dark").to_plotly_json()
        assert dark["layout"].pop("template")["layout"]["paper_bgcolor"] == theme.TOKENS["dark"].background
        light["layout"].pop("template")
        assert str(light) == str(dark)


def test_texts_of_a_model_are_never_markup(result):
    for name, drawn in figures(result).items():
        text = json.dumps(drawn.to_plotly_json(), default=lambda a: np.asarray(a).tolist())
        text = text.replace("<b>%{y}</b>", "").replace("<b>%{y} and %{x}</b>", "")
        for markup in ("<i>", "<b>", "</script>", "$"):
            assert markup not in text, (name, markup)


def test_every_figure_is_told_in_words(result):
    words = describe(result)
    assert list(words) == list(figures(result))
    assert all(len(text) > 60 and "nan" not in text.lower() for text in words.values())
    said = control_statement(result)
    assert said.startswith("Control: ") and "nan" not in said


def test_figures_of_a_saved_result_are_those_of_the_result(tmp_path, result):
    loaded = Result.load(result.save(tmp_path / "r"))
    for name, drawn in figures(result).items():
        assert figures(loaded)[name].to_json() == drawn.to_json(), name
