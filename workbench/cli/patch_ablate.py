"""`workbench patch ablate`: take away what sites carry, one by one."""

from __future__ import annotations

from typing import Annotated, Any

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
    ControlOption,
    PromptSetOption,
    PromptsOption,
    ReferenceOption,
    ReferenceSetOption,
    ReferenceSplitOption,
    RunMetricOption,
    SplitOption,
    WhereOption,
    WrongsOption,
    ask,
    numbers,
    set_for,
    where,
)

app = new_app()


@app.command(
    "ablate", epilog="Example: workbench patch ablate --sites 'blocks.*.attn.hook_z' --heads each --limit 16"
)
def ablate(
    prompt: PromptsOption = None,
    answer: AnswersOption = None,
    wrong: WrongsOption = None,
    dataset: PromptSetOption = None,
    split: SplitOption = None,
    where_: WhereOption = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of the set to use [default: 8].")] = None,
    metric: RunMetricOption = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Names or patterns; several times [default: blocks.*.hook_attn_out]."),
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(help="zero, mean, mean_over_positions, resample or noise [default: mean]."),
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="all, or indices such as 0,3,-1 [default: all].")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Each head alone: each, or 0-3,8 [default: whole sites].")
    ] = None,
    reference: ReferenceOption = None,
    reference_dataset: ReferenceSetOption = None,
    reference_split: ReferenceSplitOption = None,
    reference_limit: Annotated[
        int | None, typer.Option(help="Prompts of that set to use [default: 200].")
    ] = None,
    control: ControlOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Take away what sites or heads carry, one by one."""
    at: Any = positions if positions in (None, "all") else numbers(positions, "--positions")
    ask(
        "patch ablate",
        "ablate",
        prompts=prompt or None,
        answers=answer or None,
        wrong=wrong or None,
        dataset=set_for(model, dataset, prompt or None, answer or None, wrong or None),
        split=split,
        where=where(where_),
        limit=limit,
        metric=metric,
        sites=sites or None,
        how=how,
        positions=at,
        heads=heads if heads in (None, "each") else numbers(heads, "--heads"),
        reference=reference or None,
        reference_dataset=reference_dataset,
        reference_split=reference_split,
        reference_limit=reference_limit,
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
