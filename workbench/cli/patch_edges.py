"""`workbench patch edges`: which node's output matters to which later node."""

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
    AnswerOption,
    CleanOption,
    CorruptOption,
    DirectionOption,
    GradientMetricOption,
    PairLimitOption,
    PairsOption,
    WrongOption,
    WrongSourceOption,
    ask,
    set_for,
)

app = new_app()


@app.command(
    "edges", epilog="Example: workbench patch edges --dataset indirect-objects --limit 8 --integrate 5"
)
def edges(
    clean: CleanOption = None,
    corrupt: CorruptOption = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    dataset: PairsOption = None,
    limit: PairLimitOption = None,
    metric: GradientMetricOption = None,
    heads: Annotated[
        bool | None,
        typer.Option(
            "--heads/--no-heads", help="Senders are heads, or whole attention layers [default: heads]."
        ),
    ] = None,
    direction: DirectionOption = None,
    integrate: Annotated[
        int | None,
        typer.Option(
            help="Steps between both runs that gradients are averaged over; EAP-IG is 5 [default: 0]."
        ),
    ] = None,
    control: WrongSourceOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Score every edge between heads and MLPs at once."""
    ask(
        "patch edges",
        "edges",
        clean=clean,
        corrupt=corrupt,
        answer=answer,
        wrong=wrong,
        dataset=set_for(model, dataset, clean, corrupt, answer, wrong),
        limit=limit,
        metric=metric,
        heads=heads,
        direction=direction,
        integrate=integrate,
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
