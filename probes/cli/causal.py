"""`workbench probe causal`: does moving along a probe's direction change the answer?"""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.options import (
    LINEAR,
    GroupOption,
    LabelsOption,
    LimitOption,
    PenaltyOption,
    PositiveOption,
    WhereOption,
    conditions,
    no_effect,
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
    epilog="Example: workbench probe causal capitals --where negated=false --site blocks.14.hook_resid_post"
)
def causal(
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="Statements; part of them fits the probe.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt to check instead, with --direction; several times.")
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(
            help="A direction or saved probe (file, or name in the library); nothing is fitted then."
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"Probe: of {LINEAR} [default: mass_mean].")] = None,
    site: Annotated[
        str | None,
        typer.Option(help="The site whose activations are read [default: blocks.14.hook_resid_post]."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="What is asked of each statement [default: '{text} This statement is']."),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="Answer of the positive class, one token [default: ' true'].")
    ] = None,
    wrong: Annotated[
        str | None, typer.Option(help="Answer of the negative class, one token [default: ' false'].")
    ] = None,
    edit: Annotated[
        str | None,
        typer.Option(help="Where: text (the statement's last token), last, or all [default: text]."),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="In natural scales of the direction; several times [default: ±1, ±2, ±4]."),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="random directions, or natural ones, as activations vary [default: random]."),
    ] = None,
    n_random: Annotated[int | None, typer.Option(help="How many of them [default: 10].")] = None,
    n_prompts: Annotated[int | None, typer.Option(help="Prompts that are checked [default: 40].")] = None,
    labels: LabelsOption = None,
    positive: PositiveOption = None,
    where: WhereOption = None,
    group_by: GroupOption = None,
    limit: LimitOption = None,
    penalty: PenaltyOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Use a direction that was made on another model.")
    ] = False,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Move activations along a probe's direction and see whether the answer follows, beside random directions."""
    fitting = {"--kind": kind, "--site": site, "--penalty": penalty, "--positive": positive}
    choosing = {"--template": template, "--labels": labels, "--where": where, "--group-by": group_by}
    if direction is not None:
        no_effect(fitting, "--direction", "nothing is fitted, and the direction has its own site")
    if prompt:
        no_effect(choosing | {"--limit": limit}, "--prompt", "prompts are taken as they are")
    ask(
        "probe causal",
        "probe_causal",
        dataset=dataset,
        prompts=prompt or None,
        direction=direction,
        probe=kind,
        site=site,
        template=template,
        answer=answer,
        wrong=wrong,
        edit=edit,
        strengths=strength or None,
        control=control,
        n_random=n_random,
        n_prompts=n_prompts,
        labels=words(labels),
        positive=positive,
        filter=conditions(where),
        group_by=group_by,
        limit=limit,
        penalty=penalty,
        force=force,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
