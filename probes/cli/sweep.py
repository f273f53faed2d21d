"""`workbench probe DATASET`: probes at every layer, of one label or several, and what is kept of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probes.cli.options import (
    GroupOption,
    LabelsOption,
    LimitOption,
    PositionOption,
    PositiveOption,
    SitesOption,
    WhereOption,
    conditions,
    penalties,
    rules,
    words,
)
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
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.runs import Run

app = new_app()


@app.command(
    epilog="Example: workbench probe capitals --labels true,false --label truth=label=true --label "
    "africa=continent=Africa"
)
def sweep(
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET", help="A shipped set (capitals, sentiment), or a file; without --store."
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="A store on disk instead of a data set; needs --label.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="What is read: NAME=FIELD=VALUE, NAME=FIELD or FIELD; several share one sweep. Of a store, its "
            "prompts' labels [default: the field label]."
        ),
    ] = None,
    labels: LabelsOption = None,
    positive: PositiveOption = None,
    kinds: Annotated[
        str,
        typer.Option(
            help="Of logistic, ridge, mass_mean, mass_mean_whitened, lda, mlp, pca, kmeans, separated by commas."
        ),
    ] = "logistic,mass_mean",
    penalty: Annotated[
        str | None,
        typer.Option(
            help="C of logistic and ridge (smaller is a stronger penalty): one, several with commas, of which the best "
            "is taken, or path for 1e-5 to 100 [default: 1]."
        ),
    ] = None,
    sites: SitesOption = None,
    position: PositionOption = -1,
    where: WhereOption = None,
    group_by: GroupOption = None,
    limit: LimitOption = None,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    controls: Annotated[bool, typer.Option(help="Also fit permuted labels.")] = True,
    save_probe: Annotated[
        Path | None, typer.Option(help="File for the best probe, for `workbench probe apply`.")
    ] = None,
    save_direction: Annotated[Path | None, typer.Option(help="File for the best probe's direction.")] = None,
    keep_layer: Annotated[
        int | None, typer.Option(help="Save the probe of this layer, not of the best.")
    ] = None,
    keep_kind: Annotated[str | None, typer.Option(help="Save the best probe of this kind.")] = None,
    keep_label: Annotated[
        str | None, typer.Option(help="Save the best probe of this label (of several).")
    ] = None,
    of: Annotated[
        str | None, typer.Option(help="The class whose score the direction raises, of more than two.")
    ] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Fit probes at every layer, cross-validated, beside probes of shuffled labels."""
    files = {"--save-probe": save_probe, "--save-direction": save_direction}
    if (keep_layer, keep_kind, keep_label, of) != (None,) * 4 and not any(files.values()):
        raise DataError("--keep-layer, --keep-kind, --keep-label and --of choose what is saved: give --save-probe or "
                        "--save-direction, too.")  # fmt: skip
    if any(files.values()):
        _can_be_kept(words(kinds) or [], keep_kind, keep_label, rules(label))
    if (
        save_probe is not None
        and save_direction is not None
        and save_probe.resolve() == save_direction.resolve()
    ):
        raise DataError(
            f"--save-probe and --save-direction both name {save_probe}: one would replace the other, give two files."
        )
    if kept := [f"{name} {file}" for name, file in files.items() if file is not None and file.exists()]:
        raise DataError(f"{kept[0]} is there already: choose another name.")
    spec = make_spec(
        "probe",
        model={"name": model, "device": device, "dtype": dtype},
        dataset=dataset,
        store=str(store) if store is not None else None,
        label_sets=rules(label),
        labels=words(labels),
        positive=positive,
        kinds=words(kinds),
        penalty=penalties(penalty),
        sites=sites or None,
        position=position,
        filter=conditions(where),
        group_by=group_by,
        limit=limit,
        folds=folds,
        controls=controls,
        seed=seed,
    )

    def keep(run: Run) -> dict[str, Any]:
        return _keep(run, save_probe, save_direction, keep_layer, keep_kind, keep_label, of)

    execute(spec, runs=runs, as_json=json, then=keep)


def _can_be_kept(
    kinds: list[str], keep_kind: str | None, keep_label: str | None, labels: dict[str, str] | None
) -> None:
    """What cannot be saved is said before anything is fitted."""
    if keep_kind is not None and keep_kind not in kinds:
        raise DataError(
            f"--keep-kind {keep_kind!r} is none of the kinds that are fitted: {', '.join(kinds)}."
        )
    if keep_label is not None and keep_label not in (labels or {}):
        known = ", ".join(labels or {}) or "none, since no --label was given"
        raise DataError(f"--keep-label {keep_label!r} is none of the labels: {known}.")
    if "mlp" in kinds and keep_kind in (None, "mlp"):
        raise DataError(
            "A probe of kind 'mlp' is more than a weight, and a sweep keeps nothing else: say which of the others is "
            "saved (--keep-kind logistic), or fit it in Python (probes.kinds)."
        )


def _keep(
    run: Run,
    probe_file: Path | None,
    direction_file: Path | None,
    layer: int | None,
    kind: str | None,
    label: str | None,
    of: str | None,
) -> dict[str, Any]:
    """Write what was asked for, and say which probe that is."""
    if probe_file is None and direction_file is None:
        return {}
    from probes.picked import best_cell, picked_direction, picked_probe
    from probes.sweep_result import ProbeSweep

    found = ProbeSweep.of(run.result)
    try:
        where = best_cell(found, layer=layer, probe=kind, label=label)
        written: dict[str, Any] = {"saved_cell": where}
        if probe_file is not None:
            written["saved_probe"] = str(picked_probe(found, where).save(probe_file))
        if direction_file is not None:
            written["saved_direction"] = str(picked_direction(found, where, of).save(direction_file))
    except DataError as error:
        raise DataError(f"{error} The sweep itself is done: {run.path}") from error
    return written
