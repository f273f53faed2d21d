"""`workbench steer write`: the vector that makes the model write a given sentence."""

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
from workbench.cli.steer_options import ReplaceOption, check_name, kept

app = new_app()


@app.command(epilog="Example: workbench steer write 'The cat sat on the mat.' --layer 20 --save cat")
def write(
    sentence: Annotated[list[str], typer.Argument(metavar="SENTENCE...", help="What it is to write.")],
    layer: Annotated[int, typer.Option(help="Block after which the vector is added.")] = 20,
    prefix: Annotated[
        str | None,
        typer.Option(help="What stands before it [default: the beginning of an answer in a chat]."),
    ] = None,
    restarts: Annotated[int | None, typer.Option(help="Searches a sentence [default: 2].")] = None,
    steps: Annotated[int | None, typer.Option(help="Forward passes at most [default: 300].")] = None,
    save: Annotated[
        str | None, typer.Option(help="Also keep them in the library of directions, under this name.")
    ] = None,
    replace: ReplaceOption = False,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Find the vector that makes the frozen model write each sentence, beside no vector and a random one."""
    check_name(save, replace)
    spec = make_spec(
        "z_steer",
        command="steer write",
        model={"name": model, "device": device, "dtype": dtype},
        sentences=sentence,
        layer=layer,
        prefix=prefix,
        restarts=restarts,
        steps=steps,
        seed=seed,
    )
    execute(
        spec,
        runs=runs,
        as_json=json,
        then=None if save is None else lambda run: kept(run, save, ["z_steer"], replace=replace),
    )
