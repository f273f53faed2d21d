"""What a prompt's input is compared with: baselines, and the prompts that go through together.

| baseline | stands at every position |
|---|---|
| `zero`, `mean` | that token embedding (the mean of the embedding's outputs over the vocabulary) |
| `pad`, a token id | that token |
| `random` | a random token of the vocabulary, special ones left out; several such prompts, over which is averaged |
| prompts | the token of another prompt of the same length |

Baselines change tokens and keep positions: *tokens* go through the model's own way to block 0, and a *vector* is put in
where the token embedding comes out. So position embeddings (GPT-2), scales (Gemma) and projections (OPT) before block 0
are the model's own, and what does not depend on the token is the same in prompt and baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import DataError, ModelError, PromptError
from workbench.hooks.tensors import replace_output
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, as_list
from workbench.patching.gradients import INPUT, Forward, precise
from workbench.patching.input_paths import Inputs
from workbench.patching.metrics import Metric, MetricFunction, continuation, function_of

VECTORS = ("zero", "mean")
_ROWS = 4096
"""Embedding rows that are read at once for their mean."""

Ids = list[int]
Given = str | int | Prompt | Sequence[Prompt]


@dataclass(frozen=True)
class Baselines:
    """What prompts are compared with.

    Attributes:
        name: for people.
        ids: for each prompt its baselines' token ids; None for a vector.
        vector: `zero` or `mean`; None for tokens.
        moved: for each prompt, at which positions prompt and baseline differ.
    """

    name: str
    ids: list[list[Ids]] | None
    vector: str | None
    moved: list[list[bool]]

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        given: Given,
        rows: Sequence[Ids],
        *,
        as_set: bool,
        n_random: int,
        keep_special: bool,
        seed: int,
    ) -> Baselines:
        """Look a baseline up.

        Args:
            model: the language model.
            given: see the module's text; a text that is no name is a prompt.
            rows: token ids of the prompts.
            as_set: prompts are a set for every prompt; else one for each.
            n_random: how many random prompts.
            keep_special: special tokens stay in the baseline.
            seed: of the random ones.

        Raises:
            DataError: one that the tokenizer does not have.
            PromptError: prompts of another length or number, or a baseline that changes nothing.
        """
        special = _special(model)
        kept = special if keep_special else set()
        if isinstance(given, str) and given in VECTORS:
            name, ids = f"{given} embedding", None
        else:
            name, ids = _tokens(model, given, rows, as_set, n_random, seed, special)
            ids = [
                [[a if a in kept else b for a, b in zip(row, one, strict=True)] for one in some]
                for row, some in zip(rows, ids, strict=True)
            ]
        moved = [
            [a not in kept and (ids is None or any(one[p] != a for one in ids[i])) for p, a in enumerate(row)]
            for i, row in enumerate(rows)
        ]
        for i, some in enumerate(moved):
            if not any(some):
                raise PromptError(
                    f"Prompt {i} and its baseline ({name}) are the same tokens, so there is nothing to attribute. Give "
                    "another baseline, or keep_special=False where the prompt has only special tokens."
                )
        return cls(name, ids, str(given) if ids is None else None, moved)


@dataclass(frozen=True)
class Group:
    """Prompts of one length, ready to run, and their numbers."""

    which: list[int]
    inputs: Inputs


def groups(
    model: LanguageModel,
    rows: Sequence[Ids],
    metrics: Sequence[Metric],
    baselines: Baselines,
    *,
    n_control: int,
    seed: int,
    tokens_per_backward: int,
) -> Iterator[Group]:
    """Prompts of one length (and of answers of one length) together.

    The first tokens of a longer answer are appended to prompt and baseline alike. Controls of a metric are the same
    function of logits whose vocabulary is permuted, each by its own seed, so that random tokens stand in the answer's
    place; whatever else is asked for, a prompt has the same ones.

    Raises:
        ModelError: a model that reads tokens elsewhere than through the stream into block 0.
    """
    tails = [continuation(metric, model) for metric in metrics]
    alike: dict[tuple[int, int], list[int]] = {}
    for i, (row, tail) in enumerate(zip(rows, tails, strict=True)):
        whole = model.encode([*row, *tail])  # too long for the model?
        alike.setdefault((len(whole), len(tail) + 1), []).append(i)
    vector = None if baselines.vector is None else embedding(model, baselines.vector)
    for (_, keep), which in alike.items():
        ids = torch.tensor([[*rows[i], *tails[i]] for i in which], device=model.device)
        moved = torch.tensor([[*baselines.moved[i], *[False] * len(tails[i])] for i in which])
        run = Forward(model, ids, [model.catalog[INPUT]], keep=keep)
        x = precise(run.values[INPUT])
        _check_input(model, ids[:1], x[:1], run.logits[:1], keep)
        if baselines.ids is None:
            others = precise(streams(model, ids, vector))[:, None]
        else:
            tokens = torch.tensor([[[*one, *tails[i]] for one in baselines.ids[i]] for i in which])
            others = precise(streams(model, tokens.flatten(0, 1))).unflatten(0, tokens.shape[:2])
        others = torch.where(moved[:, None, :, None].to(x.device), others, x[:, None])
        own = [function_of(metrics[i], model, logits) for i, logits in zip(which, run.logits, strict=True)]
        d_vocab = run.logits.shape[-1]
        orders = [np.random.default_rng([seed, 0, k]).permutation(d_vocab) for k in range(n_control)]
        controls = [[_permuted(f, torch.from_numpy(order)) for f in own] for order in orders]
        yield Group(which, Inputs(model, ids, x, others, [own, *controls], keep, tokens_per_backward))


@torch.inference_mode(False)
def streams(
    model: LanguageModel,
    ids: Int[Tensor, "row position"],
    vector: Float[Tensor, " d_embed"] | None = None,
) -> Float[Tensor, "row position d_model"]:
    """What enters block 0; with `vector` in place of every token's embedding."""
    with torch.no_grad(), _embedded_as(model, vector), model.hooks(read=[INPUT], stop=True) as session:
        model.hf(input_ids=ids.to(model.device), use_cache=False)
    return session[INPUT]


