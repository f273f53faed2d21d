"""Patchscopes: let a model say in words what a stream of another run holds.

With a source run (prompt S, model M) and a target run (prompt T, model M*), for source block l and target block l*:

    h*_{l*}[i*] <- f(h_l[i])        h_l = blocks.l.hook_resid_post; f = the mapping, the identity by default

in the pass over the target prompt only; then M* continues T greedily. What was put in stays in the keys and values of
the blocks above l*, and the tokens that follow read it there. The target prompt says what is asked of the stream:
`ENTITY_DESCRIPTION` asks which thing it stands for.

Control: the same cells with the stream of another position of the source prompt, drawn for each source layer. (Later
positions may hold the same thing, through attention: see `control_position`.) The continuation of T without any patch
is given too: what that says, no patch has to have brought.

Patched into the last position after the last block, the next token's distribution is the logit lens of the stream.

Ghandeharioun et al. 2024, "Patchscopes" (2401.06102); used on the bridge of two-hop questions by Biran et al. 2024
(2406.12775). Decoding is greedy here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.errors import DataError, MetricError, ModelError, PromptError
from workbench.hooks.context import HookContext
from workbench.hooks.session import EditFunction
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, TokenBatch
from workbench.patching.back_patching import streams_at
from workbench.patching.cells import check_layers
from workbench.patching.replay import TOKENS_PER_CALL
from workbench.progress import Progress, Silent
from workbench.provenance import describe_model, provenance
from workbench.results import Result, array

ENTITY_DESCRIPTION = (
    "Kenya: Kenya is a country in East Africa, Marie Curie: Marie Curie was a physicist and chemist, "
    "Toyota: Toyota is a Japanese maker of cars, x"
)
"""A target prompt that asks which thing a stream stands for: described things, then a placeholder, position -1."""

Mapping = Callable[[Tensor], Tensor]
"""[d_model] of the source model -> [d_model] of the target model."""
Cell = tuple[int, Tensor] | None
"""Target block, and what is put in after it, [d_model]; None leaves the run as it is."""


def patchscope(
    model: LanguageModel,
    source: Prompt,
    target: Prompt,
    *,
    source_position: int,
    target_position: int,
    source_layers: Sequence[int] | int | None = None,
    target_layers: Sequence[int] | int | None = None,
    target_model: LanguageModel | None = None,
    mapping: Mapping | None = None,
    max_new_tokens: int = 10,
    n_tokens_top: int = 5,
    seed: int = 0,
    control: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Put a stream of one prompt into another prompt and read what the model goes on to say.

    Args:
        model: the model of the source prompt.
        source, target: one prompt each.
        source_position, target_position: token index in its prompt; negative counts from the end.
        source_layers, target_layers: blocks; all by default. Every combination is a cell.
        target_model: the model that continues; `model` by default. Another one may have another tokenizer.
        mapping: function of the stream, [d_model] -> [d_model] of the target model; the identity by default.
        max_new_tokens: length of the continuation (10, as in the papers); it ends early where the text does.
        n_tokens_top: how many of the most probable next tokens to keep.
        seed: of the control's positions.
        control: also run the cells with other positions' streams, which doubles the time.
        progress: where to report, one item per cell.

    Returns:
        A `Result` of kind `patchscope` with dims `source_layer`, `target_layer`, `step` and `k`: `text`; `token_id`
        (int32, -1 after the end) and `token` per step; `top_id`, `top_token`, `top_probability` of the next token; the
        source `position` per source layer. The same with `control_`, and (without layers) with `unpatched_` for the
        target prompt as it is.

    Raises:
        PromptError: not one prompt, a target too long to go on, or a source with no other position for the control.
        PositionError: a position outside its prompt, or several.
        DataError: layers that do not exist, or a mapping that gives another shape.
        ModelError: different widths without a mapping, or a target model that keeps no keys and values.

    Example:
        >>> seen = wb.patching.patchscope(
        ...     model, "The Eiffel Tower", wb.patching.ENTITY_DESCRIPTION, source_position=-1, target_position=-1
        ... )
        >>> wb.patching.decodes(seen, ["Paris", "Eiffel Tower"])["resolved"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    speaker = target_model or model
    if mapping is None and speaker.d_model != model.d_model:
        raise ModelError(
            f"{model.name} has streams of width {model.d_model} and {speaker.name} of {speaker.d_model}: give models "
            "of equal width, or a `mapping` from one to the other."
        )
    read, spoken = model.batch([source]), speaker.batch([target])
    i = read.resolve_one(0, source_position, "source_position")
    at = spoken.resolve_one(0, target_position, "target_position")
    _check_sizes(speaker, spoken, max_new_tokens, n_tokens_top)
    below = check_layers(source_layers, model.n_layers, model.name)
    above = check_layers(target_layers, speaker.n_layers, speaker.name)
    streams = streams_at(model, read, slice(None), below)
    positions = {"": np.full(len(below), i)}
    if control:
        positions["control_"] = _other_positions(model, read, i, len(below), seed)

    progress.stage("patchscope", len(positions) * len(below) * len(above))
    settled = (max_new_tokens, n_tokens_top)
    base = _continuations(speaker, spoken, at, [None], max_new_tokens, Silent())
    variables = _said(speaker, *base, "unpatched_", (), *settled)
    for kind, where in positions.items():
        vectors = [_mapped(streams[s, p], mapping, speaker) for s, p in enumerate(where.tolist())]
        cells: list[Cell] = [(layer, vector) for vector in vectors for layer in above]
        said = _continuations(speaker, spoken, at, cells, max_new_tokens, progress)
        variables |= _said(speaker, *said, kind, (len(below), len(above)), *settled)
    variables |= {f"{kind}position": array(("source_layer",), where) for kind, where in positions.items()}
    data = xr.Dataset(
        variables,
        coords={"source_layer": below, "target_layer": above},
        attrs={
            "site": "hook_resid_post",
            "source_token": read.tokens[0][i],
            "target_position": at,
            "target_token": spoken.tokens[0][at],
            "mapping": "identity" if mapping is None else getattr(mapping, "__name__", repr(mapping)),
            "n_cells": len(below) * len(above),
            "control": "the stream of another position of the source prompt" if control else "not run",
        },
    )
    ids, settings = [batch.ids[0].tolist() for batch in (read, spoken)], {"target": describe_model(speaker)}
    seconds = {"patchscope": time.perf_counter() - started}
    origin = provenance(model, tokens=ids, seed=seed, seconds=seconds, settings=settings)
    unpatched = str(data["unpatched_text"].values)
    changed = {f"{kind}texts_changed": int((data[f"{kind}text"] != unpatched).sum()) for kind in positions}
    summary = {"n_cells": len(below) * len(above), "unpatched_text": unpatched, **changed}
    return Result("patchscope", data, origin, summary)


def decodes(result: Result, aliases: str | Sequence[str], *, whole_words: bool = True) -> xr.Dataset:
    """In which cells of a patchscope the text names something.

    Args:
        result: of `patchscope`.
        aliases: what it may be called; capitals do not matter.
        whole_words: an alias counts only between other characters than letters and digits, so that "Rome" is not
            found in "Romeo". False for scripts without spaces.

    Returns:
        `decoded` [source_layer, target_layer] and `resolved` [source_layer] (by at least one target layer), bool; the
        same with `control_`, if it was run. `resolved` is the best of many trials: compare it to its control.
        Attributes: `n_cells`, `n_decoded`, `n_control_decoded`, and `unpatched`, whether the text names it unpatched.

    Raises:
        DataError: a result of another kind.
        MetricError: no alias, or an empty one.

    Example:
        >>> wb.patching.decodes(seen, ["United States", "USA"]).attrs
    """
    if result.kind != "patchscope":
        raise DataError(f"A {result.kind!r} has no decoded texts: give a result of `patchscope`.")
    names = [aliases] if isinstance(aliases, str) else list(aliases)
    if not names or not all(name.strip() for name in names):
        raise MetricError(f"Aliases {names!r} are not usable: give at least one, none of them empty.")
    either = "|".join(re.escape(name.strip()) for name in names)
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)" if whole_words else either, re.IGNORECASE)
    named = np.vectorize(lambda text: pattern.search(text) is not None, otypes=[bool])
    found = xr.Dataset(attrs={"aliases": names, "n_cells": result.data.attrs["n_cells"]})
    found.attrs["unpatched"] = bool(named(result.data["unpatched_text"]))
    for kind in ("", "control_"):
        if (texts := result.data.get(f"{kind}text")) is not None:
            found[f"{kind}decoded"] = texts.copy(data=named(texts)).assign_attrs(
                long_name="the text names it"
            )
            found[f"{kind}resolved"] = found[f"{kind}decoded"].any("target_layer")
            found.attrs[f"n_{kind}decoded"] = int(found[f"{kind}decoded"].sum())
    return found


def _check_sizes(model: LanguageModel, batch: TokenBatch, n_new: int, n_top: int) -> None:
    if n_new < 1:
        raise DataError(f"max_new_tokens is {n_new}: give at least 1.")
    if not 1 <= n_top <= model.vocab_size:
        raise DataError(f"n_tokens_top is {n_top}: give 1 to {model.vocab_size}, as {model.name} has.")
    length = batch.lengths[0]
    if model.context_length is not None and length + n_new > model.context_length:
        raise PromptError(
            f"The target prompt has {length} tokens and {n_new} are to follow, but {model.name} reads at most "
            f"{model.context_length}: shorten it, or ask for fewer new tokens."
        )


def _other_positions(model: LanguageModel, batch: TokenBatch, i: int, n: int, seed: int) -> np.ndarray:
    """[n] positions other than i; not that of a beginning-of-sequence token, which holds nothing of the prompt."""
    ids = batch.ids[0].tolist()
    begins = model.tokenizer is not None and ids[0] == model.tokenizer.bos_token_id
    others = [p for p in range(begins, len(ids)) if p != i]
    if not others:
        raise PromptError(
            "The control takes the stream of another position of the source prompt, which has none: give a longer "
            "source prompt, or control=False."
        )
    return np.random.default_rng(seed).choice(others, size=n)


def _mapped(vector: Tensor, mapping: Mapping | None, model: LanguageModel) -> Tensor:
    with torch.inference_mode():
        new = vector if mapping is None else mapping(vector.clone())
    if not isinstance(new, Tensor) or new.shape != (model.d_model,):
        given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise DataError(f"The mapping gave {given}: {model.name} takes a tensor of shape ({model.d_model},).")
    return new


@torch.inference_mode()
def _continuations(
    model: LanguageModel, batch: TokenBatch, at: int, cells: Sequence[Cell], n_new: int, progress: Progress
) -> tuple[list[list[int]], Tensor]:
    """Greedy continuations up to the end of the text, and [cell, d_vocab] logits of their first tokens."""
    ends, size = _end_tokens(model), max(1, TOKENS_PER_CALL // (batch.lengths[0] + n_new))
    tokens, logits = [], []  # `generate` of transformers would take penalties from the model's configuration
    for some in (cells[begin : begin + size] for begin in range(0, len(cells), size)):
        with model.edit(_edits(some, at)):
            out = model.hf(input_ids=batch.ids.expand(len(some), -1), use_cache=True, logits_to_keep=1)
        logits.append(out.logits[:, -1].float().cpu())
        rows = [[token] for token in logits[-1].argmax(-1).tolist()]
        while len(rows[0]) < n_new and not all(ends & set(row) for row in rows):
            if getattr(out, "past_key_values", None) is None:
                raise ModelError(f"{model.name} keeps no keys and values: ask for max_new_tokens=1.")
            last = torch.tensor([row[-1:] for row in rows], device=batch.ids.device)
            out = model.hf(input_ids=last, past_key_values=out.past_key_values, use_cache=True)
            for row, token in zip(rows, out.logits[:, -1].argmax(-1).tolist(), strict=True):
                row.append(token)
        stops = [next((k for k, token in enumerate(row) if token in ends), n_new) for row in rows]
        tokens += [row[:stop] for row, stop in zip(rows, stops, strict=True)]
        progress.advance(len(some))
    return tokens, torch.cat(logits)


def _edits(cells: Sequence[Cell], at: int) -> dict[str, EditFunction]:
    def put(activation: Tensor, context: HookContext) -> Tensor:
        for row, cell in enumerate(cells):
            if cell is not None and cell[0] == context.site.layer:
                activation[row, at] = cell[1].to(activation)
        return activation

    return {f"blocks.{cell[0]}.hook_resid_post": put for cell in cells if cell is not None}


def _end_tokens(model: LanguageModel) -> set[int]:
    """Tokens that end a text: the tokenizer's, and those of the model's generation settings."""
    given = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    ends = [*(given if isinstance(given, list) else [given]), getattr(model.tokenizer, "eos_token_id", None)]
    return {token for token in ends if token is not None}


def _said(
    model: LanguageModel, tokens: list[list[int]], logits: Tensor, kind: str, shape: tuple[int, ...], n_new: int, k: int
) -> dict[str, tuple]:  # fmt: skip
    """The variables of one kind of cells, whose layers have `shape`."""
    spell = (lambda ids: model.tokenizer.decode(ids)) if model.tokenizer is not None else str
    top = logits.softmax(-1).topk(k, dim=-1)
    step_ids = np.array([row + [-1] * (n_new - len(row)) for row in tokens], dtype=np.int32)
    top_ids = top.indices.numpy().astype(np.int32)
    spelt = {i: spell([i]) for i in {*step_ids.flat, *top_ids.flat} - {-1}} | {-1: ""}
    found = {
        "text": ((), np.array([spell(row) for row in tokens], dtype=str), "continuation"),
        "token_id": (("step",), step_ids, "token id"),
        "token": (("step",), np.array([[spelt[i] for i in row] for row in step_ids], dtype=str), "token"),
        "top_id": (("k",), top_ids, "id of a next token"),
        "top_token": (
            ("k",),
            np.array([[spelt[i] for i in row] for row in top_ids], dtype=str),
            "next token",
        ),
        "top_probability": (("k",), top.values.numpy(), "probability"),
    }
    layers = ("source_layer", "target_layer")[: len(shape)]
    shaped = lambda values: values.reshape((*shape, *values.shape[1:]))  # noqa: E731
    return {
        f"{kind}{name}": array((*layers, *dims), shaped(values), long_name=meaning)
        for name, (dims, values, meaning) in found.items()
    }
