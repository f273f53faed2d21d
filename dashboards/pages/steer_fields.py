"""The form of the Steer page as data: inputs -> spec -> inputs. What it looks like is in `steer_form`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dash import no_update

from dashboards.components import forms
from dashboards.pages.steer_names import NORMS
from workbench.errors import DataError, PromptError
from workbench.specs import Spec

PAGE, KIND = "steer", "steer_direction"
FORM = ["prompts", "source", "direction", "force", "positive", "negative", "site", "layer"]
FORM += [
    "strengths",
    "units",
    "op",
    "value",
    "offset",
    "where",
    "start",
    "tokens",
    "decoding",
    "temperature",
    "seed",
]
FORM += ["answer", "wrong", "random", "model", "dtype"]
"""Inputs of the form, in the order of `fields`."""
CHECKED = ("force",)
TRAY, MADE = "tray", "made"
MOST_STRENGTHS = 41

SITES = {
    "resid_post": "resid_post: stream after block",
    "resid_pre": "resid_pre: stream before block",
    "resid_mid": "resid_mid: stream before MLP",
    "attn_out": "attn_out: attention output",
    "mlp_out": "mlp_out: MLP output",
}
PARAMETERS = {
    "clamp": {"value": "value"},
    "affine": {"value": "a", "offset": "b"},
    "in_context": {"value": "similarity"},
}
"""Operation -> input of the form -> the parameter it holds."""
_SITE = re.compile(r"blocks\.(\d+)\.hook_(\w+)")
_RANGE = re.compile(r"(?P<a>[-+.\deE]+):(?P<b>[-+.\deE]+):(?P<step>[-+.\deE]+)")


def fields(
    look_at: str, prompts: str | None, source: str, direction: str | None, force: bool, positive: str | None,
    negative: str | None, site: str, layer: int | str, strengths: str | None, units: str, op: str,
    value: float | str | None, offset: float | str | None, where: str, start: str | None, tokens: int | str | None,
    decoding: str, temperature: float | str | None, seed: int | str | None, answer: str | None, wrong: str | None,
    n_random: int | str | None, model: str | None, dtype: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The spec of the form, as plain data.

    Raises:
        PromptError: no prompt. DataError: no direction chosen, an empty set of prompts, strengths that are no numbers.
    """
    asked: dict[str, Any] = {
        "kind": KIND,
        "model": forms.model_fields(model, dtype),
        "seed": seed,
        "look_at": look_at,
        "prompts": lines(prompts),
        "strengths": parse_strengths(strengths),
        "units": units if op in NORMS else "activation",
        "op": op,
        "parameters": {p: value if box == "value" else offset for box, p in PARAMETERS.get(op, {}).items()},
        "where": rule(where, start),
        "max_new_tokens": tokens,
        "temperature": temperature if decoding == "sampled" and look_at == "texts" else 0.0,
    }
    if not asked["prompts"]:
        raise PromptError("There is no prompt: give at least one, one per line, for the model to continue.")
    if look_at == "dose_response":
        asked |= {"answer": answer or "", "wrong": wrong or "", "n_random": n_random}
    if source == TRAY:
        if not direction:
            raise DataError("No direction is chosen: choose one of the tray, or make one here from prompts.")
        return {**asked, "direction": direction, "force": bool(force)}
    sets = {"positive": lines(positive), "negative": lines(negative)}
    for name, found in sets.items():
        if not found:
            raise DataError(
                f"The set of {name} prompts is empty: a mean difference needs at least one of each."
            )
    return {**asked, **sets, "site": f"blocks.{layer}.hook_{site}"}


