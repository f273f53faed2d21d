"""The examples work as they stand: notebooks run with all their figures, specs of probes are valid, one of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from workbench.specs import load_spec, parse_spec, spec_kinds

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = {"first_look.py": 4, "probing.py": 6, "steering.py": 4}
"""File -> number of figures."""
SPECS = sorted([*EXAMPLES.glob("probe_*.yaml"), *EXAMPLES.glob("steer_*.yaml")])
NEEDS_A_FILE = {"probe_apply", "direction_tokens"}
"""Kinds without an example: they need a probe or a direction that somebody saved."""
DEMO = {"steer"}
"""Run by the demo."""


@pytest.mark.real_model
@pytest.mark.parametrize(
    "name",
    ["first_look.py", *(pytest.param(n, marks=pytest.mark.slow) for n in ("probing.py", "steering.py"))],
)
def test_the_example_runs_as_a_notebook_and_draws_its_figures(name, tmp_path):
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(EXAMPLES / name)
    NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [o for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(figures) == NOTEBOOKS[name]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not list(tmp_path.iterdir()), "an example leaves files where it was started"


def test_every_notebook_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(NOTEBOOKS)


@pytest.mark.parametrize("file", SPECS, ids=lambda f: f.stem)
def test_the_example_specs_are_valid(file):
    spec = load_spec(file)
    assert parse_spec(yaml.safe_load(spec.to_yaml())) == spec
    assert f"workbench run examples/{file.name}" in file.read_text()


def test_there_is_an_example_spec_of_every_kind_of_probe_analysis_and_of_steering():
    kinds = {kind for kind in spec_kinds() if kind.startswith(("probe", "steer", "direction", "z_"))}
    kinds -= NEEDS_A_FILE | DEMO
    assert {yaml.safe_load(file.read_text())["kind"] for file in SPECS} == kinds
