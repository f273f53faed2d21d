"""`workbench patch all-for-one`: does the last token alone do the work?"""

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
    AnswersOption,
    OnlySetOption,
    PromptsOption,
    ReferenceOption,
    ReferenceSetOption,
    ReferenceSplitOption,
    SplitOption,
    WhereOption,
    ask,
    numbers,
    where,
)
from workbench.errors import DataError

app = new_app()
ADDITION: dict[str, Any] = {
    "dataset": "addition",
    "where": {"template": "plus"},
    "reference_dataset": "addition",
    "reference_split": "train",
    "n_least": 50,
}
"""Sums that were not trained on; means over those that were, of which each number has some 87 partners."""


@app.command(
    "all-for-one",
    epilog="Example: workbench patch all-for-one --model addition   (searches all --wait and --peek)",
)
def all_for_one(
    prompt: PromptsOption = None,
    answer: AnswersOption = None,
    dataset: OnlySetOption = None,
    split: SplitOption = None,
    where_: WhereOption = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of the set to use [default: 200].")] = None,
    wait: Annotated[
        int | None,
        typer.Option(help="Blocks before context is averaged out; with --peek [default: search all]."),
    ] = None,
    peek: Annotated[
        int | None, typer.Option(help="Blocks after that in which the last token looks at others.")
    ] = None,
    waits: Annotated[str | None, typer.Option(help="Of a search: such as 0-5,8 [default: all].")] = None,
    peeks: Annotated[str | None, typer.Option(help="Of a search [default: all].")] = None,
    keep: Annotated[
        float | None, typer.Option(help="Of a search: share of answers to keep [default: 0.95].")
    ] = None,
    allowed: Annotated[
        int | None, typer.Option(help="Keys, from the end, that the last token sees [default: all].")
    ] = None,
    reference: ReferenceOption = None,
    reference_dataset: ReferenceSetOption = None,
    reference_split: ReferenceSplitOption = None,
    reference_limit: Annotated[
        int | None, typer.Option(help="Prompts of that set to use [default: 20000].")
    ] = None,
    n_least: Annotated[int | None, typer.Option(help="Fewest prompts behind a mean [default: 100].")] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Test whether the last token alone does the work."""
    asked: dict[str, Any] = {
        "prompts": prompt or None,
        "answers": answer or None,
        "dataset": dataset,
        "where": where(where_),
        "reference": reference or None,
        "reference_dataset": reference_dataset,
        "reference_split": reference_split,
        "n_least": n_least,
    }
    if dataset is None and not prompt and not answer:
        if model != ADDITION["dataset"]:
            raise DataError(
                f"All-for-one needs prompts of one length with answers, and {model!r} comes with none: give --dataset "
                "(and --reference-dataset for the means), or --prompt and --answer; or --model addition, which has "
                "its own."
            )
        given = {name: value for name, value in asked.items() if value is not None}
        known = ADDITION if reference is None else {"dataset": "addition", "where": ADDITION["where"]}
        asked = {**known, **given}
    ask(
        "patch all-for-one",
        "all_for_one",
        **asked,
        split=split,
        limit=limit,
        wait=wait,
        peek=peek,
        waits=numbers(waits, "--waits"),
        peeks=numbers(peeks, "--peeks"),
        keep=keep,
        allowed=allowed,
        reference_limit=reference_limit,
        model=model,
        device=device,
        dtype=dtype,
        seed=seed,
        runs=runs,
        json=json,
    )
