"""`workbench patch back-patch`: give an earlier block what a later one has worked out."""

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
    OnlySetOption,
    PromptsOption,
    SplitOption,
    WhereOption,
    ask,
    numbers,
    own_problems,
    places,
    where,
)
from workbench.errors import DataError

app = new_app()


@app.command("back-patch", epilog="Example: workbench patch back-patch --model two-hop --position span:first")
def back_patch(
    prompt: PromptsOption = None,
    answer: AnswersOption = None,
    dataset: OnlySetOption = None,
    split: SplitOption = None,
    where_: WhereOption = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of the set to use [default: 50].")] = None,
    position: Annotated[
        list[str] | None,
        typer.Option(
            help="Which token: last, -1, span:NAME (of the data set), match:REGEX; of several the last one "
            "[default: last]."
        ),
    ] = None,
    layers: LayersOption = None,
    control: Annotated[
        bool | None,
        typer.Option(
            "--control/--no-control", help="Also both nulls, three times the runs [default: control]."
        ),
    ] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Give earlier blocks what later ones worked out."""
    if dataset is None and not prompt and not answer:
        dataset = own_problems(model)
        if dataset is None:
            raise DataError(
                f"Back-patching needs prompts with answers, and {model!r} comes with none: give --prompt and --answer "
                "(several, with different answers), or --dataset; or --model two-hop, which has its own."
            )
    ask(
        "patch back-patch",
        "back_patch",
        prompts=prompt or None,
        answers=answer or None,
        dataset=dataset,
        split=split,
        where=where(where_),
        limit=limit,
        positions=places(position),
        layers=numbers(layers, "--layers"),
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
