"""Steered generation, by transformers' own `generate` with the steering's hooks in place.

1. Prompts are padded on the left, the longest together, `rows_per_batch` at a time; where memory is full, half as many.
2. Hooks steer by absolute position, and noise depends on (seed, row, step) alone. So the tokens of a row are the same
   with and without KV cache, alone and in any batch (up to ties of logits that differ by rounding: with float32 weights
   none in our tests; half precision rounds more coarsely, and near-ties may then fall either way).
3. Decoding is what is asked for and nothing else: what a model's generation config asks for besides (penalties, tokens
   to suppress or to force, time limits, …) is off, but for its end-of-sequence tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import DataError, ModelError, PromptError
from workbench.model.generating import NOTHING_ELSE, ends_of
from workbench.model.language_model import LanguageModel
from workbench.model.quiet import quiet_transformers
from workbench.model.tokens import Prompt, TokenBatch, as_list, encode, from_ids
from workbench.progress import Progress, Silent
from workbench.steering.asked import plan_of
from workbench.steering.operations import Operation
from workbench.steering.plan import Plan, Steered, Steering
from workbench.steering.rules import Condition, Where
from workbench.steering.sampling import Sampling

if TYPE_CHECKING:
    from workbench.steering.schedule import Schedule

ROWS_PER_BATCH = 64
"""Rows that go up together by default: more make a CPU no faster, and one that has the memory can be asked for more."""


@dataclass(frozen=True)
class Generation:
    """What a model said, per prompt.

    Attributes:
        prompts: token ids of each prompt.
        tokens: token ids of each continuation, up to and without the end-of-sequence token.
        texts: the continuations as text; of a model without tokenizer, the token ids.
        ended: whether each ended by itself, with an end-of-sequence token, rather than at `max_new_tokens`.
        settings: what was asked, JSON-ready, for provenance.
        notes: what a reader should know, such as that memory was full and fewer rows went up together.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    ended: tuple[bool, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)
    notes: tuple[str, ...] = ()


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    direction: Steered | Steering | Plan | None = None,
    strength: float | Sequence[float] | None = None,
    *,
    max_new_tokens: int = 40,
    where: Where = "all",
    op: str | Operation = "add",
    schedule: Schedule | Sequence[float] | str | None = None,
    condition: Condition | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    row_seeds: Sequence[int] | None = None,
    use_cache: bool = True,
    stop_at_end: bool = True,
    rows_per_batch: int = ROWS_PER_BATCH,
    force: bool = False,
    progress: Progress | None = None,
) -> Generation:
    """Continue prompts while steering.

    Args:
        model: the language model.
        prompts: one or many; padded on the left inside, which never changes what comes out.
        direction: what to steer along: a direction, a `DirectionSet` (each at its site), a list with one direction per
            prompt, or a whole `Steering` or `Plan` (then leave strength, where, op, schedule and condition away). None
            generates unsteered.
        strength: one, or one per prompt; for `add` the norm of what is added. Negative pushes the other way. May be
            left away for `ablate`, `clamp` and `affine`, whose strength is a share: 1, the whole.
        max_new_tokens: length of the continuation.
        where, op, schedule, condition: as of `Steering`.
        temperature: 0 (default) is greedy; above 0 tokens are sampled.
        top_k, top_p: keep only the likeliest tokens while sampling.
        seed: of the sampling.
        row_seeds: a number for each prompt, its own index by default. Prompts with equal numbers draw equal noise, so
            that strengths can be compared on the same luck, and a row can be drawn again alone.
        use_cache: keep keys and values; the tokens are the same without, only slower.
        stop_at_end: a row ends at the end-of-sequence token; False never chooses that token, so that every row gets
            `max_new_tokens`.
        rows_per_batch: most rows that go up together; does not change what comes out.
        force: steer even if a direction was made with another model.
        progress: where to report, one item per token of each row; a cancel takes effect after the token.

    Raises:
        DataError: a direction that does not fit the model, a strength that is missing or not finite, numbers of
            strengths or seeds that do not match the prompts, an unknown operation, rule or schedule, a text that does
            not occur, how to steer without a direction.
        PositionError: a rule or schedule that steers none of the positions that the model reads.
        ModelError: the model's generation config asks for several texts a prompt without sampling.
        PromptError: a prompt that is empty, or too long for so many new tokens.
        Cancelled: `progress` was asked to stop; the hooks are gone.

    Example:
        >>> wb.steering.generate(model, "I think that", d, strength=8.0).texts
    """
    progress = progress or Silent()
    listed = as_list(prompts)
    max_new_tokens, rows_per_batch = (
        _count(max_new_tokens, "max_new_tokens"),
        _count(rows_per_batch, "rows_per_batch"),
    )
    ids = _encoded(model, listed, max_new_tokens)
    plan = plan_of(direction, strength, where=where, op=op, schedule=schedule, condition=condition)
    if plan is not None:
        plan.fits(model, n_rows=len(ids), force=force)
        plan.check_rules(model, ids, max_new_tokens)
    sampling = Sampling(temperature, top_k, top_p, seed)
    seeds = list(range(len(ids))) if row_seeds is None else _seeds(row_seeds)
    if len(seeds) != len(ids):
        raise DataError(f"{len(seeds)} row seeds were given for {len(ids)} prompts: give one for each.")
    _check_config(model)
    ends = ends_of(model)
    said: dict[int, tuple[list[int], bool]] = {}
    notes: list[str] = []
    items = _Items(progress, len(ids) * max_new_tokens)
    waiting = sorted(
        range(len(ids)), key=lambda i: -len(ids[i])
    )  # the longest first: memory is full early or never
    limit = rows_per_batch
    while waiting:
        some = waiting[:limit]
        batch = from_ids(model, [ids[i] for i in some], side="left", with_texts=False)
        chosen = None if plan is None else plan.for_rows(some)
        noise = sampling.processors([seeds[i] for i in some], batch.ids.shape[1], model.device)
        items.start(len(some))
        try:
            rows = _continue(model, batch, chosen, noise, items, max_new_tokens, use_cache, ends, stop_at_end)
        except (RuntimeError, MemoryError) as error:
            limit = _fewer(len(some), error)
            notes.append(f"Memory was full with {len(some)} rows; went on with {limit} at a time.")
            continue
        said |= {i: _until(row, ends) for i, row in zip(some, rows, strict=True)}
        items.finish(len(some) * max_new_tokens)
        waiting = waiting[len(some) :]
    tokens = tuple(tuple(said[i][0]) for i in range(len(ids)))
    settings = {
        "steering": None if plan is None else plan.settings(),
        **sampling.settings(),
        "row_seeds": seeds if sampling.temperature else None,
        "max_new_tokens": max_new_tokens,
        "stop_at_end": stop_at_end,
    }
    texts = tuple(spelled(model, row) for row in tokens)
    ended = tuple(said[i][1] for i in range(len(ids)))
    return Generation(tuple(tuple(row) for row in ids), tokens, texts, ended, settings, tuple(notes))


