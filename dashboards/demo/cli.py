"""The `workbench demo` command."""

from __future__ import annotations

import json as jsonlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from workbench.cli.common import (
    DtypeOption,
    JsonOption,
    ModelOption,
    RunsOption,
    SeedOption,
    new_app,
    print_summary,
    progress_bars,
)

if TYPE_CHECKING:
    from dashboards.demo.stages import Stage
    from workbench.runs import Run

app = new_app()


@app.command(epilog="Example: workbench demo --runs runs")
def demo(
    model: ModelOption = "smollm2-135m",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Run the whole thread on a real model: lens, probes, patching, steering, one report."""
    from dashboards.demo.stages import stages
    from workbench.runs import run_spec
    from workbench.specs import ModelSpec

    model_spec = ModelSpec(name=model, dtype=dtype)
    seconds: dict[str, float] = {}
    done: list[tuple[Stage, Run]] = []
    with progress_bars(show=not json) as progress:
        progress.stage("model", 1)
        started = time.perf_counter()
        loaded = model_spec.load()
        progress.advance()
        seconds["model"] = time.perf_counter() - started
        for stage in stages(model_spec, loaded.n_layers, seed):
            started = time.perf_counter()
            done.append((stage, run_spec(stage.spec, runs=runs, model=loaded, progress=progress)))
            seconds[stage.name] = time.perf_counter() - started
        started = time.perf_counter()
        report = _write_report(done, runs)
        seconds["report"] = time.perf_counter() - started
    facts = _facts(done, seconds, report)
    if json:
        typer.echo(jsonlib.dumps(facts, indent=1, ensure_ascii=False))
    else:
        _show(done, facts)


def _write_report(done: list[tuple[Stage, Run]], runs: Path | None) -> Path:
    from dashboards.report import write_collection
    from workbench.runs import runs_folder

    sections = [
        (stage.heading, stage.text, run.result, {"id": run.id, **stage.spec.to_dict()}) for stage, run in done
    ]
    return write_collection(runs_folder(runs) / "demo.html", sections)


def _facts(done: list[tuple[Stage, Run]], seconds: dict[str, float], report: Path) -> dict[str, Any]:
    """What the demo found, for machines."""
    results = {stage.name: run.result for stage, run in done}
    lens, probe, patch, steer = (results[name] for name in ("lens", "probe", "patch", "steer"))
    logistic = probe.data.sel(probe="logistic")
    auc = [
        {
            "layer": int(layer),
            "auc": round(float(cell["auc"]), 4),
            "interval": [round(float(cell["auc_low"]), 4), round(float(cell["auc_high"]), 4)],
            "control": round(float(cell["control_auc"]), 4),
        }
        for layer in logistic["layer"].values
        for cell in [logistic.sel(layer=layer)]
    ]
    return {
        "lens": {key: lens.summary[key] for key in ("target", "depth", "n_layers", "final_probability")},
        "probe": {"n": int(probe.data.attrs["n"]), "best": probe.summary.get("best"), "auc_per_layer": auc},
        "patch": {
            "strongest": patch.summary["strongest"],
            "clean_metric": patch.summary["clean_metric"],
            "corrupt_metric": patch.summary["corrupt_metric"],
            "control_largest": patch.summary["control_largest"],
        },
        "steer": steer.summary,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "seconds_total": round(sum(seconds.values()), 2),
        "runs": {stage.name: str(run.path) for stage, run in done},
        "report": str(report),
    }


def _show(done: list[tuple[Stage, Run]], facts: dict[str, Any]) -> None:
    """What the demo found, for people, and where to go next."""
    from rich.console import Console

    console = Console()
    patch, lens, probe = facts["patch"]["strongest"], facts["lens"], facts["probe"]
    steer = facts["steer"]
    best = max(probe["auc_per_layer"], key=lambda row: row["auc"])
    where = "never stays on top" if lens["depth"] is None else f"is on top from layer {lens['depth']} on"
    console.print("\n[bold]What was found[/bold]")
    print_summary(
        {
            "lens": f"{lens['target']!r} {where} (of 0–{lens['n_layers'] - 1}); p = {lens['final_probability']}",
            "probes": f"true from false, n = {probe['n']}: AUC {best['auc']:.3f} {best['interval']} at layer "
            f"{best['layer']} (shuffled labels {best['control']:.3f})",
            "patching": f"strongest at layer {patch['layer']}, position {patch['position']} {patch['token']!r}: "
            f"{patch['effect']:.0%} of the logit difference (wrong source {patch['control_effect']:.0%})",
            "steering": "; ".join(
                f"{name}: score moves {value['steered']:+.2f}, random {value['random']:+.2f}"
                for name, value in steer.items()
                if isinstance(value, dict)
            ),
            "seconds": ", ".join(f"{name} {value:.1f}" for name, value in facts["seconds"].items())
            + f" (together {facts['seconds_total']:.0f})",
        },
        console=console,
    )
    console.print("\n[bold]What to look at next[/bold]")
    for line in (
        f"open {facts['report']}    the figures with their controls, one offline page",
        "workbench dashboard             change the prompts and run them yourself",
        f"workbench runs show {done[0][1].id}    one run in the terminal",
        "examples/first_look.py          the same in a notebook",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
