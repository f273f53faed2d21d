"""The Probes page of the dashboard: its choices, one probe of a sweep, what is saved, and the code it gives."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from test_figures_probe_sweep import sweep as several_labels
from test_probes import POST, activations, noise

import probes
from dashboards.figures import figures
from dashboards.pages import probes as page
from dashboards.pages import probes_cell, probes_form
from probes.spec import ProbeSpec
from workbench.directions import library
from workbench.errors import DataError
from workbench.results import Result
from workbench.specs import ModelSpec

RULES = {"truth": {"field": "label", "value": "true"}, "negated": {"field": "negated"}}
SPECS = [
    ProbeSpec(dataset="capitals"),
    ProbeSpec(
        dataset="capitals", label_sets=RULES, filter={"negated": False, "continent": ["Asia", "Africa"]}
    ),
    ProbeSpec(
        dataset="my file.csv", labels=["a b", "c"], positive="c", limit=20, seed=4, sites=["blocks.1.x", "y"]
    ),
    ProbeSpec(
        dataset="x", kinds=["mlp"], penalty=[0.1, 3.0], folds=7, position=-3, controls=False, group_by="it"
    ),
    ProbeSpec(
        store="acts", label_sets={"t": {"field": "truth"}}, model=ModelSpec(name="m", dtype="bfloat16")
    ),
    ProbeSpec(dataset="x", n_bootstrap=50),  # has no option of its own
]


def run_of(result: Result, spec: ProbeSpec | None = None) -> Any:
    """A run as the page sees it."""
    return SimpleNamespace(
        result=result, spec=spec or ProbeSpec(dataset="capitals"), path="runs/a run", id="a-run"
    )


def real(n_classes: int = 2, labels: bool = False) -> Result:
    import numpy as np

    acts = activations({POST.format(i): noise(60, seed=i) for i in range(2)})
    y: Any = np.arange(60) % n_classes
    y = {"even": y, "early": np.arange(60) < 30} if labels else y
    kinds = ["logistic", "mlp"] if not labels else ["logistic", "mass_mean"]
    return probes.sweep(acts, y, kinds=kinds, n_bootstrap=5, n_control=2)


@pytest.mark.parametrize("spec", SPECS)
def test_the_command_of_the_page_asks_for_the_very_same_run(spec, monkeypatch):
    from probes.cli import sweep as module
    from workbench.cli.main import main

    text, asked = probes_cell.command(spec), []
    if spec.n_bootstrap == 50:
        assert text.startswith("cat > probe.yaml")
        return
    monkeypatch.setattr(module, "execute", lambda spec, **_: asked.append(spec))
    monkeypatch.setattr(sys, "argv", shlex.split(text))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    (found,) = asked
    written, wanted = found.to_dict(), spec.to_dict()
    assert {k: v for k, v in written.items() if k != "filter"} == {
        k: v for k, v in wanted.items() if k != "filter"
    }
    assert str(written["filter"]).replace("'false'", "False") == str(wanted["filter"])


def test_the_page_offers_fields_with_few_values_to_read_to_keep_and_to_group_by():
    also, where = probes_form.also_of("capitals"), probes_form.where_of("capitals")
    assert {"negated", "template", "continent=Africa"} <= set(also) and "country=France" not in also
    assert {"negated=False", "continent=Asia"} <= set(where) and "label=true" not in also
    assert {"group", "country"} <= set(
        probes_form.groups_of("capitals")
    ) and "text" not in probes_form.groups_of("capitals")
    assert probes_form.also_of(None) == probes_form.where_of(None) == probes_form.groups_of(None) == []


@pytest.mark.parametrize(
    "result", [several_labels(["truth", "asia"]), several_labels(["a", "b"], n_layers=3, first="site"), real(), real(3),
               real(labels=True)], ids=["labels", "sites", "two", "three", "real labels"],
)  # fmt: skip
def test_the_details_are_the_numbers_of_the_chosen_cell(result):
    chosen = probes_cell.best(result)
    assert "AUC" in str(probes_cell.details(result, chosen))
    known = probes_cell.options(result)
    other = {part: values[0] if values else None for part, values in known.items()}
    at = probes_cell.cell(result, other)
    assert at["auc"].ndim == 0
    first = "layer" if "layer" in result.data.dims else "site"
    expected = result.data["auc"].isel(dict.fromkeys(result.data["auc"].dims, 0))
    assert float(at["auc"]) == float(expected) and str(at[first].item()) == other["layer"]
    from dashboards.figures.theme import number

    assert f"{number(float(expected), 4)} [95 %" in str(probes_cell.details(result, other))
    with pytest.raises(DataError, match="no layer '99'"):
        probes_cell.cell(result, other | {"layer": "99"})


def test_a_click_on_the_auc_is_its_layer_and_label():
    result = several_labels(["truth", "asia", "africa"])
    drawn = figures(result)["auc"].data
    for i, trace in enumerate(drawn):
        click = {"points": [{"curveNumber": i, "x": 4}]}
        assert probes_cell.clicked(click, result) == ("4", trace.meta["label"])
    assert probes_cell.clicked(None, result) is None and probes_cell.clicked({"points": []}, result) is None
    one = real()
    assert probes_cell.clicked({"points": [{"curveNumber": 0, "x": 1}]}, one) == ("1", None)


def test_a_direction_goes_to_the_library_and_its_python_gives_the_same(monkeypatch, tmp_path):
    import workbench as wb

    monkeypatch.setenv("WORKBENCH_DIRECTIONS", str(tmp_path))
    for result, name in ((real(labels=True), "first"), (real(3), "second")):
        run = run_of(result)
        chosen = probes_cell.best(result) | {"layer": "0", "probe": "logistic"}
        probes_cell.save_direction(run, chosen, f" {name} ")
        saved = library().direction(name)
        monkeypatch.setattr(wb, "load_run", lambda path, run=run: run)
        held: dict[str, Any] = {}
        code = probes_cell.python_of(run, chosen)
        exec(code, held)
        assert (held["direction"].vector == saved.vector).all() and held["direction"].site == saved.site
        assert probes_cell.suggested(run, chosen) in library() and library().entry(name).tags == ("probe",)
        with pytest.raises(DataError, match="has a direction"):
            probes_cell.save_direction(run, chosen, name)
    with pytest.raises(DataError, match="needs a name"):
        probes_cell.save_direction(run, chosen, "  ")
    with pytest.raises(DataError, match="not linear"):
        probes_cell.save_direction(run_of(real()), probes_cell.best(real()) | {"probe": "mlp"}, "third")


def test_the_page_shows_figures_numbers_cell_and_code_of_a_sweep_of_labels():
    result = replace(real(labels=True))
    result.data.attrs["reads"] = {"even": "even", "early": "early"}
    shown = str(page.show(run_of(result, SPECS[1]), "light"))
    for part in (
        "One probe",
        "Save direction",
        "Probes in numbers",
        "The same again",
        "workbench probe capitals",
        "Best: ",
    ):
        assert part in shown, part
    best = result.summary["best"]
    assert f"Best: {best['label']}, " in page.best_sentence(result)
    majority = float(result.data["majority_accuracy"].sel(label=best["label"]))
    assert f"(majority {majority:.3f})" in page.best_sentence(result)
