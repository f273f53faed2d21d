"""`workbench patch attribution`: estimate every cell of a sweep at once."""

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


@app.command(
    "attribution", epilog="Example: workbench patch attribution --site z --site mlp_out --recheck 20"
)
def attribution(
    clean: CleanOption = None,
    corrupt: CorruptOption = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    dataset: PairsOption = None,
    limit: PairLimitOption = None,
    metric: GradientMetricOption = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="resid_pre, resid_mid, resid_post, attn_out, mlp_out; heads: z, q, k, v; several times "
            "[default: resid_pre]."
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="head_position: heads at each position [default: over all].")
    ] = None,
    direction: DirectionOption = None,
    integrate: Annotated[
        int | None,
        typer.Option(help="Steps between both runs that gradients are averaged over [default: 0]."),
    ] = None,
    recheck: Annotated[
        str | None,
        typer.Option(help="Patch so many of the strongest cells exactly, or all of them [default: 0]."),
    ] = None,
    layers: LayersOption = None,
    control: WrongSourceOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Estimate every cell of a sweep at once."""
    ask(
        "patch attribution",
        "attribution",
        clean=clean,
        corrupt=corrupt,
        answer=answer,
        wrong=wrong,
        dataset=set_for(model, dataset, clean, corrupt, answer, wrong),
        limit=limit,
        metric=metric,
        site=site or None,
        by=by,
        direction=direction,
        integrate=integrate,
        recheck=int(recheck) if recheck is not None and recheck.isdigit() else recheck,
        layers=numbers(layers, "--layers"),
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
