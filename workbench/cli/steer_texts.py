"""`workbench steer texts`: what the model writes along a direction, beside a random one."""

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
from workbench.cli.patch_options import ask
from workbench.cli.steer_options import (
    PROMPTS,
    DirectionOption,
    ForceOption,
    NaturalOption,
    PromptOption,
    StrengthOption,
    WhereOption,
    doses,
    parameters,
    rule,
)
from workbench.errors import DataError

app = new_app()


@app.command(epilog="Example: workbench steer texts --direction mood --natural --prompt 'The film was'")
def texts(
    direction: DirectionOption = None,
    prompt: PromptOption = None,
    strength: StrengthOption = None,
    natural: NaturalOption = False,
    op: Annotated[
        str, typer.Option(help="add, add_keeping_norm, ablate, clamp, rotate, affine, in_context.")
    ] = "add",
    parameter: Annotated[
        list[str] | None, typer.Option(help="Parameter of the operation, NAME=NUMBER; several times.")
    ] = None,
    where: WhereOption = "all",
    tokens: Annotated[int, typer.Option(help="New tokens.")] = 30,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    force: ForceOption = False,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Continue prompts along a direction at several strengths, beside a random direction of the same norm."""
    if not direction:
        raise DataError(
            "Say along what to steer: --direction NAME or FILE. `workbench directions list` has the names."
        )
    ask(
        "steer texts",
        "steer_direction",
        look_at="texts",
        direction=direction,
        prompts=prompt or PROMPTS,
        strengths=doses(strength, natural, op),
        units="natural" if natural else "activation",
        op=op,
        parameters=parameters(parameter),
        where=rule(where),
        max_new_tokens=tokens,
        temperature=temperature,
        force=force,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
