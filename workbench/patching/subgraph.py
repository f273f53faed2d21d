"""Runs of the all-for-one subgraph: its masks, its overwritten stream, and whether the answer is still right.

Each run is a whole forward pass with edits (`model.edit`): the stream behind `wait` blocks, and the attention patterns
of all later blocks. So it holds on every architecture whose patterns can be edited, whatever its blocks are given.
See `all_for_one` for the definition and the source.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.errors import DataError, PromptError
from workbench.hooks.session import EditFunction
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, token_texts
from workbench.patching.cama import Sampler, cama, same_shape, streams_before
from workbench.patching.knockout import block_edges
from workbench.provenance import Provenance, provenance
from workbench.statistics import bootstrap_interval


def peeking(length: int, last_sees: int) -> Bool[Tensor, "query key"]:
    """True at the edges that peeking blocks: all but those to position 0, to oneself, and of the last query to the last
    `last_sees` keys (1: self-peeking; the length: the last query sees all)."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    sees = (query == length - 1) & (key >= length - last_sees)
    return (key >= 1) & (key < query) & ~sees


class Task:
    """Prompts, answers, and what every subgraph of them needs."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        answers: Sequence[str | int],
        waits: Sequence[int],
        reference: Sequence[Prompt] | None,
        sampler: Sampler | None,
        n_least: int,
        seed: int,
        tokens_per_call: int,
    ) -> None:
        self.model = model
        self.ids = same_shape(model, prompts)
        self.seed, self._tokens_per_call = seed, tokens_per_call
        if len(answers) != len(self.ids):
            raise PromptError(
                f"{len(answers)} answers were given for {len(self.ids)} prompts: give one for each."
            )
        self.wanted = torch.tensor([model.token_id(answer) for answer in answers])
        self.base_correct = self._run(self.ids, {}).argmax(-1).eq(self.wanted).numpy()
        self.answered = self.base_correct.nonzero()[0]
        if not len(self.answered):
            raise DataError(
                f"{model.name} answers none of the {len(self.ids)} prompts: there is nothing to keep."
            )
        later = [wait for wait in waits if wait > 0]
        self._means = {} if not later else cama(
            model, self.ids.tolist(), later, reference=reference, sampler=sampler, n_least=n_least, seed=seed,
            tokens_per_call=tokens_per_call,
        )  # fmt: skip
        first = int(self.ids[0, 0])
        bos = {getattr(model.tokenizer, "bos_token_id", None), getattr(model.config, "bos_token_id", None)}
        name = token_texts(model.tokenizer, [first])[0] if model.tokenizer is not None else str(first)
        source = "the sampler" if sampler else f"{len(self.ids if reference is None else reference)} prompts"
        self.attrs = {
            "first": f"BOS ({name!r})"
            if first in bos
            else f"{name!r} at position 0, in place of a BOS token",
            "means": f"over {source}" + ("" if reference is not None or sampler else " (the same)"),
            "n_least": n_least,
            "n_prompts": len(self.ids),
            "n_answered": len(self.answered),
        }

    def stream(self, wait: int) -> Tensor:
        """[prompt, position - 1, d_model] what is put in behind `wait` blocks, of all prompts."""
        if wait == 0:  # the embedding knows no context: it is its own mean
            return streams_before(self.model, self.ids, [0])[:, 1:, 0].float()
        return self._means[wait].stream(self.ids)

    def judged(
        self, stream: Tensor, wait: int, peek: int, allowed: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whether the subgraph is right, and the log-probability of the answer, for each answered prompt."""
        kept = torch.from_numpy(self.answered)
        length, last = self.ids.shape[1], self.model.n_layers
        looking = peeking(length, length if allowed is None else allowed)
        alone = peeking(length, 1)
        over = f"blocks.{wait}.hook_resid_pre" if wait < last else f"blocks.{last - 1}.hook_resid_post"
        edits: dict[str, EditFunction] = {
            f"blocks.{layer}.attn.hook_pattern": _blocking(looking if layer < wait + peek else alone)
            for layer in range(wait, last)
        }
        logits = self._run(self.ids[kept], edits, (over, stream[kept]))
        wanted = self.wanted[kept]
        log_p = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        return logits.argmax(-1).eq(wanted).numpy(), log_p.numpy()

    @torch.inference_mode()
    def _run(
        self, ids: Tensor, edits: dict[str, EditFunction], over: tuple[str, Tensor] | None = None
    ) -> Tensor:
        """[prompt, d_vocab] logits at the last position, float32 on the CPU."""
        size, found = max(1, self._tokens_per_call // ids.shape[1]), []
        for at in range(0, len(ids), size):
            more = {} if over is None else {over[0]: _overwriting(over[1][at : at + size])}
            with self.model.edit({**edits, **more}):
                out = self.model.hf(
                    input_ids=ids[at : at + size].to(self.model.device), use_cache=False, logits_to_keep=1
                )
            found.append(out.logits[:, -1].float().cpu())
        return torch.cat(found)

    def base_summary(self) -> dict[str, object]:
        low, high = bootstrap_interval(self.base_correct.astype(float), self.seed)
        return {
            "base_accuracy": round(float(self.base_correct.mean()), 4),
            "base_interval": [round(float(low), 4), round(float(high), 4)],
            "n_prompts": len(self.ids),
            "n_answered": len(self.answered),
        }

    def provenance(self, started: float) -> Provenance:
        seconds = {"all_for_one": time.perf_counter() - started}
        return provenance(self.model, tokens=self.ids.tolist(), seed=self.seed, seconds=seconds)


def _blocking(blocked: Tensor) -> EditFunction:
    return lambda pattern: block_edges(pattern, blocked)


def _overwriting(stream: Tensor) -> EditFunction:
    def edit(activation: Tensor) -> Tensor:
        activation[:, 1:] = stream.to(activation)
        return activation

    return edit


def check_sizes(
    model: LanguageModel, waits: Sequence[int], peeks: Sequence[int], allowed: int | None
) -> None:
    n = model.n_layers
    bad = [(w, p) for w in waits for p in peeks if w < 0 or p < 0 or w + p > n]
    if bad:
        raise DataError(
            f"wait={bad[0][0]}, peek={bad[0][1]} do not fit {model.name}: give both from 0, and together at most its "
            f"{n} blocks."
        )
    if allowed is not None and allowed < 1:
        raise DataError(
            f"allowed={allowed}: the last token sees at least itself, so give 1 or more, or None for all."
        )
