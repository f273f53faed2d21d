"""`workbench patch`: a patching sweep; its sub-commands are the other methods, one file each (`patch_NAME`)."""

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
from workbench.cli.groups import group_of, nothing_before
from workbench.cli.patch_options import CleanOption, CorruptOption, WrongOption, alignment, ask, set_for

app = new_app()
METHODS = {
    "attribution": "patch_attribution",
    "edges": "patch_edges",
    "path": "patch_path",
    "ablate": "patch_ablate",
    "knockout": "patch_knockout",
    "back-patch": "patch_back_patch",
    "patchscope": "patch_patchscope",
    "all-for-one": "patch_all_for_one",
    "das": "patch_das",
    "circuit": "patch_circuit",
    "mediation": "patch_mediation",
    "neurons": "patch_neurons",
    "input": "patch_input",
}
"""The sub-commands, in the order of the help, and the module beside this one that has each as its `app`."""
HELP = "Move activations from one run into another and measure what the answer does."
EPILOG = (
    "Example: workbench patch --dataset indirect-objects --limit 8 --site resid_pre, or with a command: "
    "workbench patch attribution --site z --recheck 20"
)


@app.callback(cls=group_of(METHODS), invoke_without_command=True, help=HELP, epilog=EPILOG)
def patch(
    context: typer.Context,
    clean: CleanOption = None,
    corrupt: CorruptOption = None,
    answer: Annotated[str | None, typer.Option(help="Right answer, exactly one token (' Mary').")] = None,
    wrong: WrongOption = None,
    dataset: Annotated[str | None, typer.Option(help="A set of pairs instead of one pair.")] = None,
    limit: Annotated[int, typer.Option(help="Pairs of the set to use.")] = 8,
    site: Annotated[
        str,
        typer.Option(
            help="resid_pre, resid_mid, resid_post, attn_out, mlp_out; heads: z, q, k, v, pattern; neurons."
        ),
    ] = "resid_pre",
    direction: Annotated[str, typer.Option(help="denoising or noising.")] = "denoising",
    source: Annotated[
        str, typer.Option(help="What is put in: run (the other prompt's), zero, mean, resample or noise.")
    ] = "run",
    by: Annotated[
        str, typer.Option(help="auto, head_position (a head at one position), or span (with --span).")
    ] = "auto",
    align: Annotated[
        bool,
        typer.Option(
            "--align", help="Prompts of different lengths: compare their tokens to see what corresponds."
        ),
    ] = False,
    span: Annotated[
        list[str] | None,
        typer.Option(help="What corresponds, NAME=CLEAN TEXT=CORRUPT TEXT; several times."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="File for what is done when it is stopped; the same command goes on from there."),
    ] = None,
    control: Annotated[bool, typer.Option(help="Also run wrong-source patches.")] = True,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """A sweep where no command is given."""
    if context.invoked_subcommand is not None:
        nothing_before(context)
        return
    ask(
        "patch",
        "patch",
        clean=clean,
        corrupt=corrupt,
        answer=answer,
        wrong=wrong,
        dataset=set_for(model, dataset, clean, corrupt, answer, wrong),
        limit=limit,
        site=site,
        direction=direction,
        source=source,
        by=by,
        alignment=alignment(align, span),
        checkpoint=checkpoint,
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
