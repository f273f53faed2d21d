"""Context-aware mean ablation (CAMA): the mean of a token's stream over everything that may stand before it.

    x~_t = E[ stream_t(x') | x'_t = x_t ]          over prompts x' of the task, stream before block `wait`

The token's own identity and its position stay; what it saw of earlier tokens is averaged out. It is *not* the mean over
all tokens, nor over all prompts at that position (that is mean ablation, and loses the token's identity too). At
position 1 nothing but the common first token stands before, so there the mean is the stream itself.

Source: Mamidanna et al. 2025 (2509.09650), "All for One", context-aware mean ablation. The paper estimates means within
one template (one operator); so does this, if `reference` or `sampler` gives prompts of that template only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import DataError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, at_least_one, token_texts
from workbench.patching.replay import TOKENS_PER_CALL

Sampler = Callable[[int, int, int, np.random.Generator], Sequence[Prompt]]
"""`(position, token id, n, rng)` -> n prompts of the task with that token at that position, all else drawn anew."""


@dataclass(frozen=True)
class ContextMeans:
    """Means of the stream before block `wait`, one for each (position, token id); positions from 1 on.

    Attributes:
        wait: number of blocks before it.
        means: (position, token id) -> [d_model] float32 on the CPU.
        counts: over how many prompts each was taken.
    """

    wait: int
    means: Mapping[tuple[int, int], Float[Tensor, " d_model"]]
    counts: Mapping[tuple[int, int], int]

    def stream(self, ids: Int[Tensor, "prompt position"]) -> Float[Tensor, "prompt later d_model"]:
        """The means of prompts' own tokens, from position 1 on."""
        rows = [[self.means[t, token] for t, token in enumerate(row) if t > 0] for row in ids.tolist()]
        return torch.stack([torch.stack(row) for row in rows])


def cama(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    waits: Sequence[int],
    *,
    reference: Sequence[Prompt] | None = None,
    sampler: Sampler | None = None,
    n_least: int = 100,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
) -> dict[int, ContextMeans]:
    """Context-aware means for every token that `prompts` have at every position but the first.

    Args:
        model: the language model.
        prompts: what the means are for; all of one length, with the same first token.
        waits: where: the stream behind this many blocks (resid_post of block wait-1), each 0 to `n_layers`. All are
            read in one pass.
        reference: prompts of the task; for token x at position t those are averaged that have x at t. By default the
            prompts themselves, so that a prompt is part of its own mean.
        sampler: draws `n_least` prompts for each (position, token) instead.
        n_least: fewest prompts behind a mean; 100 by default, below which the mean still carries its examples.
        seed: of the sampler's generator.
        tokens_per_call: tokens in one batch. Results do not depend on it.

    Returns:
        wait -> its means.

    Raises:
        DataError: fewer than `n_least` prompts for a token, which the message names; a sampler that gives other prompts
            than it was asked for; both a reference and a sampler; a wait the model does not have.
        PromptError: prompts of several lengths, or whose first tokens differ.

    Example:
        >>> means = cama(model, ["1 + 2 =", "3 + 4 ="], [2], reference=sums)[2]
        >>> means.stream(model.batch(["1 + 2 ="]).ids).shape
        torch.Size([1, 4, 128])
    """
    ids = same_shape(model, prompts)
    bad = [w for w in waits if not 0 <= w <= model.n_layers]
    if bad or not waits:
        raise DataError(f"waits {list(waits)} are not 0–{model.n_layers}, the blocks of {model.name}.")
    if reference is not None and sampler is not None:
        raise DataError("Both a reference and a sampler were given: the means come from one of them.")
    keys = {
        key: i
        for i, key in enumerate(sorted({(t, x) for row in ids.tolist() for t, x in enumerate(row) if t}))
    }
    sums = torch.zeros(len(keys), len(waits), model.d_model, dtype=torch.float64)
    counts = torch.zeros(len(keys), dtype=torch.long)
    if sampler is None:
        rows = ids if reference is None else same_shape(model, reference, like=ids)
        for chunk in rows.split(max(1, tokens_per_call // rows.shape[1])):
            streams = streams_before(model, chunk, waits)
            for t in range(1, rows.shape[1]):
                have = [keys.get((t, token), -1) for token in chunk[:, t].tolist()]
                at = torch.tensor([key for key in have if key >= 0], dtype=torch.long)
                used = torch.tensor([key >= 0 for key in have])
                sums.index_add_(0, at, streams[used, t])
                counts += torch.bincount(at, minlength=len(keys))
    else:
        rng = np.random.default_rng(seed)
        for (t, token), i in keys.items():
            rows = same_shape(model, sampler(t, token, n_least, rng), like=ids)
            if not bool((rows[:, t] == token).all()):
                raise DataError(f"The sampler gave prompts without {_called(model, token)} at position {t}.")
            for chunk in rows.split(max(1, tokens_per_call // rows.shape[1])):
                sums[i] += streams_before(model, chunk, waits)[:, t].sum(0)
            counts[i] = len(rows)
    scarce = {key: int(counts[i]) for key, i in keys.items() if counts[i] < n_least}
    if scarce:
        (t, token), n = min(scarce.items(), key=lambda item: item[1])
        raise DataError(
            f"Token {_called(model, token)} at position {t} has {n} examples, fewer than n_least={n_least} "
            f"({len(scarce)} of {len(keys)} tokens have too few). Give more reference prompts, a sampler, or a smaller "
            "n_least."
        )
    means = (sums / counts[:, None, None]).float()
    number = {key: int(counts[i]) for key, i in keys.items()}
    return {
        wait: ContextMeans(wait, {key: means[i, w] for key, i in keys.items()}, number)
        for w, wait in enumerate(waits)
    }


@torch.inference_mode()
def streams_before(
    model: LanguageModel, ids: Int[Tensor, "prompt position"], waits: Sequence[int]
) -> Float[Tensor, "prompt position wait d_model"]:
    """The stream behind `wait` blocks, float64 on the CPU."""
    last = model.n_layers
    sites = [
        f"blocks.{w}.hook_resid_pre" if w < last else f"blocks.{last - 1}.hook_resid_post" for w in waits
    ]
    with model.hooks(read=sorted(set(sites))) as session:
        model.hf(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
    return torch.stack([session[site].double().cpu() for site in sites], dim=2)


def same_shape(
    model: LanguageModel, prompts: Prompt | Sequence[Prompt], like: Tensor | None = None
) -> Int[Tensor, "prompt position"]:
    """Token ids of prompts of one length with one first token (those of `like`, if given), on the CPU.

    Raises:
        PromptError: another length or first token, or nothing behind it.
    """
    rows = [model.encode(prompt) for prompt in at_least_one(prompts)]
    expected = rows[0] if like is None else like[0].tolist()
    for i, row in enumerate(rows):
        if len(row) != len(expected) or len(row) < 2:
            raise PromptError(
                f"Prompt {i} has {len(row)} tokens, expected {max(2, len(expected))}: positions must correspond. Give "
                "prompts of one length (operands of one token each), of at least two tokens."
            )
        if row[0] != expected[0]:
            raise PromptError(
                f"Prompt {i} begins with {_called(model, row[0])}, another with {_called(model, expected[0])}: every "
                "token sees position 0, so it must say nothing. Put a BOS token, or one neutral token, first in each."
            )
    return torch.tensor(rows)


def _called(model: LanguageModel, token: int) -> str:
    return (
        f"{token} ({token_texts(model.tokenizer, [token])[0]!r})"
        if model.tokenizer is not None
        else str(token)
    )
