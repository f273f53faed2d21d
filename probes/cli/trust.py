"""`workbench probe trust`: a probe at every layer beside every control."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.options import (
    LINEAR,
    DatasetArgument,
    FoldsOption,
    GroupOption,
    LabelsOption,
    LimitOption,
    PenaltyOption,
    PositionOption,
    PositiveOption,
    SitesOption,
    WhereOption,
    conditions,
    words,
)
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


@app.command(epilog="Example: workbench probe trust capitals --where negated=false --kind mass_mean")
def trust(
    dataset: DatasetArgument,
    kind: Annotated[str | None, typer.Option(help=f"Of {LINEAR} [default: logistic].")] = None,
    labels: LabelsOption = None,
    positive: PositiveOption = None,
    where: WhereOption = None,
    group_by: GroupOption = None,
    limit: LimitOption = None,
    sites: SitesOption = None,
    position: PositionOption = -1,
    random_position: Annotated[
        bool, typer.Option("--random-position", help="Also probe a random other token of each prompt.")
    ] = False,
    folds: FoldsOption = None,
    penalty: PenaltyOption = None,
    n_control: Annotated[
        int | None, typer.Option(help="Shuffles and draws of random labels [default: 3].")
    ] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Put a probe beside every control: shuffled and random labels, untrained models, the text alone."""
    ask(
        "probe trust",
        "probe_trust",
        dataset=dataset,
        probe=kind,
        labels=words(labels),
        positive=positive,
        filter=conditions(where),
        group_by=group_by,
        limit=limit,
        sites=sites or None,
        position=position,
        random_position=random_position,
        folds=folds,
        penalty=penalty,
        n_control=n_control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