def form_values(spec: Spec) -> list[Any]:
    """The form that asks for a spec; fields of the source that is not used keep what they hold."""
    asked = spec.to_dict()
    in_lines = all("\n" not in p for p in [*asked["prompts"], *asked["positive"], *asked["negative"]])
    source = TRAY if asked["direction"] else MADE
    site = _SITE.fullmatch(asked["site"])
    made = ["\n".join(asked[n]) for n in ("positive", "negative")] if source == MADE else [no_update] * 2
    at = [site[2], int(site[1])] if site and site[2] in SITES else [no_update] * 2
    boxes = {box: asked["parameters"].get(p) for box, p in PARAMETERS.get(asked["op"], {}).items()}
    held = [boxes.get(box, no_update) for box in ("value", "offset")]
    where, start = asked["where"], no_update
    if isinstance(where, dict):
        ((where, start),) = where.items()
    sampled = asked["temperature"] > 0
    dose = [
        asked[n] if asked["look_at"] == "dose_response" else no_update
        for n in ("answer", "wrong", "n_random")
    ]
    return [
        "\n".join(asked["prompts"]) if in_lines else no_update, source, asked["direction"] or no_update, asked["force"],
        *(made if in_lines else [no_update] * 2), *at, ", ".join(f"{s:.12g}" for s in asked["strengths"]),
        asked["units"], asked["op"], *held, where, start if start is no_update else str(start), asked["max_new_tokens"],
        "sampled" if sampled else "greedy", asked["temperature"] if sampled else no_update, asked["seed"], *dose,
        spec.model.name, spec.model.dtype,
    ]  # fmt: skip


def lines(text: str | None) -> list[str]:
    """The lines of a text area that are not empty, as they were typed."""
    return [line for line in (text or "").splitlines() if line.strip()]


def parse_strengths(text: str | None) -> list[float]:
    """`-8, -4, 4, 8` or `-8:8:4` (both ends included), also mixed -> the numbers, each once, in order.

    Raises:
        DataError: nothing, what is no finite number, a range that goes nowhere, too many.

    Example:
        >>> parse_strengths("-8:8:8, 12")
        [-8.0, 0.0, 8.0, 12.0]
    """
    found: list[float] = []
    for part in re.split(r"[,;\s]+", (text or "").replace("−", "-").strip()):
        if not part:
            continue
        try:
            span = _RANGE.fullmatch(part)
            found += _steps(*(float(span[n]) for n in ("a", "b", "step"))) if span else [float(part)]
        except ValueError as error:
            raise DataError(
                f"{part!r} is not a strength: give numbers such as -8, -4, 4, 8 or a range start:end:step such as "
                "-8:8:4."
            ) from error
    if not found:
        raise DataError("No strengths are given: give numbers such as -8, -4, 4, 8.")
    if any(abs(s) == float("inf") or s != s for s in found):
        raise DataError(f"Strengths {text!r} are not all finite: give numbers such as -8, -4, 4, 8.")
    each = list(dict.fromkeys(found))
    if len(each) > MOST_STRENGTHS:
        raise DataError(f"{len(each)} strengths are too many for one table: give at most {MOST_STRENGTHS}.")
    return each


def _steps(start: float, end: float, step: float) -> list[float]:
    n = (end - start) / step if step else float("nan")
    if not 0 <= n < 10_000:
        raise ValueError("a range that does not get there")
    return [round(start + i * step, 12) for i in range(int(n + 1e-9) + 1)]


def rule(where: str, start: str | None) -> str | dict[str, Any]:
    """The position rule as a spec holds it."""
    if where == "from_text":
        if not start:
            raise DataError("Positions from a text on need that text: type it, as it stands in the prompt.")
        return {"from_text": start}
    if where != "from":
        return where
    try:
        return {"from": int((start or "").replace("−", "-"))}
    except ValueError as error:
        raise DataError(
            f"{start!r} is not a position: give a whole number, negative from the prompt's end."
        ) from error


def n_layers(model: str | None) -> int | None:
    """Layers of a model that has been fetched, from its configuration file; None where that is not at hand."""
    from workbench.model import aliases
    from workbench.model.cache import model_folder

    alias = aliases.known().get(model or "")
    file = Path(model_folder(alias) if alias else model or ".") / "config.json"
    if not file.is_file():
        return None
    held = json.loads(file.read_text(encoding="utf-8"))
    return next((int(held[k]) for k in ("num_hidden_layers", "n_layer") if k in held), None)
