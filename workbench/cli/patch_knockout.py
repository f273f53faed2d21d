"""`workbench patch knockout`: block attention edges in windows of layers."""

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
    ControlOption,
    PromptSetOption,
    PromptsOption,
    RunMetricOption,
    SplitOption,
    WhereOption,
    WrongsOption,
    ask,
    each_numbers,
    numbers,
    places,
    set_for,
    where,
)

app = new_app()
WORDS = (
    "last, all, 0,3,-1, span:NAME (of the data set), match:REGEX, token:TEXT; several times for all together"
)


@app.command("knockout", epilog="Example: workbench patch knockout --keys span:io --window 5 --limit 16")
def knockout(
    keys: Annotated[
        list[str], typer.Option(help=f"What queries may not look at: {WORDS}.", show_default=False)
    ],
    queries: Annotated[list[str] | None, typer.Option(help=f"Who: {WORDS} [default: last].")] = None,
    prompt: PromptsOption = None,
    answer: AnswersOption = None,
    wrong: WrongsOption = None,
    dataset: PromptSetOption = None,
    split: SplitOption = None,
    where_: WhereOption = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of the set to use [default: 8].")] = None,
    metric: RunMetricOption = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="A set of layers, such as 0-5,8; several times [default: every window]."),
    ] = None,
    window: Annotated[int | None, typer.Option(help="Layers in a window [default: 1].")] = None,
    heads: Annotated[str | None, typer.Option(help="Query heads, such as 0-3,8 [default: all].")] = None,
    renormalise: Annotated[
        bool | None,
        typer.Option(
            "--renormalise/--no-renormalise",
            help="Scale what is left of a row, or only zero [default: scale].",
        ),
    ] = None,
    to_bos: Annotated[
        bool | None, typer.Option("--to-bos", help="Give the blocked weight to position 0.")
    ] = None,
    control: ControlOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Block attention edges in windows of layers."""
    ask(
        "patch knockout",
        "knockout",
        keys=places(keys),
        queries=places(queries),
        prompts=prompt or None,
        answers=answer or None,
        wrong=wrong or None,
        dataset=set_for(model, dataset, prompt or None, answer or None, wrong or None),
        split=split,
        where=where(where_),
        limit=limit,
        metric=metric,
        layers=each_numbers(layers, "--layers"),
        window=window,
        heads=numbers(heads, "--heads"),
        renormalise=renormalise,
        to_bos=to_bos,
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
