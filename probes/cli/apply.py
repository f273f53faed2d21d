"""`workbench probe apply`: a saved probe on new texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probes.cli.options import LabelsOption, LimitOption, WhereOption, conditions, no_effect, words
from workbench.cli.common import DeviceOption, DtypeOption, JsonOption, RunsOption, SeedOption, new_app
from workbench.cli.patch_options import ask

app = new_app()


@app.command(
    epilog="Example: workbench probe apply truth.safetensors --text 'The capital of France is Paris.'"
)
def apply(
    probe: Annotated[
        Path, typer.Argument(metavar="PROBE", help="File that --save-probe or FittedProbe.save wrote.")
    ],
    text: Annotated[list[str] | None, typer.Option(help="A text to read; several times.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set, or a file, instead of texts.")] = None,
    labels: LabelsOption = None,
    where: WhereOption = None,
    limit: LimitOption = None,
    position: Annotated[
        int | None, typer.Option(help="Token that is read [default: as in the probe's training rows].")
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Must be the probe's own, if given [default: the probe's own].")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Use it on a model with other weights (say, a fine-tune).")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Alias, hub id or folder [default: the probe's own].")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Read new texts with a saved probe; it refuses another site or model."""
    if text:
        no_effect(
            {"--labels": labels, "--where": where, "--limit": limit}, "--text", "texts are taken as they are"
        )
    if model is None:
        from probes.fitted import FittedProbe

        model = FittedProbe.load(probe).model_name or "smollm2-135m"
    ask(
        "probe apply",
        "probe_apply",
        probe=str(probe),
        texts=text or None,
        dataset=dataset,
        labels=words(labels),
        filter=conditions(where),
        limit=limit,
        position=position,
        site=site,
        force=force,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
