"""`workbench patch`: patching sweep over one pair of prompts or a set of pairs."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    RunsOption,
    SeedOption,
    execute,
    make_spec,
    new_app,
)

app = new_app()


@app.command(epilog="Example: workbench patch --dataset indirect-objects --limit 8 --site resid_pre")
def patch(
    clean: Annotated[str | None, typer.Option(help="Prompt the model answers right.")] = None,
    corrupt: Annotated[str | None, typer.Option(help="The same prompt with one thing changed.")] = None,
    answer: Annotated[str | None, typer.Option(help="Right answer, exactly one token (' Mary').")] = None,
    wrong: Annotated[str | None, typer.Option(help="Wrong answer, exactly one token (' John').")] = None,
    dataset: Annotated[str | None, typer.Option(help="A set of pairs instead of one pair.")] = None,
    limit: Annotated[int, typer.Option(help="Pairs of the set to use.")] = 8,
    site: Annotated[
        str,
        typer.Option(
            help="resid_pre, resid_mid, resid_post, attn_out, mlp_out; heads: z, q, k, v, pattern; neurons."
        ),
    ] = "resid_pre",
    direction: Annotated[str, typer.Option(help="denoising or noising.")] = "denoising",
    source: Annotated[
        str, typer.Option(help="What is put in: run (the other prompt's), zero, mean, resample or noise.")
    ] = "run",
    control: Annotated[bool, typer.Option(help="Also run wrong-source patches.")] = True,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Move activations from one run into another and measure what the answer does."""
    if dataset is None and clean is None:
        dataset = "indirect-objects"
    spec = make_spec(
        "patch",
        model={"name": model, "device": device, "dtype": dtype},
        clean=clean,
        corrupt=corrupt,
        answer=answer,
        wrong=wrong,
        dataset=dataset,
        limit=limit,
        site=site,
        direction=direction,
        source=source,
        control=control,
        seed=seed,
    )
    execute(spec, runs=runs, as_json=json)
