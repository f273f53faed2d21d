"""`workbench patch patchscope`: let a model say in words what a stream holds."""

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
from workbench.cli.patch_options import ControlOption, ask, numbers, places
from workbench.errors import DataError

app = new_app()
TWO_HOP = "two-hop"


@app.command(
    "patchscope",
    epilog="Example: workbench patch patchscope --source 'The Eiffel Tower' --alias Paris --layers 10-20",
)
def patchscope(
    source: Annotated[str | None, typer.Option(help="Prompt whose stream is read.")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Prompt it is put into [default: one that asks which thing the stream stands for]."
        ),
    ] = None,
    source_position: Annotated[
        str | None, typer.Option(help="Which token: last, -1, match:REGEX [default: last].")
    ] = None,
    target_position: Annotated[
        str | None, typer.Option(help="The same of the target [default: last].")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Source blocks, such as 0-5,8 [default: all].")] = None,
    target_layers: Annotated[str | None, typer.Option(help="Target blocks [default: all].")] = None,
    target_model: Annotated[
        str | None, typer.Option(help="Model that goes on with the target [default: the same].")
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(help="What the thing may be called: say in which cells the text does; several times."),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to go on with [default: 10].")] = None,
    control: ControlOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Let the model say in words what a stream holds."""
    asked: dict[str, Any] = {
        "source": source,
        "target": target,
        "source_position": places([source_position] if source_position else None),
        "target_position": places([target_position] if target_position else None),
        "aliases": alias or None,
        "max_new_tokens": max_new_tokens,
    }
    if source is None:
        if model != TWO_HOP or target is not None:
            raise DataError(
                "A patchscope needs a prompt whose stream is read: give --source (or --model two-hop alone, which has "
                "its own)."
            )
        asked = two_hop_question(seed) | {name: value for name, value in asked.items() if value is not None}
    ask(
        "patch patchscope",
        "patchscope",
        **asked,
        source_layers=numbers(layers, "--layers"),
        target_layers=numbers(target_layers, "--target-layers"),
        target_model=None
        if target_model is None
        else {"name": target_model, "device": device, "dtype": dtype},
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )


def two_hop_question(seed: int) -> dict[str, Any]:
    """One two-hop problem as a patchscope: is the bridge in the stream behind the first relation?

    The source is `e r1 r2 :`, read at r1. The target `x q r2 :` asks r2 of what stands behind q: if that is the bridge
    r1(e), the model says the problem's answer. x is one of the entities of which the target's own answer is another.
    """
    from workbench.datasets import load
    from workbench.datasets.records import Pair
    from workbench.organisms.registry import get

    (problem,) = load(TWO_HOP, limit=1, seed=seed)
    assert isinstance(problem, Pair) and problem.answer is not None
    first, second, answer = problem.extra["first"], problem.extra["second"], problem.answer.strip()
    task: Any = get(TWO_HOP)
    q = next(f"r{i}" for i in range(len(task.facts)) if f"r{i}" not in (first, second))
    said = task.facts[int(second[1:])][task.facts[int(q[1:])]]
    other = next(
        f"e{i}" for i in range(len(said)) if f"e{said[i]}" != answer and f"e{i}" != problem.extra["entity"]
    )
    behind_relation = 2  # the start word, the entity, the relation
    return {
        "source": problem.clean,
        "source_position": behind_relation,
        "target": f"{other} {q} {second} :",
        "target_position": behind_relation,
        "aliases": [answer],
        "max_new_tokens": 1,
    }
