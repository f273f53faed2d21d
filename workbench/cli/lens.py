"""`workbench lens`: logit lens on one prompt."""

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


@app.command(
    epilog="Example: workbench lens 'When Mary and John went to the store, John gave a drink to' --target ' Mary'"
)
def lens(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    target: Annotated[str | None, typer.Option(help="Token to follow (mind the leading space).")] = None,
    top_k: Annotated[int, typer.Option(help="Tokens kept per cell.")] = 5,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Decode every layer with the model's own readout (logit lens)."""
    spec = make_spec(
        "lens",
        model={"name": model, "device": device, "dtype": dtype},
        prompt=prompt,
        target=target,
        top_k=top_k,
        seed=seed,
    )
    execute(spec, runs=runs, as_json=json)
