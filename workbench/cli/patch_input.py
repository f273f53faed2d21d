"""`workbench patch input`: which tokens of a prompt carry the answer."""

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
from workbench.cli.patch_options import (
    AnswersOption,
    ControlOption,
    PromptSetOption,
    PromptsOption,
    SplitOption,
    WhereOption,
    WrongsOption,
    ask,
    set_for,
    where,
)

app = new_app()
KINDS = ("mean", "zero", "pad", "random")


def _baseline(given: list[str] | None) -> str | list[str] | None:
    """One of the kinds by name, or prompts."""
    if not given:
        return None
    return given[0] if len(given) == 1 and given[0] in KINDS else given


@app.command("input", epilog="Example: workbench patch input --limit 4 --method integrated_gradients")
def input_(
    prompt: PromptsOption = None,
    answer: AnswersOption = None,
    wrong: WrongsOption = None,
    dataset: PromptSetOption = None,
    split: SplitOption = None,
    where_: WhereOption = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of the set to use [default: 8].")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="logit_difference, log_probability or probability [default: logit_difference]."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="gradient_x_input, integrated_gradients, expected_gradients or samp [default: integrated_gradients]."
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="mean, zero, pad, random, or a prompt of as many tokens, once for each [default: mean]."
        ),
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Midpoints, or auto [default: auto].")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="For auto: completeness error allowed, as a share [default: 0.02].")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="For auto: at most so many [default: 512].")] = None,
    control: ControlOption = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Attribute the answer to the tokens of the prompt."""
    ask(
        "patch input",
        "input_attribution",
        prompts=prompt or None,
        answers=answer or None,
        wrong=wrong or None,
        dataset=set_for(model, dataset, prompt or None, answer or None, wrong or None),
        split=split,
        where=where(where_),
        limit=limit,
        metric=metric,
        method=method,
        baseline=_baseline(baseline),
        steps=int(steps) if steps is not None and steps.isdigit() else steps,
        tolerance=tolerance,
        max_steps=max_steps,
        control=control,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
