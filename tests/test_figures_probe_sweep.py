"""Figures of sweeps of several labels, classes and penalties, of numbers, latents, erasure and saved probes."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import xarray as xr
from fake_results import probes as one_label
from fake_results import where_from

from dashboards import report
from dashboards.figures import KINDS, control_statement, describe, figures, theme
from dashboards.figures.alt import OF_PROBES, module_of
from dashboards.figures.probe_labels import PANELS
from dashboards.figures.tables import tables
from workbench.results import Result, array

PROBES = ["logistic", "ridge", "mass_mean"]
C = [0.001, 0.01, 0.1, 1.0]
NASTY = "<b>truth</b> $x$ %{y}"


def sweep(labels: list[str], *, n_layers: int = 12, first: str = "layer", controls: bool = True) -> Result:
    """A sweep of several labels; label i is best at layer i + 2, the logistic probe is the best kind."""
    rng = np.random.default_rng(len(labels))
    shape, dims = (n_layers, len(labels), len(PROBES)), (first, "label", "probe")
    at = np.abs(np.arange(n_layers)[:, None] - (np.arange(len(labels)) % n_layers)[None] - 2)
    auc = 0.95 - 0.03 * at[:, :, None] - 0.02 * np.arange(3) + rng.normal(0, 0.002, shape)
    auc = np.clip(auc, 0.4, 0.99)
    control = 0.5 + rng.normal(0, 0.01, shape)
    values = {
        "auc": auc, "auc_low": auc - 0.05, "auc_high": np.minimum(auc + 0.03, 1), "accuracy": auc - 0.1,
        "accuracy_low": auc - 0.15, "accuracy_high": auc - 0.06, "calibration_error": 0.2 - auc / 5,
        "log_loss": 1 - auc,
    }  # fmt: skip
    if controls:
        values |= {
            "control_auc": control,
            "control_auc_high": control + 0.05,
            "control_accuracy": control + 0.01,
        }
        values |= {"selectivity": values["accuracy"] - values["control_accuracy"]}
    variables = {key: array(dims, v) for key, v in values.items()}
    path = auc[..., None] - 0.05 * np.abs(np.arange(4) - 1)
    path[:, :, 1:, 1:] = np.nan  # only the logistic probe has a path
    variables["auc_by_penalty"] = array((*dims, "penalty_C"), path)
    variables["log_loss_by_penalty"] = array((*dims, "penalty_C"), 1 - path)
    coords = {
        "probe": PROBES, "label": labels, "penalty_C": C, "majority_accuracy": ("label", rng.uniform(0.5, 0.8, len(labels))),
        first: np.arange(n_layers) if first == "layer" else [f"blocks.{i}.hook_mlp_out" for i in range(n_layers)],
    }  # fmt: skip
    best = {}
    for i, name in enumerate(labels):
        layer, probe = np.unravel_index(int(auc[:, i].argmax()), (n_layers, 3))
        top = float(auc[layer, i, probe])
        best[name] = {
            first: coords[first][layer],
            "probe": PROBES[probe],
            "site": "",
            "auc": top,
            "auc_low": top - 0.05,
        }
        best[name] |= {"auc_high": top + 0.03, "nested_auc": top - 0.01, "control_best_auc": 0.57}
    attrs = {"n": 480, "folds": 5, "grouped": True, "n_groups": 120, "control": "labels permuted, 5 times"}
    summary = {
        "best": best[labels[0]] | {"label": labels[0]},
        "best_by_label": best,
        "n_cells": auc.size,
        "n": 480,
    }
    return Result("probe_sweep", xr.Dataset(variables, coords, attrs), where_from(), summary)


def with_path(positions: int = 0) -> Result:
    """One label, a path of penalties, three classes."""
    base = one_label(n_positions=positions)
    data = base.data.copy()
    dims = data["auc"].dims
    path = data["auc"].values[..., None] - 0.02 * np.abs(np.arange(4) - 2)
    data["auc_by_penalty"] = array((*dims, "penalty_C"), path)
    data["log_loss_by_penalty"] = array((*dims, "penalty_C"), 1 - path)
    data["calibration_error"] = array(dims, 0.1 * data["auc"].values)
    data = data.assign_coords(penalty_C=C, **{"class": ["a", "b", NASTY]})
    data.attrs |= {"classes": ["a", "b", NASTY], "n_of_class": [200, 200, 80], "reads": {"kind": "kind"}}
    del data.attrs["n_positive"], data.attrs["positive"]
    best = {"auc": 0.95, "nested_auc": 0.94, "control_best_auc": 0.6, "probe": "logistic"}
    return replace(base, data=data, summary={"best": best, "n_cells": 60, "n": 480})


def numbers(targets: list[str], first: str = "layer") -> Result:
    """R² of some quantities; the last is hopeless."""
    n, dims = 6, (first, "target")
    r2 = np.linspace(0.1, 0.8, n)[:, None] - 0.05 * np.arange(len(targets))
    r2[:, -1] = -3.0
    values = {"r2": r2, "r2_low": r2 - 0.1, "r2_high": r2 + 0.1, "mae": 10 - r2, "control_r2": 0 * r2 - 0.01}
    values |= {"control_r2_high": 0 * r2 + 0.02, "penalty": 0 * r2 + 1}
    coords = {
        "target": targets,
        first: np.arange(n) if first == "layer" else [f"blocks.{i}.x" for i in range(n)],
    }
    coords["site"] = (first, [f"blocks.{i}.x" for i in range(n)])
    attrs = {
        "n": 300,
        "folds": 5,
        "grouped": False,
        "n_groups": 300,
        "control": "targets permuted over rows, 5 times",
    }
    variables = {key: array(dims, v) for key, v in values.items()}
    return Result("probe_numbers", xr.Dataset(variables, coords, attrs), where_from(), {})


def real(kind: str) -> Result:
    """Results of the analyses themselves, small."""
    from probes.erasure import erase_scores
    from probes.kinds.beside_dense import sparse_beside_dense

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8)), np.arange(90) % 2
    x[:, 1] += 2 * y
    if kind == "erasure":
        return erase_scores(x, y, folds=3, n_bootstrap=20)
    return sparse_beside_dense(np.maximum(x, 0), x, y, ks=[1, 2, 4], folds=3, n_control=2, n_bootstrap=20)


def applied(n: int = 60, labelled: bool = True, n_classes: int = 2) -> Result:
    rng = np.random.default_rng(1)
    names = ["no", "yes", NASTY][:n_classes]
    p = rng.dirichlet(np.ones(n_classes), size=n)
    coords = {"prompt": np.arange(n), "class": names, "token": ("prompt", ["."] * n),
              "prompt_text": ("prompt", [f"{NASTY} {i % 50}" for i in range(n)])}  # fmt: skip
    attrs = {
        "probe": "truth",
        "site": "blocks.3.hook_resid_post",
        "n_prompts": n,
        "control": "the majority of the labels",
    }
    attrs |= {"training": {"n": 100}}
    if labelled:
        coords["label"] = ("prompt", [names[i % 2] for i in range(n)])
        attrs |= {"accuracy": 0.75, "accuracy_low": 0.6, "accuracy_high": 0.85, "majority_accuracy": 0.5}
    variables = {
        "probability": array(("prompt", "class"), p),
        "answer": array(("prompt",), np.array(names)[p.argmax(1)]),
    }
    return Result("probe_apply", xr.Dataset(variables, coords, attrs), where_from(), {})


MADE = {
    "several labels": sweep(["truth", NASTY, "europe", "asia"]),
    "many labels": sweep([f"label {i}" for i in range(14)]),
    "labels at sites": sweep(["a", "b", "c"], n_layers=5, first="site", controls=False),
    "penalties and classes": with_path(),
    "penalties at positions": with_path(3),
    "numbers": numbers(["a", NASTY, "c"]),
    "many numbers by site": numbers([f"n{i}" for i in range(9)], "site"),
    "one number": numbers(["a", "b"]).__class__(
        "probe_numbers", numbers(["a", "b"]).data.isel(target=[0]), where_from(), {}
    ),
    "sparse": real("sparse"),
    "erasure": real("erasure"),
    "applied": applied(),
    "applied to few": applied(5, labelled=False, n_classes=3),
}  # fmt: skip


@pytest.fixture(params=list(MADE))
def result(request) -> Result:
    return MADE[request.param]


def under(figure) -> str:
    return re.sub(r"\s+", " ", unescape(figure.layout.title.subtitle.text.replace("<br>", " ")))


def trace(figure, name: str, **meta: str):
    """The only trace of a name (and of a label and probe)."""
    found = [
        t for t in figure.data if t.name == name and all((t.meta or {}).get(k) == v for k, v in meta.items())
    ]
    assert len(found) == 1, (name, meta, [t.name for t in figure.data])
    return found[0]


def test_every_figure_has_n_control_words_tables_and_both_schemes(result):
    drawn, words = figures(result), describe(result)
    assert list(drawn) == list(words) and result.kind in KINDS
    for name, figure in drawn.items():
        assert "n = " in under(figure) and "control: " in under(figure), name
        assert len(words[name]) > 60 and "nan" not in words[name].lower()
        assert figure.layout.template.layout.paper_bgcolor == theme.TOKENS["light"].background
        assert len(figure.to_json()) < 2_000_000 and theme.use_scheme(figure, "dark")
        assert all(table.rows for table in tables(figure))
        figure.for_each_trace(lambda t: t.update(meta=None))  # what a click is of; never drawn
        sent = figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u002f", "/")
        assert "<b>truth" not in sent and "truth</b> $x$ %{y}" not in sent, name
        assert figure.layout.yaxis.title.text or figure.layout.xaxis.title.text
    assert result.data.attrs["control"].split(",")[0] in control_statement(result)


def test_each_label_has_a_panel_with_its_own_numbers_interval_and_control():
    result = MADE["several labels"]
    figure, data = figures(result)["auc"], result.data
    for label in data["label"].values:
        for i, probe in enumerate(PROBES):
            at, meta = data.sel(label=label, probe=probe), {"label": label, "probe": probe}
            name = probe.replace("_", " ")
            for suffix, variable in (("", "auc"), (", low", "auc_low"), (", high", "auc_high"),
                                     (", control", "control_auc"), (", control, highest", "control_auc_high")):  # fmt: skip
                np.testing.assert_allclose(trace(figure, name + suffix, **meta).y, at[variable], rtol=1e-6)
            dashed = trace(figure, f"{name}, control", **meta)
            assert dashed.line.dash == "dash" and dashed.line.color == theme.SERIES[i]
    assert [s.y0 for s in figure.layout.shapes] == [0.5] * 4
    assert len({t.xaxis for t in figure.data}) == 4
    shown = [t.name for t in figure.data if t.showlegend]
    assert sorted(shown) == sorted(
        {n for p in PROBES for n in (p.replace("_", " "), f"{p.replace('_', ' ')}, control")}
    )


def test_accuracy_panels_have_their_own_majority_and_permuted_accuracy():
    result = MADE["several labels"]
    figure, data = figures(result)["accuracy"], result.data
    assert [s.y0 for s in figure.layout.shapes] == pytest.approx(data["majority_accuracy"].values.tolist())
    at = data.sel(label="europe", probe="ridge")
    meta = {"label": "europe", "probe": "ridge"}
    np.testing.assert_allclose(trace(figure, "ridge, control", **meta).y, at["control_accuracy"], rtol=1e-6)
    np.testing.assert_allclose(trace(figure, "ridge, low", **meta).y, at["accuracy_low"], rtol=1e-6)


def test_many_labels_say_how_many_are_drawn_and_the_overview_has_all():
    result = MADE["many labels"]
    drawn = figures(result)
    assert (
        f"{PANELS} of 14 labels" in under(drawn["auc"])
        and len({t.xaxis for t in drawn["auc"].data}) == PANELS
    )
    best = result.data["auc"].max(["layer", "probe"])
    kept = {t.meta["label"] for t in drawn["auc"].data}
    assert kept == set(best["label"].values[np.argsort(-best.values)[:PANELS]])
    assert "6 of 14 labels" in under(drawn["penalty"]) and "6 of 14 labels" in under(drawn["calibration"])
    overview = trace(drawn["labels"], "best cell")
    assert len(overview.y) == 14 and list(overview.x) == sorted(overview.x)
    by_label = result.summary["best_by_label"]
    for y, x, up, down in zip(
        overview.y, overview.x, overview.error_x.array, overview.error_x.arrayminus, strict=True
    ):
        assert (x, x + up, x - down) == pytest.approx(
            [by_label[y][k] for k in ("auc", "auc_high", "auc_low")], rel=1e-5
        )
    np.testing.assert_allclose(trace(drawn["labels"], "best cell of permuted labels").x, 0.57, rtol=1e-6)
    nested = trace(drawn["labels"], "chosen without the scored fold")
    np.testing.assert_allclose(nested.x, [by_label[y]["nested_auc"] for y in nested.y], rtol=1e-6)


def test_the_penalty_figure_shows_kinds_with_a_path_and_rings_the_least_log_loss():
    result = MADE["several labels"]
    figure = figures(result)["penalty"]
    at = result.data.sel(label="europe", probe="logistic")
    at = at.isel(layer=int(at["auc"].values.argmax()))
    name = f"europe, layer {int(at['layer'])}"
    np.testing.assert_allclose(trace(figure, name).y, at["auc_by_penalty"], rtol=1e-6)
    np.testing.assert_allclose(trace(figure, f"{name}, log-loss").y, at["log_loss_by_penalty"], rtol=1e-6)
    ring = trace(figure, f"{name}, least")
    assert ring.x[0] == pytest.approx(0.01) and ring.y[0] == pytest.approx(
        float(at["log_loss_by_penalty"].min()), rel=1e-5
    )
    assert "leave-one-out): ridge, mass mean" in under(figure) and figure.layout.xaxis2.type == "log"
    two = figures(MADE["penalties and classes"])["penalty"]
    assert {t.name.split(",")[0] for t in two.data} == {"logistic", "mass mean"}


def test_classes_counts_and_the_worth_of_the_best_cell_stand_under_the_title():
    result = MADE["penalties and classes"]
    said = under(figures(result)["auc"])
    for fact in ("200 a, 200 b", "AUC: mean over the 3 classes", "Best of 60 cells: AUC 0.95", "scored on 0.94",
                 "best cell of permuted labels 0.6"):  # fmt: skip
        assert fact in said, fact
    assert figures(result)["auc"].layout.title.text.startswith("Linear probes of kind by layer")


def test_a_sweep_without_path_or_calibration_has_the_figures_it_always_had():
    assert list(figures(one_label())) == ["auc", "accuracy"]


def test_numbers_have_interval_control_and_an_axis_that_says_where_it_ends():
    result = MADE["numbers"]
    figure = figures(result)["r2"]
    at = result.data.sel(target="a")
    for suffix, variable in (("", "r2"), (", low", "r2_low"), (", high", "r2_high"), (", permuted", "control_r2"),
                             (", permuted, highest", "control_r2_high")):  # fmt: skip
        np.testing.assert_allclose(trace(figure, f"a{suffix}").y, at[variable], rtol=1e-6)
    assert figure.layout.yaxis.range[
        0
    ] == -0.5 and "The axis ends at −0.5; the lowest value is −3.1" in under(figure)
    assert "6 of 9 quantities" in under(figures(MADE["many numbers by site"])["r2"])
    one = figures(MADE["one number"])
    assert list(one) == ["r2", "mae"] and "mean |error| in a" in one["mae"].layout.yaxis.title.text
    np.testing.assert_allclose(one["mae"].data[-1].y, MADE["one number"].data["mae"][:, 0], rtol=1e-6)


def test_few_latents_stand_beside_the_dense_probe_and_erasers_beside_nothing_erased():
    data = MADE["sparse"].data
    figure = figures(MADE["sparse"])["auc"]
    np.testing.assert_allclose(trace(figure, "k latents").y, data["auc"], rtol=1e-6)
    np.testing.assert_allclose(trace(figure, "dense: 8 dimensions").y, float(data["dense_auc"]), rtol=1e-6)
    np.testing.assert_allclose(trace(figure, "k latents, control").y, data["control_auc"], rtol=1e-6)
    data = MADE["erasure"].data
    figure = figures(MADE["erasure"])["accuracy"]
    other = trace(figure, "eraser and probe: other halves")
    np.testing.assert_allclose(other.y, data["accuracy"].sel(rows="other"), rtol=1e-6)
    ends = data["accuracy_high"].sel(rows="other") - data["accuracy"].sel(rows="other")
    np.testing.assert_allclose(other.error_y.array, np.maximum(ends, 0), atol=1e-6)
    assert list(other.x)[:2] == ["nothing erased", "LEACE"] and figure.layout.shapes[0].y0 == 0.5


def test_answers_of_a_saved_probe_are_sorted_and_those_left_out_are_counted():
    result = MADE["applied"]
    figure = figures(result)["answers"]
    drawn = np.sort(np.concatenate([t.x for t in figure.data]))
    p = np.sort(result.data["probability"].values[:, 1])
    np.testing.assert_allclose(drawn, np.concatenate([p[:20], p[-20:]]), rtol=1e-6)
    assert "40 of 60 texts" in under(figure) and "Right: 0.75 (95 % interval 0.6 to 0.85)" in under(figure)
    assert {t.name for t in figure.data} == {"label: no", "label: yes"}


def test_every_kind_of_probe_result_is_drawn_by_a_module_that_says_it_in_words_and_has_a_title():
    for kind in OF_PROBES:
        module = module_of(kind)
        assert kind in KINDS and all(
            hasattr(module, name) for name in ("figures", "describe", "control_statement")
        )
        assert kind in report.NAMES or kind == "input_attribution"
