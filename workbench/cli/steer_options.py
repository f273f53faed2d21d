"""What the commands of `workbench steer` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.runs import Run

DirectionOption = Annotated[
    str | None,
    typer.Option(
        help="Name in the library (`workbench directions list`), or a file (ours, GGUF, JSON by layer)."
    ),
]
PromptOption = Annotated[list[str] | None, typer.Option(help="Prompt to steer; may be given several times.")]
StrengthOption = Annotated[
    list[float] | None,
    typer.Option(help="Strength; several times [default: -20 -10 10 20; natural: -1 -0.5 0.5 1]."),
]
NaturalOption = Annotated[
    bool, typer.Option("--natural", help="Strengths are multiples of the direction's own scale.")
]
WhereOption = Annotated[
    str,
    typer.Option(
        help="Positions: all, prompt, generated, last, from=3 (negative: from the prompt's end), or from=' text'."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Use a direction that was made on another model.")]
TaskDatasetOption = Annotated[
    str, typer.Option("--dataset", help="Labelled set that directions are made from.")
]

PROMPTS = [
    "I watched the film yesterday. It was",
    "We ate at the new restaurant. The food was",
    "My sister read the book. She said it was",
]
"""What is steered where no prompt is given."""


def rule(where: str) -> str | dict[str, Any]:
    """`from=3` -> {"from": 3}; `from= Mary` -> {"from_text": " Mary"}; anything else as it is."""
    name, equals, value = where.partition("=")
    if name != "from" or not equals:
        return where
    if not value:
        raise DataError(
            "--where from= names no position: give a number (from=3, from=-2) or a text (from=' Mary')."
        )
    try:
        return {"from": int(value)}
    except ValueError:
        return {"from_text": value.strip("'\"") if value[:1] in "'\"" else value}


def doses(strength: list[float] | None, natural: bool) -> list[float]:
    """Strengths, with the defaults of their unit."""
    return strength or ([-1.0, -0.5, 0.5, 1.0] if natural else [-20.0, -10.0, 10.0, 20.0])


def parameters(given: list[str] | None) -> dict[str, float]:
    """`["value=2.5"]` -> {"value": 2.5}. Raises `DataError`."""
    found: dict[str, float] = {}
    for one in given or []:
        name, _, value = one.partition("=")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise DataError(
                f"--parameter {one!r} cannot be read: give NAME=NUMBER, such as value=2.5."
            ) from error
    return found


def kept(run: Run, name: str, tags: list[str], at: str | None = None) -> dict[str, Any]:
    """Save what a run made (of several sites that at `at`) into the library; what was saved, for the summary."""
    from workbench.directions import DirectionSet, library
    from workbench.directions.carried import direction_of

    found = direction_of(run.result)
    assert found is not None
    if isinstance(found, DirectionSet):
        found = found[at] if at else found[0] if len(found) == 1 else found
    library().save(name, found, tags=tags)
    where = found.site if not isinstance(found, DirectionSet) else f"{len(found)} directions"
    return {"saved": f"{name!r} in the library ({where})"}
