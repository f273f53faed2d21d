"""`workbench patch das`: train a subspace that holds a variable, and test it."""

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
from workbench.cli.patch_options import ask, places, set_for

app = new_app()


@app.command(
    "das", epilog="Example: workbench patch das --site blocks.15.hook_resid_post --position span:s2 --rank 4"
)
def das(
    site: Annotated[str, typer.Option(help="Where the subspace is: one site.", show_default=False)],
    position: Annotated[
        list[str] | None,
        typer.Option(
            help="Which token: last, -1, span:NAME (of the data set), match:REGEX; of several the last one "
            "[default: last]."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A set of pairs, or a file of them: base = clean, source = corrupt [default: the model's own "
            "problems, or indirect-objects]."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Pairs of the set to use [default: 64].")] = None,
    rank: Annotated[int | None, typer.Option(help="Dimensions of the subspace [default: 1].")] = None,
    steps: Annotated[int | None, typer.Option(help="Of training [default: 200].")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of training [default: 0.01].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a step [default: 32].")] = None,
    train_share: Annotated[
        float | None, typer.Option(help="Share of the pairs to train on [default: 0.7].")
    ] = None,
    n_random: Annotated[
        int | None, typer.Option(help="Random subspaces of the control [default: 5].")
    ] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Train a subspace that holds a variable, and test it."""
    ask(
        "patch das",
        "das",
        site=site,
        positions=places(position),
        dataset=set_for(model, dataset),
        limit=limit,
        rank=rank,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        train_share=train_share,
        n_random=n_random,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
