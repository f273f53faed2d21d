"""`workbench patch neurons`: which neurons turn what a head brings into the answer."""

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
    new_app,
)
from workbench.cli.patch_options import (
    AnswersOption,
    LayersOption,
    PromptSetOption,
    PromptsOption,
    SplitOption,
    WhereOption,
    ask,
    numbers,
    set_for,
    where,
)

app = new_app()


def _head(given: str | None) -> str | list[int] | None:
    """A word, or block and head."""
    return given if given in (None, "strongest", "none") else numbers(given, "--head")


@app.command("neurons", epilog="Example: workbench patch neurons --model addition --head 3,1 --limit 16")
def neurons(
    prompt: PromptsOption = None,
    answer: AnswersOption = None,
    dataset: PromptSetOption = None,
    split: SplitOption = None,
    where_: WhereOption = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of the set to use [default: 8].")] = None,
    head: Annotated[
        str | None, typer.Option(help="strongest, none, or LAYER,HEAD such as 17,2 [default: strongest].")
    ] = None,
    control_heads: Annotated[
        int | None, typer.Option(help="Other heads of its block, as the control [default: 3].")
    ] = None,
    freeze: Annotated[
        bool | None,
        typer.Option(
            "--freeze/--no-freeze", help="Hold the last norm's scale, as the paper does [default: hold]."
        ),
    ] = None,
    layers: LayersOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Find the neurons that a head feeds."""
    ask(
        "patch neurons",
        "neurons",
        prompts=prompt or None,
        answers=answer or None,
        dataset=set_for(model, dataset, prompt or None, answer or None),
        split=split,
        where=where(where_),
        limit=limit,
        control_heads=control_heads,
        freeze=freeze,
        layers=numbers(layers, "--layers"),
        head=_head(head),
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
