"""`workbench probe erase`: what a probe still reads after LEACE has erased a label."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.options import (
    DatasetArgument,
    FoldsOption,
    GroupOption,
    LabelsOption,
    LimitOption,
    PenaltyOption,
    PositionOption,
    SiteOption,
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


@app.command(epilog="Example: workbench probe erase sentiment --site blocks.14.hook_resid_post")
def erase(
    dataset: DatasetArgument,
    label: Annotated[
        str | None, typer.Option(help="What is erased: FIELD or FIELD=VALUE [default: the field label].")
    ] = None,
    labels: LabelsOption = None,
    site: SiteOption = "blocks.14.hook_resid_post",
    position: PositionOption = -1,
    where: WhereOption = None,
    group_by: GroupOption = None,
    limit: LimitOption = None,
    folds: FoldsOption = None,
    penalty: PenaltyOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Erase a label (LEACE) and probe what is left, beside the mean difference and random directions."""
    ask(
        "probe erase",
        "probe_erase",
        dataset=dataset,
        erase=label,
        labels=words(labels),
        site=site,
        position=position,
        filter=conditions(where),
        group_by=group_by,
        limit=limit,
        folds=folds,
        penalty=penalty,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
