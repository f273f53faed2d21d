"""Figures of causal checks and boards hold the result's numbers, draw the control and say n."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_probe_causal import METRIC, PROMPTS, a_direction
from test_probe_causal_boards import planted, probes_of

from dashboards.figures import probe_board, probe_causal, theme
from probes.causal.board_sweep import board_sweep
from probes.causal.closed_form import turn
from probes.causal.move import causal_check
from probes.causal.saliency import saliency_map
from workbench.results import Result


@pytest.fixture
def check(llama) -> Result:
    return causal_check(llama, PROMPTS, a_direction(), METRIC, n_random=6)


def trace(figure, name):
    (found,) = [t for t in figure.data if t.name == name]
    return found


def test_the_dose_curve_has_probe_and_random_with_intervals(check):
    figure = probe_causal.figures(check)["dose"]
    for kind, name in (("probe", "along the probe"), ("random", "random (mean)")):
        at, line = check.data.sel(direction=kind), trace(figure, name)
        assert np.allclose(line.y, at["mean_change"]) and np.allclose(line.x, at["strength"])
        assert np.allclose(line.customdata, np.stack([at["change_low"], at["change_high"]], 1))
    assert (
        trace(figure, "random (mean)").line.dash == "dash"
        and trace(figure, "along the probe").line.dash == "solid"
    )
    thin = [t for t in figure.data if str(t.name).startswith("random direction")]
    assert np.allclose([t.y for t in thin], check.data["random_change"])
    assert figure.layout.shapes[0].y0 == pytest.approx(float(check.data["ablation"][0]))
    under = figure.layout.title.subtitle.text
    assert "n = 4 prompts" in under and "6 random directions" in under and a_direction().site in under


def test_the_slope_figure_has_every_random_direction(check):
    figure = probe_causal.figures(check)["slope"]
    assert np.allclose(trace(figure, "random directions").x, check.data["random_slope"])
    probe = trace(figure, "probe")
    assert probe.x[0] == pytest.approx(check.summary["slope"]["value"], rel=1e-5)
    assert probe.x[0] + probe.error_x.array[0] == pytest.approx(check.summary["slope"]["high"], rel=1e-4)


def test_one_prompt_has_no_interval_and_says_none(llama):
    alone = causal_check(llama, PROMPTS[:1], a_direction(), METRIC, n_random=2)
    figures = probe_causal.figures(alone)
    assert trace(figures["slope"], "probe").error_x.array is None
    assert "interval" not in probe_causal.describe(alone)["slope"] and "nan" not in str(
        probe_causal.describe(alone)
    )


def test_words_say_the_numbers(check):
    words = probe_causal.describe(check)
    assert set(words) == set(probe_causal.figures(check))
    assert theme.number(check.summary["slope"]["value"]) in words["slope"]
    assert "as large a slope" in probe_causal.control_statement(check)


@pytest.fixture
def saliency(llama) -> Result:
    boards = np.array([[0, 1, 2, 1], [2, 2, 1, 0]])
    return saliency_map(llama, PROMPTS[:2], probes_of(llama), boards, edit=turn, n_random=1)


def test_the_saliency_map_is_beside_its_control_on_one_range(saliency):
    figure = probe_board.figures(saliency)["saliency"]
    data = saliency.data.isel(prompt=0)
    flip, control = figure.data
    assert np.allclose(flip.z, data["saliency"], equal_nan=True) and np.allclose(
        control.z, data["control"], equal_nan=True
    )
    assert np.array_equal(flip.text, [["", "●"], ["○", "●"]])
    most = np.nanmax(np.abs(np.stack([flip.z, control.z])))
    assert figure.layout.coloraxis.cmax == pytest.approx(most) == -figure.layout.coloraxis.cmin
    assert (
        "n = 3 squares flipped" in figure.layout.title.subtitle.text
        and "random" in figure.layout.title.subtitle.text
    )
    words = probe_board.describe(saliency)["saliency"]
    row, col = np.unravel_index(np.nanargmax(np.abs(data["saliency"].values)), (2, 2))
    assert f"{'ab'[col]}{row + 1}" in words and "Mean absolute change" in probe_board.control_statement(
        saliency
    )
    second = probe_board.saliency_figure(saliency, 1)
    assert np.allclose(second.data[0].z, saliency.data["saliency"][1], equal_nan=True)


def swept(n_squares=4, n_classes=3):
    x, y = planted(160, n_squares=n_squares, n_classes=n_classes)
    groups = np.arange(160) // 4
    rows = {"blocks.0.hook_resid_pre": x, "blocks.0.hook_resid_post": x + 0.1}
    return board_sweep(
        rows, {"side": y, "colour": y[::-1].copy()}, groups, np.arange(160) % 4, n_classes=n_classes, untrained=rows,
        settings={"linear": {"penalties": (1e-2,)}},
    )[0]  # fmt: skip


def test_error_by_site_has_controls_dashed_and_the_majority_as_a_level():
    result = swept()
    figure = probe_board.figures(result)["layers"]
    for name in ("side", "colour"):
        for kind in ("linear", "shuffled", "untrained"):
            line = trace(figure, f"{name}, {kind}")
            assert np.allclose(line.y, result.data["mean_error"].sel(labels=name, kind=kind))
            assert (line.line.dash == "dash") == (kind != "linear")
    assert figure.layout.shapes and "shuffled, untrained" in figure.layout.title.subtitle.text
    assert set(probe_board.describe(result)) == set(probe_board.figures(result))


def test_a_board_is_drawn_square_by_square_and_a_maze_passage_by_passage():
    result = swept()
    figure = probe_board.figures(result)["board"]
    best = int(result.data["mean_error"].sel(labels="side", kind="linear").values.argmin())
    error = result.data["error"].sel(labels="side", kind="linear").values[best]
    assert np.allclose(figure.data[0].z, error.reshape(2, 2)) and figure.data[0].customdata[1][0] == "a2"
    maze = probe_board.figures(swept(n_squares=12, n_classes=2))["board"].data[0]
    drawn = {maze.customdata[r][c]: maze.z[r][c] for r in range(5) for c in range(5) if maze.customdata[r][c]}
    assert len(drawn) == 12 and "(0,0)–(1,0)" in drawn and "(2,1)–(2,2)" in drawn
    from workbench.organisms.maze_grid import passages

    data = swept(n_squares=12, n_classes=2).data
    at = int(data["mean_error"].sel(labels="side", kind="linear").values.argmin())
    errors = data["error"].sel(labels="side", kind="linear").values[at]
    for (a, b), value in zip(passages(3), errors, strict=True):
        assert drawn[f"({a // 3},{a % 3})–({b // 3},{b % 3})"] == pytest.approx(value, abs=1e-6)


def test_figures_are_drawn_without_torch_or_dash(check):
    import subprocess
    import sys

    code = (
        "import sys; import dashboards.figures.probe_causal, dashboards.figures.probe_board; "
        "assert not {'torch', 'dash'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert torch.is_tensor(torch.zeros(1))
