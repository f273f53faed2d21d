"""`workbench steer make`: directions at many sites, how well each separates unseen texts, and one for the library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
from workbench.cli.steer_options import ReplaceOption, check_name, kept
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.runs import Run

app = new_app()


@app.command(
    epilog="Example: workbench steer make sentiment --method pca_of_differences --pair-by pair --save mood"
)
def make(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A labelled set (`workbench data list`), or a file.")
    ],
    positive: Annotated[str | None, typer.Option(help="Label steered towards [default: positive].")] = None,
    negative: Annotated[str | None, typer.Option(help="Label steered away from [default: negative].")] = None,
    method: Annotated[
        str, typer.Option(help="mean_difference, pca_of_differences or in_context_vector.")
    ] = "mean_difference",
    pair_by: Annotated[
        str | None, typer.Option(help="Field whose values pair a text of one label with one of the other.")
    ] = None,
    n_train: Annotated[int | None, typer.Option(help="Texts of each label [default: 60].")] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="Site or glob; several times [default: blocks.*.hook_resid_post]."),
    ] = None,
    position: Annotated[
        int, typer.Option(help="Which token of each text; negative counts from the end.")
    ] = -1,
    save: Annotated[
        str | None,
        typer.Option(help="Keep the one with the best held-out AUC in the library, under this name."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all-sites", help="With --save: keep those of all sites, as a set.")
    ] = False,
    replace: ReplaceOption = False,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Make a direction at every site and say how well it separates texts it has not seen, beside shuffled labels."""
    if every and save is None:
        raise DataError("--all-sites says what --save keeps: give a name to save under, such as --save mood.")
    check_name(save, replace)
    spec = make_spec(
        "direction_make",
        command="steer make",
        model={"name": model, "device": device, "dtype": dtype},
        dataset=dataset,
        positive=positive,
        negative=negative,
        method=method,
        pair_by=pair_by,
        n_train=n_train,
        sites=site or None,
        position=position,
        seed=seed,
    )

    def then(run: Run) -> dict[str, Any]:
        assert save is not None
        best = None if every else run.result.summary["best"]["site"]
        return kept(run, save, [method], best, replace=replace)

    execute(spec, runs=runs, as_json=json, then=then if save else None)
