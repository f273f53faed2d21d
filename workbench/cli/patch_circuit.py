"""`workbench patch circuit`: how much of the behaviour the strongest edges carry."""

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
    GradientMetricOption,
    PairsOption,
    WrongOption,
    ask,
    numbers,
    set_for,
)

app = new_app()


@app.command("circuit", epilog="Example: workbench patch circuit --dataset indirect-objects --limit 16")
def circuit(
    clean: CleanOption = None,
    corrupt: CorruptOption = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    dataset: PairsOption = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Pairs of the set: half to rank the edges, half to run circuits [default: 16]."),
    ] = None,
    metric: GradientMetricOption = None,
    heads: Annotated[
        bool | None,
        typer.Option(
            "--heads/--no-heads", help="Senders are heads, or whole attention layers [default: heads]."
        ),
    ] = None,
    integrate: Annotated[
        int | None, typer.Option(help="Steps of EAP-IG, by which edges are ranked; 0: EAP [default: 5].")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Numbers of edges, such as 10,100,1000 [default: 1, 2, 5, 10, … all].")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Rank by abs or signed effect [default: abs].")] = None,
    n_random: Annotated[
        int | None, typer.Option("--random", help="Random circuits of each size [default: 5].")
    ] = None,
    null: Annotated[
        str | None, typer.Option(help="Random edges: uniform, or layers (as many between each two layers).")
    ] = None,
    ablate: Annotated[
        str | None, typer.Option(help="What all other edges carry: run, mean or zero [default: run].")
    ] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Run the strongest edges as a circuit."""
    ask(
        "patch circuit",
        "circuit",
        clean=clean,
        corrupt=corrupt,
        answer=answer,
        wrong=wrong,
        dataset=set_for(model, dataset, clean, corrupt, answer, wrong),
        limit=limit,
        metric=metric,
        heads=heads,
        integrate=integrate,
        sizes=numbers(sizes, "--sizes"),
        by=by,
        n_random=n_random,
        null=null,
        ablate=ablate,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
