"""`workbench steer`: a mean-difference direction and its dose–response."""

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


@app.command(epilog="Example: workbench steer --site blocks.14.hook_resid_post --strength -10 --strength 10")
def steer(
    dataset: Annotated[
        str, typer.Option(help="Labelled prompt set the direction is made from.")
    ] = "sentiment",
    positive: Annotated[str, typer.Option(help="Label steered towards.")] = "positive",
    negative: Annotated[str, typer.Option(help="Label steered away from.")] = "negative",
    site: Annotated[
        str, typer.Option(help="Where the direction is made and added.")
    ] = "blocks.14.hook_resid_post",
    strength: Annotated[
        list[float] | None, typer.Option(help="Norm of what is added; may be given several times.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt to steer; may be given several times.")
    ] = None,
    answer: Annotated[str, typer.Option(help="Score = logit of this token …")] = " good",
    wrong: Annotated[str, typer.Option(help="… minus logit of this one.")] = " bad",
    show_text: Annotated[int, typer.Option(help="Also generate this many tokens at each strength.")] = 0,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Add a direction at several strengths, beside random directions of the same norm."""
    spec = make_spec(
        "steer",
        model={"name": model, "device": device, "dtype": dtype},
        dataset=dataset,
        positive=positive,
        negative=negative,
        site=site,
        strengths=strength or None,
        prompts=prompt or None,
        answer=answer,
        wrong=wrong,
        show_text=show_text,
        seed=seed,
    )
    execute(spec, runs=runs, as_json=json)
