"""Steered generation, by transformers' own `generate` with one edit in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.directions import Direction
from workbench.model.language_model import LanguageModel
from workbench.model.quiet import quiet_transformers
from workbench.model.tokens import Prompt, as_list
from workbench.steering.intervention import Where, add_direction


@dataclass(frozen=True)
class Generation:
    """What a model said, per prompt.

    Attributes:
        prompts: token ids of each prompt.
        tokens: token ids of each continuation, up to and without the end-of-sequence token.
        texts: the continuations as text.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    direction: Direction | Sequence[Direction] | None = None,
    strength: float | Sequence[float] = 0.0,
    *,
    max_new_tokens: int = 40,
    where: Where = "all",
    temperature: float = 0.0,
    seed: int = 0,
    use_cache: bool = True,
    force: bool = False,
) -> Generation:
    """Continue prompts, adding `strength` times a direction to the stream.

    Args:
        model: the language model.
        prompts: one or many; padded on the left inside, which never changes what comes out.
        direction: a direction at one site (or one per prompt, all at that site); None generates unsteered.
        strength: norm of what is added; one, or one per prompt. Negative pushes the other way.
        max_new_tokens: length of the continuation.
        where: `all` (default), `prompt`, `generated` or `last`.
        temperature: 0 (default) is greedy.
        seed: of the sampling, if `temperature` is above 0.
        use_cache: keep keys and values; the tokens are the same without, only slower.
        force: steer even if the direction was made with another model.

    Raises:
        DataError: a direction of another width, site or model; a strength that is not finite.

    Example:
        >>> wb.steering.generate(model, "I think that", d, strength=8.0).texts
    """
    batch = model.batch(as_list(prompts), side="left")
    edits = {}
    if direction is not None:
        directions = [direction] if isinstance(direction, Direction) else list(direction)
        for one in directions:
            one.fits(model, force=force)
        edit = add_direction(direction, strength, where=where, prompt_lengths=batch.lengths)
        edits = {directions[0].site: edit}
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    end = model.tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]), quiet_transformers(), model.edit(edits):
        torch.manual_seed(seed)
        out = model.hf.generate(  # type: ignore[operator]
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=max_new_tokens,
            use_cache=use_cache,
            pad_token_id=model.tokenizer.pad_token_id if model.tokenizer.pad_token_id is not None else end,
            **sampling,
        )
    continued = [_until(row, end) for row in out[:, batch.ids.shape[1] :].tolist()]
    asked = [batch.ids[i, batch.columns(i, range(n))].tolist() for i, n in enumerate(batch.lengths)]
    return Generation(
        tuple(tuple(row) for row in asked),
        tuple(tuple(row) for row in continued),
        tuple(model.tokenizer.decode(row) for row in continued),
    )


def _until(row: list[int], end: int | None) -> list[int]:
    return row[: row.index(end)] if end in row else row
