"""Runs: an executed spec as a folder that can be read again.

    runs/20261122-014512-lens-3f2a/
        spec.yaml        what was asked (`workbench run spec.yaml` asks it again)
        provenance.json  id, kind, title, time, summary, model, inputs, versions
        result.zarr      the labelled arrays
        figures/*.json   Plotly figures
        report.html      one self-contained page
        log.jsonl        what happened when

- `folder`   reading: `list_runs`, `load_run`
- `execute`  writing: `run_spec`
"""

from workbench.runs.execute import run_spec
from workbench.runs.folder import Run, RunInfo, list_runs, load_run, runs_folder

__all__ = ["Run", "RunInfo", "list_runs", "load_run", "run_spec", "runs_folder"]
