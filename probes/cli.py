"""`workbench probe`: a probe at every layer, on a set of labelled statements."""

from __future__ import annotations

from typing import Annotated, Any

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


@app.command(epilog="Example: workbench probe capitals --where negated=false")
def probe(
    dataset: Annotated[
        str, typer.Argument(help="Statements: a shipped set (capitals, sentiment) or a file.")
    ],
    sites: Annotated[list[str] | None, typer.Option(help="Site name or glob; repeat for more.")] = None,
    kinds: Annotated[
        str, typer.Option(help="Of logistic, mass_mean, mass_mean_whitened, separated by commas.")
    ] = "logistic,mass_mean",
    position: Annotated[int, typer.Option(help="Token position; negative counts from the end.")] = -1,
    labels: Annotated[
        str | None, typer.Option(help="The two labels to tell apart, separated by a comma.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="The positive label; without it the one that sorts last.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Keep records with FIELD=VALUE; repeat for more.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Field whose values stay together in a fold; without it the set's groups."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many statements, drawn with the seed.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    penalty: Annotated[
        float, typer.Option(help="C of the logistic probe: smaller is a stronger penalty.")
    ] = 1.0,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Fit probes at every layer, cross-validated, beside probes of shuffled labels."""
    spec = make_spec(
        "probe",
        model={"name": model, "device": device, "dtype": dtype},
        dataset=dataset,
        sites=sites or None,
        kinds=[kind.strip() for kind in kinds.split(",")],
        position=position,
        labels=[label.strip() for label in labels.split(",")] if labels else None,
        positive=positive,
        filter=_conditions(where or []),
        group_by=group_by,
        limit=limit,
        folds=folds,
        penalty=penalty,
        seed=seed,
    )
    execute(spec, runs=runs, as_json=json)


def _conditions(where: list[str]) -> dict[str, Any]:
    """`["negated=false", "continent=Asia"]` -> `{"negated": False, "continent": "Asia"}`."""
    found: dict[str, Any] = {}
    for condition in where:
        name, equals, value = condition.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{condition!r} is not FIELD=VALUE, such as negated=false.")
        found[name] = {"true": True, "false": False}.get(value, value)
    return found
