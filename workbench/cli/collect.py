"""`workbench collect`: read activations of a file or set of prompts into one safetensors file."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    new_app,
    print_table,
    progress_bars,
)

app = new_app()


@app.command(
    epilog="Example: workbench collect capitals --sites 'blocks.*.hook_resid_post' --position -1 --out acts.safetensors"
)
def collect(
    dataset: Annotated[str, typer.Argument(help="A prompt set by name, or a .jsonl, .csv or .txt file.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Site names or globs, several times [default: blocks.*.hook_resid_post]."),
    ] = None,
    position: Annotated[str, typer.Option(help="'all', or token positions such as -1 or '0,3,-1'.")] = "-1",
    limit: Annotated[int | None, typer.Option(help="Only the first N prompts.")] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json: JsonOption = False,
) -> None:
    """Collect activations at some sites and positions of every prompt."""
    from workbench.activations import collect as collect_activations
    from workbench.datasets import load
    from workbench.errors import PositionError
    from workbench.model.loading import load_model

    try:
        positions = "all" if position == "all" else [int(p) for p in position.split(",")]
    except ValueError as error:
        raise PositionError(
            f"--position {position!r}: give 'all' or whole numbers such as '-1' or '0,3'."
        ) from error
    prompts = load(dataset, limit=limit).texts
    loaded = load_model(model, device=device, dtype=dtype)
    with progress_bars(show=not json) as progress:
        acts = collect_activations(
            loaded, prompts, sites or "blocks.*.hook_resid_post", positions, progress=progress
        )
    acts.save(out)
    seconds = acts.provenance.seconds["collect"]
    tokens = acts.provenance.inputs["n_tokens"]
    facts = {
        "file": str(out),
        "rows": len(acts),
        "sites": len(acts.sites),
        "prompts": acts.n_prompts,
        "tokens_per_second": round(tokens / seconds, 1),
    }
    if json:
        typer.echo(jsonlib.dumps(facts, indent=1))
    else:
        print_table(["", ""], [[name.replace("_", " "), str(value)] for name, value in facts.items()])
