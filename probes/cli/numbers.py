"""`workbench probe numbers`: ridge probes of quantities."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.options import (
    DatasetArgument,
    FoldsOption,
    GroupOption,
    LimitOption,
    PositionOption,
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


@app.command(
    epilog="Example: workbench probe numbers addition --target a,b,result --limit 600 --model addition"
)
def numbers(
    dataset: DatasetArgument,
    target: Annotated[str, typer.Option(help="Fields that hold the numbers, separated by commas.")],
    sites: SitesOption = None,
    position: PositionOption = -1,
    where: WhereOption = None,
    group_by: GroupOption = None,
    limit: LimitOption = None,
    folds: FoldsOption = None,
    controls: Annotated[bool, typer.Option(help="Also fit permuted numbers.")] = True,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Read numbers at every layer by ridge regression, beside permuted numbers."""
    ask(
        "probe numbers",
        "probe_numbers",
        dataset=dataset,
        targets=words(target),
        sites=sites or None,
        position=position,
        filter=conditions(where),
        group_by=group_by,
        limit=limit,
        folds=folds,
        controls=controls,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
