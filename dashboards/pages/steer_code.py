"""A steering spec as a few lines of Python with the library's own functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.steering.specs.apply import SteerDirectionSpec


def python(spec: SteerDirectionSpec) -> str:
    """Lines that make the direction and do what the spec asks, without the dashboard.

    `sweep.texts[k][i]` are then the steered texts of strength k and prompt i; a dose-response is `result`.
    """
    model = "".join(
        f", {name}={value!r}"
        for name, value in (("dtype", spec.model.dtype), ("device", spec.model.device))
        if value != "auto"
    )
    doses = sorted({*spec.strengths, 0.0}) if spec.look_at == "texts" else list(spec.strengths)
    strengths = f"[direction.strength(s) for s in {doses!r}]" if spec.units == "natural" else f"{doses!r}"
    lines = [
        "import workbench as wb",
        "",
        f"model = wb.load_model({spec.model.name!r}{model})",
        *_direction(spec),
        f"prompts = {_listed(spec.prompts)}",
        f"strengths = {strengths}",
        "",
    ]
    force = ", force=True" if spec.force else ""
    if spec.look_at == "dose_response":
        return "\n".join(
            [
                *lines,
                "result = wb.steering.dose_response(",
                "    model, prompts, direction, strengths,",
                f"    wb.LogitDifference({spec.answer!r}, {spec.wrong!r}),",
                f"    n_random={spec.n_random}, where={_where(spec)},",
                f"    show_text={spec.max_new_tokens}, seed={spec.seed}{force},",
                ")",
                "result.plot().show()",
                "",
            ]
        )
    return "\n".join(
        [
            *lines,
            "sweep = wb.steering.sweep_strengths(",
            "    model, prompts, direction, strengths,",
            f"    op={_operation(spec)}, where={_where(spec)}, max_new_tokens={spec.max_new_tokens},",
            f"    temperature={spec.temperature!r}, seed={spec.seed}{force},",
            ")",
            "for strength, texts in zip(sweep.strengths, sweep.texts):",
            "    print(strength, *texts, sep='\\n  ')",
            "",
        ]
    )


def _direction(spec: SteerDirectionSpec) -> list[str]:
    if spec.direction:
        return [f"direction = wb.directions.library().load({spec.direction!r})"]
    return [
        "direction = wb.steering.mean_difference(",
        "    model,",
        f"    {_listed(spec.positive, 1)},",
        f"    {_listed(spec.negative, 1)},",
        f"    {spec.site!r},",
        f"    seed={spec.seed},",
        ")",
    ]


def _listed(texts: list[str], depth: int = 0) -> str:
    indent = "    " * depth
    return "[\n" + "".join(f"{indent}    {text!r},\n" for text in texts) + f"{indent}]"


def _operation(spec: SteerDirectionSpec) -> str:
    if not spec.parameters:
        return repr(spec.op)
    given = ", ".join(f"{name}={value!r}" for name, value in spec.parameters.items())
    return f"wb.steering.Operation({spec.op!r}, {given})"


def _where(spec: SteerDirectionSpec) -> str:
    if isinstance(spec.where, str):
        return repr(spec.where)
    ((key, value),) = spec.where.items()
    return f"wb.steering.From({key.removeprefix('from_') if key != 'from' else 'index'}={value!r})"
