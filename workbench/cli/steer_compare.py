"""`workbench steer compare`: methods of making a direction, at equal KL."""

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

app = new_app()


@app.command(epilog="Example: workbench steer compare --task sentiment --kl 0.5")
def compare(
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="sentiment, formality, language, 'answer in French', 'answer in upper case', 'answer in one "
            "sentence'; several times [default: sentiment, language]."
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Candidate site; several times [default: blocks.14 and blocks.18.hook_resid_post]."
        ),
    ] = None,
    kl: Annotated[float, typer.Option(help="What each may cost, in nats per token.")] = 1.0,
    n_test: Annotated[int, typer.Option(help="Prompts that are judged.")] = 24,
    n_random: Annotated[int, typer.Option(help="Random directions of the control.")] = 3,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Compare methods at equal KL, on prompts nothing was chosen on, beside random directions and asking in words."""
    ask(
        "steer compare",
        "steer_compare",
        tasks=task or None,
        sites=site or None,
        target_kl=kl,
        n_test=n_test,
        n_random=n_random,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
