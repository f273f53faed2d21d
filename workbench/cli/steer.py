"""`workbench steer`: a dose–response; its sub-commands make directions, write texts along them and compare methods."""

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
    execute,
    make_spec,
    new_app,
)
from workbench.cli.groups import group_of, nothing_before
from workbench.cli.steer_options import (
    PROMPTS,
    ForceOption,
    NaturalOption,
    PromptOption,
    WhereOption,
    doses,
    rule,
)
from workbench.errors import DataError

app = new_app()
COMMANDS = {
    "make": "steer_make",
    "texts": "steer_texts",
    "compare": "steer_compare",
    "write": "steer_write",
}
"""The sub-commands, and the module beside this one that has each as its `app`."""
HELP = "Add a direction at several strengths, beside random directions of the same norm."
EPILOG = (
    "Example: workbench steer --direction mood --natural, or with a command: workbench steer texts --direction mood "
    "--prompt 'The film was'"
)


@app.callback(cls=group_of(COMMANDS), invoke_without_command=True, help=HELP, epilog=EPILOG)
def steer(
    context: typer.Context,
    direction: Annotated[
        str | None,
        typer.Option(help="Name in the library, or a file; instead of one that is made from a data set."),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="Labelled prompt set the direction is made from.")
    ] = "sentiment",
    positive: Annotated[str, typer.Option(help="Label steered towards.")] = "positive",
    negative: Annotated[str, typer.Option(help="Label steered away from.")] = "negative",
    site: Annotated[
        str, typer.Option(help="Where the direction is made and added.")
    ] = "blocks.14.hook_resid_post",
    strength: Annotated[
        list[float] | None, typer.Option(help="Norm of what is added; may be given several times.")
    ] = None,
    natural: NaturalOption = False,
    prompt: PromptOption = None,
    where: WhereOption = "all",
    answer: Annotated[str, typer.Option(help="Score = logit of this token …")] = " good",
    wrong: Annotated[str, typer.Option(help="… minus logit of this one.")] = " bad",
    show_text: Annotated[
        int, typer.Option(help="Also generate this many tokens at each strength, and measure what they cost.")
    ] = 0,
    n_random: Annotated[int, typer.Option(help="Random directions of the control.")] = 5,
    force: ForceOption = False,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """A dose–response where no command is given."""
    if context.invoked_subcommand is not None:
        nothing_before(context)
        return
    common = {
        "model": {"name": model, "device": device, "dtype": dtype},
        "prompts": prompt or None,
        "answer": answer,
        "wrong": wrong,
        "where": rule(where),
        "n_random": n_random,
        "seed": seed,
    }
    if direction is None:
        if natural or force:
            raise DataError(
                "--natural and --force are about a --direction of the library or a file: name one."
            )
        own = {"dataset": dataset, "positive": positive, "negative": negative, "site": site}
        spec = make_spec("steer", strengths=strength or None, show_text=show_text, **own, **common)
    else:
        _no_dataset(context)
        common["prompts"] = prompt or PROMPTS
        spec = make_spec(
            "steer_direction",
            command="steer",
            look_at="dose_response",
            direction=direction,
            strengths=doses(strength, natural),
            units="natural" if natural else "activation",
            max_new_tokens=show_text,
            force=force,
            **common,
        )
    execute(spec, runs=runs, as_json=json)


def _no_dataset(context: typer.Context) -> None:
    """What says how a direction is made would be lost beside one that exists."""
    for name in ("dataset", "positive", "negative", "site"):
        given = context.get_parameter_source(name)
        if given is not None and given.name != "DEFAULT":
            raise DataError(
                f"--{name} says what a direction is made from, --direction names one that exists: give one of both."
            )
