"""`workbench patch mediation`: which component carries the result to the answer."""

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
    LayersOption,
    PairLimitOption,
    PairsOption,
    WrongOption,
    WrongSourceOption,
    ask,
    numbers,
    set_for,
)

app = new_app()


@app.command("mediation", epilog="Example: workbench patch mediation --model addition --limit 32")
def mediation(
    clean: CleanOption = None,
    corrupt: CorruptOption = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    dataset: PairsOption = None,
    limit: PairLimitOption = None,
    same_result: Annotated[
        list[str] | None,
        typer.Option(help="Prompt with other operands and the clean one's result, once for each pair."),
    ] = None,
    component: Annotated[
        list[str] | None, typer.Option(help="mlp_out or attn_out; several times [default: both].")
    ] = None,
    layers: LayersOption = None,
    positions: Annotated[
        str | None, typer.Option(help="Token positions, such as 0-3,-1 [default: all].")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(help="Answer that probabilities are taken over; several times [default: every token]."),
    ] = None,
    control: WrongSourceOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure which component carries the result."""
    ask(
        "patch mediation",
        "mediation",
        clean=clean,
        corrupt=corrupt,
        answer=answer,
        wrong=wrong,
        dataset=set_for(model, dataset, clean, corrupt, answer, wrong),
        limit=limit,
        same_result=same_result or None,
        components=component or None,
        layers=numbers(layers, "--layers"),
        positions=numbers(positions, "--positions"),
        candidates=candidate or None,
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
