"""What the commands of `workbench steer` share."""

from __future__ import annotations

import re
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
    typer.Option(
        help="Strength; several times [default: -20 -10 10 20; natural: -1 -0.5 0.5 1; ablate, clamp, affine: 1; "
        "in_context: -0.2 -0.1 0.1 0.2]."
    ),
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
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Write over what the library has under the name of --save.")
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
    if re.fullmatch(r"-?\d+", value):
        return {"from": int(value)}
    quoted = re.fullmatch(
        r"(['\"])(.+)\1", value, re.DOTALL
    )  # quotes that the shell left: from="'3'" is the text 3
    return {"from_text": quoted[2] if quoted else value}


def doses(strength: list[float] | None, natural: bool, op: str = "add") -> list[float]:
    """Strengths, with the defaults of their unit: norms, shares of the activation's norm, or the whole way."""
    if strength:
        return strength
    if natural:
        return [-1.0, -0.5, 0.5, 1.0]
    from workbench.steering.operations import OPERATIONS

    full = OPERATIONS[op].full if op in OPERATIONS else None
    if full is not None:
        return [full]
    return [-0.2, -0.1, 0.1, 0.2] if op == "in_context" else [-20.0, -10.0, 10.0, 20.0]


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


def check_name(name: str | None, replace: bool) -> None:
    """Before any work: refuse a name that the library cannot take, and one it has where nothing is replaced."""
    if name is None:
        if replace:
            raise DataError("--replace is about what --save NAME writes: give both.")
        return
    from workbench.directions import library
    from workbench.directions.library import checked_name

    name, mine = checked_name(name), library()
    taken = next((n for n in mine.names() if n.casefold() == name.casefold()), None)
    if taken is not None and (taken != name or not replace):
        raise DataError(
            f"The library has a direction {taken!r} already: choose another name, or replace it (--replace)."
            if taken == name or name in mine
            else f"The library has {taken!r}, which differs from {name!r} in case only: choose another name."
        )


def kept(
    run: Run, name: str, tags: list[str], at: str | None = None, *, replace: bool = False
) -> dict[str, Any]:
    """Save what a run made (of several sites that at `at`) into the library; what was saved, for the summary."""
    from workbench.directions import DirectionSet, library
    from workbench.directions.carried import direction_of

    found = direction_of(run.result)
    assert found is not None
    if isinstance(found, DirectionSet):
        found = found[at] if at else found[0] if len(found) == 1 else found
    library().save(name, found, tags=tags, replace=replace)
    where = found.site if not isinstance(found, DirectionSet) else f"{len(found)} directions"
    return {"saved": f"{name!r} in the library ({where})"}