@torch.inference_mode(False)
def embedding(model: LanguageModel, vector: str) -> Float[Tensor, " d_embed"]:
    """The `zero` vector, or the `mean` of the token embedding's outputs (some scale their rows)."""
    module = model.hf.get_input_embeddings()
    with torch.no_grad():
        parts = torch.arange(model.vocab_size, device=model.device).split(_ROWS)
        total = torch.stack([module(part).double().sum(0) for part in parts]).sum(0)
    return torch.zeros_like(total) if vector == "zero" else total / model.vocab_size


@contextmanager
def _embedded_as(model: LanguageModel, vector: Tensor | None) -> Iterator[None]:
    if vector is None:
        yield
        return

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return replace_output(output, vector.to(output).expand_as(output))

    handle = model.hf.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _check_input(model: LanguageModel, ids: Tensor, x: Tensor, logits: Tensor, keep: int) -> None:
    """Other tokens under the same stream must change nothing."""
    run = Forward(model, (ids + 1) % model.vocab_size, [], keep=keep, inputs=x)
    if not torch.allclose(run.logits, logits, rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{model.name} reads its tokens not only through the stream into block 0: a baseline there would not take "
            "them away, so input attribution does not apply."
        )


def _special(model: LanguageModel) -> set[int]:
    return set(model.tokenizer.all_special_ids) if model.tokenizer is not None else set()


def _tokens(
    model: LanguageModel,
    given: Given,
    rows: Sequence[Ids],
    as_set: bool,
    n_random: int,
    seed: int,
    special: set[int],
) -> tuple[str, list[list[Ids]]]:
    """The name of a baseline of tokens, and for each prompt its token ids."""
    if isinstance(given, str) and given == "pad":
        token = model.tokenizer.pad_token_id if model.tokenizer is not None else None
        if token is None:
            raise DataError(f"{model.name} has no padding token: give a token id, 'mean' or a prompt.")
        return f"padding, token {token}", [[[token] * len(row)] for row in rows]
    if isinstance(given, Integral) and not isinstance(given, bool):
        token = model.token_id(int(given))
        return f"token {token}", [[[token] * len(row)] for row in rows]
    if isinstance(given, str) and given == "random":
        n_tokens = (
            min(model.vocab_size, len(model.tokenizer)) if model.tokenizer is not None else model.vocab_size
        )
        ordinary = np.array([i for i in range(n_tokens) if i not in special])
        drawn = [
            np.random.default_rng([seed, 1, i]).choice(ordinary, (n_random, len(row))).tolist()
            for i, row in enumerate(rows)
        ]
        return f"random tokens, {n_random} prompts of them", drawn
    others = [model.encode(prompt) for prompt in as_list(given)]  # type: ignore[arg-type]
    if not as_set and len(others) != len(rows):
        raise PromptError(f"{len(others)} baseline prompts for {len(rows)} prompts: give one for each.")
    each = [others for _ in rows] if as_set else [[other] for other in others]
    for i, (row, some) in enumerate(zip(rows, each, strict=True)):
        for other in some:
            if len(other) != len(row):
                raise PromptError(
                    f"Prompt {i} has {len(row)} tokens and its baseline {len(other)} "
                    f"({list(model.batch([other]).tokens[0])}): a baseline is a prompt of as many tokens, a token id, "
                    "'zero', 'mean', 'pad' or 'random'."
                )
    return f"{len(others)} reference prompts" if as_set else "another prompt of the same length", each


def _permuted(function: MetricFunction, order: Int[Tensor, " d_vocab"]) -> MetricFunction:
    return lambda logits: function(logits[..., order.to(logits.device)])
