"""What the commands of `workbench patch` share: options, their shorthands, and the data set each begins with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import execute, make_spec
from workbench.errors import DataError

CleanOption = Annotated[str | None, typer.Option(help="Prompt the model answers right.")]
CorruptOption = Annotated[str | None, typer.Option(help="The same prompt with one thing changed.")]
AnswerOption = Annotated[
    str | None, typer.Option(help="Right answer (' Mary'); one token, but for log_probability.")
]
WrongOption = Annotated[str | None, typer.Option(help="Wrong answer, exactly one token (' John').")]
PairsOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="A set of pairs, or a file of them, instead of one pair [default: the model's own problems, or "
        "indirect-objects].",
    ),
]
PairLimitOption = Annotated[int | None, typer.Option("--limit", help="Pairs of the set to use [default: 8].")]
PairMetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="logit_difference (needs both answers), log_probability, probability, rank, accuracy (the right "
        "one), or kl (none) [default: logit_difference].",
    ),
]
GradientMetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="logit_difference (needs both answers), log_probability, probability (the right one), or kl (none) "
        "[default: logit_difference].",
    ),
]
DirectionOption = Annotated[
    str | None,
    typer.Option("--direction", help="denoising (clean into corrupt) or noising [default: denoising]."),
]
WrongSourceOption = Annotated[
    bool | None, typer.Option("--control/--no-control", help="Also wrong-source patches [default: control].")
]
PromptsOption = Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; several times.")]
AnswersOption = Annotated[
    list[str] | None,
    typer.Option("--answer", help="Right answer (' Mary'), for all prompts or once for each."),
]
WrongsOption = Annotated[
    list[str] | None, typer.Option("--wrong", help="Wrong answer, for all prompts or once for each.")
]
PromptSetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="The clean prompts of a set of pairs, or of a file of them, instead of prompts [default: the model's own "
        "problems, or indirect-objects].",
    ),
]
OnlySetOption = Annotated[
    str | None,
    typer.Option("--dataset", help="The clean prompts of a set of pairs, or of a file of them, instead."),
]
SplitOption = Annotated[str | None, typer.Option(help="Part of the set: train or test [default: all].")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", help="Only pairs of the set with this value: field=value; several times."),
]
RunMetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="logit_difference (needs both answers), log_probability, probability, rank or accuracy (the right one) "
        "[default: logit_difference].",
    ),
]
LayersOption = Annotated[str | None, typer.Option(help="Blocks, such as 0-5,8 [default: all].")]
ControlOption = Annotated[
    bool | None, typer.Option("--control/--no-control", help="Also run the control [default: control].")
]
ReferenceOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Prompt that means or other runs are taken from; several times [default: the prompts]."
    ),
]
ReferenceSetOption = Annotated[str | None, typer.Option(help="A data set of such prompts instead.")]
ReferenceSplitOption = Annotated[str | None, typer.Option(help="Its part: train or test [default: all].")]

INDIRECT_OBJECTS = "indirect-objects"


def ask(
    command: str,
    kind: str,
    *,
    model: str,
    device: str,
    dtype: str,
    seed: int,
    runs: Path | None,
    json: bool,
    **fields: Any,
) -> None:
    """Make the spec of a command and run it; options that are None take the spec's defaults."""
    loaded = {"name": model, "device": device, "dtype": dtype}
    spec = make_spec(kind, command=command, model=loaded, seed=seed, **fields)
    execute(spec, runs=runs, as_json=json)


def own_problems(model: str) -> str | None:
    """The data set of a model organism: the problems of its own task. None for other models."""
    from workbench.datasets import generated

    return model if model in generated() else None


def set_for(model: str, dataset: str | None, *given: object) -> str | None:
    """The data set asked for; where nothing else is given, the model's own problems or indirect objects."""
    if dataset is not None or any(one is not None for one in given):
        return dataset
    return own_problems(model) or INDIRECT_OBJECTS


def numbers(given: str | None, name: str) -> list[int] | None:
    """`0-3,8` -> [0, 1, 2, 3, 8]. Raises `DataError`."""
    if given is None:
        return None
    found: list[int] = []
    for piece in given.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:\s*-\s*(\d+))?\s*", piece)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise DataError(
                f"{name} {given!r} cannot be read: give numbers and ranges such as 0-5,8 (or -1, from the end)."
            )
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def each_numbers(given: Sequence[str] | None, name: str) -> list[list[int]] | None:
    """Several of these; None for none."""
    return [numbers(one, name) or [] for one in given] if given else None


def places(given: Sequence[str] | None) -> Any:
    """Rules for positions as a spec takes them: one as it is, several as a list; None for none."""
    if not given:
        return None
    return given[0] if len(given) == 1 else list(given)


def where(given: Sequence[str] | None) -> dict[str, Any] | None:
    """`["template=plus", "negated=false"]` -> {"template": "plus", "negated": False}. Raises `DataError`."""
    found: dict[str, Any] = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise DataError(f"--where {one!r} cannot be read: give field=value, for instance template=plus.")
        words = {"true": True, "false": False}
        found[name] = words.get(value, int(value) if re.fullmatch(r"-?\d+", value) else value)
    return found or None


def alignment(diff: bool, spans: Sequence[str] | None) -> Any:
    """`--align` and `--span name=clean=corrupt` as a sweep's spec takes them; None for neither. Raises `DataError`."""
    if diff and spans:
        raise DataError("--align and --span both say what corresponds: give one of them.")
    if diff:
        return "diff"
    found: dict[str, tuple[str, str]] = {}
    for one in spans or ():
        parts = one.split("=")
        if len(parts) != 3 or not all(parts):
            raise DataError(f"--span {one!r} cannot be read: give NAME=CLEAN TEXT=CORRUPT TEXT, each once.")
        found[parts[0]] = (parts[1], parts[2])
    return found or None