def _continue(
    model: LanguageModel,
    batch: TokenBatch,
    plan: Plan | None,
    noise: Any,
    items: _Items,
    max_new_tokens: int,
    use_cache: bool,
    ends: list[int],
    stop_at_end: bool,
) -> list[list[int]]:
    """The new tokens of each row of one batch, with what follows an end-of-sequence token."""
    pad = getattr(model.tokenizer, "pad_token_id", None)
    hooks = (
        model.edit({}) if plan is None else plan.on(model, batch, max_new_tokens=max_new_tokens, force=True)
    )
    with quiet_transformers(), hooks:
        out = model.hf.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=max_new_tokens,
            use_cache=use_cache,
            eos_token_id=ends or None,
            pad_token_id=pad if pad is not None else (ends or [0])[0],
            logits_processor=noise,
            stopping_criteria=[items.stopping(batch)],
            **{**NOTHING_ELSE, "min_new_tokens": None if stop_at_end else max_new_tokens},
        )
    return out[:, batch.ids.shape[1] :].tolist()


class _Items:
    """Progress in tokens, which also asks after each token whether to stop."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._finished = self._reported = self._rows = 0
        progress.stage("generate", total)

    def start(self, rows: int) -> None:
        self._rows = rows

    def finish(self, items: int) -> None:
        self._finished += items
        self._report(self._finished)

    def stopping(self, batch: TokenBatch) -> Any:
        """A stopping criterion that never stops by itself."""
        start, going_on = (
            batch.ids.shape[1],
            torch.zeros(len(batch), dtype=torch.bool, device=batch.ids.device),
        )

        def criterion(input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
            self._report(self._finished + (input_ids.shape[1] - start) * self._rows)
            return going_on

        return criterion

    def _report(self, done: int) -> None:
        new = max(0, done - self._reported)  # a batch that is run again in halves counts once
        self._reported += new
        self._progress.advance(new)


def _encoded(model: LanguageModel, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
    if not prompts:
        raise PromptError("No prompts were given: give at least one.")
    names = [f"Prompt {i}" if len(prompts) > 1 else "The prompt" for i in range(len(prompts))]
    ids = [list(encode(model, prompt, name=name)) for prompt, name in zip(prompts, names, strict=True)]
    limit = model.context_length
    for row, name in zip(ids, names, strict=True):
        if limit and len(row) + max_new_tokens - 1 > limit:  # the last new token is not read again
            raise PromptError(
                f"{name} has {len(row)} tokens; with {max_new_tokens} new ones it is longer than the {limit} that "
                f"{model.name} reads. Shorten it or ask for at most {max(0, limit - len(row) + 1)} new tokens."
            )
    return ids


def _check_config(model: LanguageModel) -> None:
    """Several texts a prompt are off here, but transformers looks at what the config says before it is told so."""
    config = getattr(model.hf, "generation_config", None)
    several, beams = (
        getattr(config, "num_return_sequences", None) or 1,
        getattr(config, "num_beams", None) or 1,
    )
    if several > 1 and not getattr(config, "do_sample", False) and several > beams:
        raise ModelError(
            f"The generation config of {model.name} asks for {several} texts a prompt without sampling, which "
            "transformers refuses: set model.hf.generation_config.num_return_sequences = None."
        )


def _until(row: list[int], ends: Sequence[int]) -> tuple[list[int], bool]:
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    return (row, False) if stop is None else (row[:stop], True)


def _fewer(rows: int, error: BaseException) -> int:
    """Half of the rows that did not fit; raises what was raised where it was something else, or there is one row."""
    from workbench.collection.batching import out_of_memory

    if rows == 1 or not out_of_memory(error):
        raise error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return rows // 2


def _seeds(given: Any) -> list[int]:
    try:
        return [operator.index(seed) for seed in given]
    except TypeError:
        raise DataError(f"row_seeds is {given!r}: give one whole number for each prompt.") from None


def spelled(model: LanguageModel, ids: Sequence[int]) -> str:
    """Token ids as text; of a model without tokenizer, as numbers."""
    return " ".join(map(str, ids)) if model.tokenizer is None else model.tokenizer.decode(ids)


def _count(given: Any, name: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise DataError(f"{name} is {given!r}: give a whole number, at least 1.")
    return given
