"""`workbench probe mil`: true, false or neither, from bags of tokens, with the right to abstain."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.options import (
    DatasetArgument,
    FoldsOption,
    GroupOption,
    LimitOption,
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
    epilog="Example: workbench probe mil capitals --where negated=false --limit 300 --site blocks.20.hook_resid_post"
)
def mil(
    dataset: DatasetArgument,
    labels: Annotated[
        str | None, typer.Option(help="The classes, separated by commas [default: true,false,neither].")
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="Site name or glob; several times [default: blocks.14.hook_resid_post]."),
    ] = None,
    where: WhereOption = None,
    group_by: GroupOption = None,
    limit: LimitOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Last tokens of a prompt that make its bag [default: 10].")
    ] = None,
    known_positive: Annotated[
        int | None, typer.Option(help="Of those, the last that may carry the label [default: 2].")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Share of sets that may miss the right class [default: 0.1].")
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Keep to alpha in every class by itself.")
    ] = False,
    folds: FoldsOption = None,
    n_control: Annotated[
        int | None, typer.Option(help="Times that labels are shuffled [default: 1].")
    ] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Tell true from false from neither over the last tokens (sAwMIL), with conformal sets that may abstain."""
    ask(
        "probe mil",
        "probe_mil",
        dataset=dataset,
        labels=words(labels),
        sites=site or None,
        filter=conditions(where),
        group_by=group_by,
        limit=limit,
        max_tokens=max_tokens,
        known_positive=known_positive,
        alpha=alpha,
        per_class=per_class,
        folds=folds,
        n_control=n_control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
