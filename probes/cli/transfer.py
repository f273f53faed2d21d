"""`workbench probe transfer`: train on one part of the data, test on another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from probes.cli.options import (
    LINEAR,
    FoldsOption,
    GroupOption,
    LabelsOption,
    LimitOption,
    PenaltyOption,
    PositionOption,
    PositiveOption,
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
from workbench.errors import DataError

app = new_app()


@app.command(
    epilog="Example: workbench probe transfer capitals --by negated --site blocks.20.hook_resid_post"
)
def transfer(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="DATASET...", help="A set that is cut into parts, or several, each a part."),
    ],
    by: Annotated[
        str | None, typer.Option(help="Field whose every value is a part: negated, template.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A part by values of fields, NAME:FIELD=VALUE,FIELD=VALUE; several times."
        ),
    ] = None,
    across_sites: Annotated[
        bool, typer.Option("--across-sites", help="Train at one site, test at another: --site is a glob.")
    ] = False,
    site: SiteOption = "blocks.14.hook_resid_post",
    position: PositionOption = -1,
    kinds: Annotated[
        str | None, typer.Option(help=f"Of {LINEAR}, separated by commas [default: mass_mean,logistic].")
    ] = None,
    labels: LabelsOption = None,
    positive: PositiveOption = None,
    where: WhereOption = None,
    group_by: GroupOption = None,
    limit: LimitOption = None,
    shared: Annotated[
        str | None,
        typer.Option(
            help="Groups that stand in two parts: held_out of both at once, or refuse [default: held_out]."
        ),
    ] = None,
    folds: FoldsOption = None,
    penalty: PenaltyOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Train on every part and test on every part: does the direction carry over?"""
    ask(
        "probe transfer",
        "probe_transfer",
        dataset=datasets[0],
        other_datasets=datasets[1:],
        by=by,
        sets=parts(part),
        across_sites=across_sites,
        site=site,
        position=position,
        kinds=words(kinds),
        labels=words(labels),
        positive=positive,
        filter=conditions(where),
        group_by=group_by,
        limit=limit,
        shared=shared,
        folds=folds,
        penalty=penalty,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )


def parts(given: list[str] | None) -> dict[str, dict[str, Any]]:
    """`["plain:negated=false,made_up=false"]` -> {"plain": {"negated": "false", …}}. Raises `DataError`."""
    found: dict[str, dict[str, Any]] = {}
    for one in given or []:
        name, colon, rest = one.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",")]
        fields = {field.strip() for field, _, _ in pairs}
        if not (name and colon) or name in found or not all(field and value for field, _, value in pairs):
            raise DataError(
                f"--set {one!r} cannot be read: give NAME:FIELD=VALUE (plain:negated=false), each name once."
            )
        if len(fields) < len(pairs):
            raise DataError(
                f"--set {one!r} has two values for one field, and no prompt has both: give each once."
            )
        found[name] = {field.strip(): value for field, _, value in pairs}
    return found
