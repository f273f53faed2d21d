"""`workbench patch path`: what goes from senders to receivers directly."""

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
    new_app,
)
from workbench.cli.patch_options import (
    AnswerOption,
    CleanOption,
    CorruptOption,
    DirectionOption,
    PairLimitOption,
    PairMetricOption,
    PairsOption,
    WrongOption,
    WrongSourceOption,
    ask,
    set_for,
)
from workbench.errors import DataError

app = new_app()


@app.command("path", epilog="Example: workbench patch path --receiver blocks.9.attn.hook_q:6 --limit 4")
def path(
    clean: CleanOption = None,
    corrupt: CorruptOption = None,
    answer: AnswerOption = None,
    wrong: WrongOption = None,
    dataset: PairsOption = None,
    limit: PairLimitOption = None,
    metric: PairMetricOption = None,
    receiver: Annotated[
        list[str] | None,
        typer.Option(
            help="logits; or hook_q, hook_k, hook_v or hook_mlp_out of a block, for one head with :HEAD "
            "(blocks.9.attn.hook_q:6); several times for all together [default: logits]."
        ),
    ] = None,
    sender: Annotated[
        list[str] | None,
        typer.Option(
            help="BLOCK.HEAD or BLOCK.mlp, several joined by + for a set that is patched together (9.6+10.mlp); "
            "several times [default: each head and MLP alone]."
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(help="heads: MLPs are recomputed; all: they are held as well [default: heads]."),
    ] = None,
    direction: DirectionOption = None,
    control: WrongSourceOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Patch only the direct paths from heads and MLPs."""
    ask(
        "patch path",
        "path_patch",
        clean=clean,
        corrupt=corrupt,
        answer=answer,
        wrong=wrong,
        dataset=set_for(model, dataset, clean, corrupt, answer, wrong),
        limit=limit,
        metric=metric,
        receivers=_receivers(receiver),
        senders=[_set(one) for one in sender] if sender else None,
        freeze=freeze,
        direction=direction,
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )


def _receivers(given: list[str] | None) -> Any:
    if not given:
        return None
    found: list[Any] = []
    for one in given:
        site, _, head = one.rpartition(":")
        found.append([site, int(head)] if site and head.isdigit() else one)
    return found[0] if found == ["logits"] else found


def _set(given: str) -> list[tuple[int, int | str]]:
    found: list[tuple[int, int | str]] = []
    for one in given.split("+"):
        block, _, head = one.strip().partition(".")
        if not block.isdigit() or not (head.isdigit() or head == "mlp"):
            raise DataError(
                f"--sender {given!r} cannot be read: give BLOCK.HEAD or BLOCK.mlp, joined by + (9.6+10.mlp)."
            )
        found.append((int(block), head if head == "mlp" else int(head)))
    return found
