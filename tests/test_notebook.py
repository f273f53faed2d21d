"""The example notebook runs as it stands, figures and all."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["first_look.py"])
def test_the_example_runs_as_a_notebook_and_draws_its_figures(name, tmp_path):
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(EXAMPLES / name)
    NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [o for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(figures) == 4
    assert not [o for o in outputs if o.output_type == "error"]
