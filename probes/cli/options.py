"""What the commands of `workbench probe` share: options, and how their texts are read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.errors import DataError

DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="A shipped set (`workbench data list`), or a file.")
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        help="Labels to tell apart, separated by commas [default: the set's two, or true and false]."
    ),
]
PositiveOption = Annotated[
    str | None, typer.Option(help="The positive label [default: the one that sorts last].")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(help="Keep records with FIELD=VALUE; several times (one field twice: either value)."),
]
GroupOption = Annotated[
    str | None,
    typer.Option(help="Field whose values stay together in a fold [default: the set's groups]."),
]
LimitOption = Annotated[int | None, typer.Option(help="At most so many prompts, drawn with the seed.")]
SitesOption = Annotated[
    list[str] | None,
    typer.Option(help="Site name or glob; several times [default: blocks.*.hook_resid_post]."),
]
SiteOption = Annotated[str, typer.Option(help="The site whose activations are read.")]
PositionOption = Annotated[int, typer.Option(help="Token position; negative counts from the end.")]
FoldsOption = Annotated[int | None, typer.Option(help="Folds of the cross-validation [default: 5].")]
PenaltyOption = Annotated[
    float | None, typer.Option(help="C, the inverse strength of the L2 penalty [default: 1].")
]
LINEAR = "logistic, ridge, mass_mean, mass_mean_whitened"


def conditions(where: list[str] | None) -> dict[str, Any]:
    """`["negated=false", "continent=Asia", "continent=Africa"]` -> {"negated": "false", "continent": [...]}.

    Values stay text; a spec finds the record's own (`false` is False there). Raises `DataError`.
    """
    found: dict[str, Any] = {}
    for condition in where or []:
        name, equals, value = condition.partition("=")
        if not (equals and name and value):
            raise DataError(f"--where {condition!r} cannot be read: give FIELD=VALUE, such as negated=false.")
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def no_effect(options: dict[str, Any], beside: str, why: str) -> None:
    """Refuse options that were given and that nothing would look at; `DataError` names the first."""
    given = [name for name, value in options.items() if value not in (None, [], ())]
    if given:
        raise DataError(f"{given[0]} has no effect with {beside}: {why}. Leave it out.")


def words(given: str | None) -> list[str] | None:
    """`a, b` -> ["a", "b"]; None for None."""
    return None if given is None else [word.strip() for word in given.split(",") if word.strip()]


def penalties(given: str | None) -> float | list[float] | None:
    """`0.1` -> 0.1; `0.01,1,100` -> a list; `path` -> the default path of `probes.sweep`. Raises `DataError`."""
    if given is None:
        return None
    if given == "path":
        from probes.sweep import PENALTIES

        return list(PENALTIES)
    try:
        found = [float(one) for one in words(given) or []]
    except ValueError:
        found = []
    if not found:
        raise DataError(f"--penalty {given!r} cannot be read: give a number, several with commas, or path.")
    return found[0] if len(found) == 1 else found


def rules(given: list[str] | None) -> dict[str, str] | None:
    """`["africa=continent=Africa", "negated"]` -> {"africa": "continent=Africa", "negated": "negated"}.

    Raises:
        DataError: an empty part, or one name twice.
    """
    found: dict[str, str] = {}
    for one in given or []:
        name, equals, rule = one.partition("=")
        rule = rule if equals else name
        if not name or not rule or rule.startswith("="):
            raise DataError(
                f"--label {one!r} cannot be read: give NAME=FIELD=VALUE (africa=continent=Africa), NAME=FIELD or "
                "FIELD."
            )
        if name in found:
            raise DataError(f"--label {name!r} is given twice: each needs a name of its own.")
        found[name] = rule
    return found or None
