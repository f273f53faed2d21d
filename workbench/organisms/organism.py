"""What a model organism is: a task that is fully known, and how a small transformer is taught it.

An organism says which words there are, which architecture learns them, what a batch looks like, how the
outcome is measured on data the model has not seen, and which clean/corrupt pairs its task gives. Everything
random is a function of `(seed, purpose, number)`, so that batch 4,711 is the same whether a training ran
through or was interrupted before it.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from workbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from workbench.datasets.promptset import PromptSet

IGNORE = -100
"""Target of a position at which nothing is learnt."""

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Batch:
    """What one step of training sees."""

    ids: Tensor
    """[batch, position] int64 token ids."""
    targets: Tensor
    """[batch, position] int64: the token that should come next, `IGNORE` where nothing is learnt."""
    likely: Tensor | None = None
    """[batch, position, vocabulary] float32: a distribution to learn in place of one token."""


@dataclass(frozen=True)
class Plan:
    """How an organism is trained. The defaults suit most; each organism states what it changes and why."""

    steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: int = 100
    """Steps over which the learning rate rises from zero."""
    decay: Literal["cosine", "constant", "late"] = "cosine"
    """Cosine goes down to a tenth of the learning rate; late stays for three quarters of the steps and falls to a
    hundredth along a straight line."""
    cycles: int = 1
    """Cosine: how often the schedule is run through, each time from its warm-up. Every restart is a second wind."""
    cool_down: int = 0
    """How many of the steps, at the end, the rate falls to zero in, along a straight line from where the schedule ends.
    Takes away the jitter of a last step at a rate that is still high."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-8
    """AdamW's. A larger one keeps it from blowing up gradients that are almost zero into steps of full length."""
    clip_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """bfloat16 computes matrix products in it; weights, optimiser and loss stay float32."""
    evaluate_every: int = 500
    early_steps: int = 200
    """The loss of each of the first steps is kept; after them the mean between two evaluations."""

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        end = self.steps - self.cool_down
        if self.cool_down and step >= end:
            return self._scheduled(end - 1) * (self.steps - step) / (self.cool_down + 1)
        return self._scheduled(step)

    def _scheduled(self, step: int) -> float:
        end = self.steps - self.cool_down
        length = end // self.cycles
        step = step % length if self.cycles > 1 else step
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.learning_rate
        if self.decay == "late":
            left = (end - step) / (end / 4)
            return self.learning_rate * max(0.01, min(1.0, left))
        done = (step - self.warmup) / max(1, length - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + float(np.cos(np.pi * min(1.0, done)))))


@dataclass(frozen=True)
class Goal:
    """A figure an organism must reach on held-out data."""

    metric: str
    """Key of what `evaluate` returns."""
    at_least: float
    at_most: float = 1.0
    name: str = ""
    """Name in the benchmark; empty for `metric` and the organism's name joined."""


@dataclass(frozen=True)
class Known:
    """What is known about how an organism works, for its card."""

    statements: tuple[str, ...]
    sources: tuple[str, ...] = ()


class Organism(ABC):
    """One task and the model that is taught it."""

    name: ClassVar[str]
    """What a user types."""
    summary: ClassVar[str]
    """One line for a table."""
    data: ClassVar[str]
    """What the model reads and what it is asked, for the card."""
    plan: ClassVar[Plan]
    goals: ClassVar[tuple[Goal, ...]]
    known: ClassVar[Known]
    stored_as: ClassVar[torch.dtype] = torch.float32
    """Data type of the shipped weights."""
    symbols: ClassVar[Sequence[str]] = ()
    """Symbols that the tokenizer sets apart even where no space does, for instance `+` and `=`."""
    start: ClassVar[str | None] = None
    """A word that the tokenizer puts before every prompt."""
    snapshots: ClassVar[Sequence[int]] = ()
    """Steps whose weights are kept."""
    weight_statistics: ClassVar[bool] = False
    """Whether each evaluation also notes figures of the weights."""
    variant_of: ClassVar[str | None] = None
    """The organism this one is the comparison of, where there is one."""

    trained_with: int = 0
    """Seed of the training that is meant where the held-out part depends on it: at first the shipped model's; `train`
    sets it."""

    @abstractmethod
    def words(self) -> list[str]:
        """Every word of the vocabulary, in the order of its token id."""

    @abstractmethod
    def config(self) -> Any:
        """The Hugging Face config of the architecture."""

    @abstractmethod
    def batch(self, seed: int, step: int) -> Batch:
        """Training batch of a step: the same for the same seed and step."""

    @abstractmethod
    def evaluate(self, model: Any, *, full: bool = False) -> dict[str, float]:
        """Figures on held-out data. `full` takes all of it, otherwise a sample that is quick to run."""

    @abstractmethod
    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """`n` clean/corrupt prompt pairs with answers, spans and labels, or as many as the task has.

        Raises:
            DataError: another split than `train` and `held_out`, or a negative seed.
        """

    def build(self, seed: int) -> Any:
        """The model before training: random weights from `seed`."""
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(self.config(), dtype=torch.float32)

    def forward(self, model: Any, ids: Tensor, step: int | None = None) -> Tensor:
        """Logits [batch, position, vocabulary] in training. `step` is for organisms whose depth varies."""
        del step
        return model(input_ids=ids, use_cache=False).logits

    def ids(self, words: Sequence[str]) -> list[int]:
        """Token ids of words. Raises `DataError` for one that is not in the vocabulary."""
        table = self.table
        unknown = next((word for word in words if word not in table), None)
        if unknown is not None:
            raise DataError(
                f"{unknown!r} is no word of {self.name}.{did_you_mean(str(unknown), table)} It has "
                f"{len(table)}, from {next(iter(table))!r} to {next(reversed(table))!r}."
            )
        return [table[word] for word in words]

    @cached_property
    def table(self) -> dict[str, int]:
        """Word -> token id."""
        return {word: i for i, word in enumerate(self.words())}

    def stream(self, seed: int, purpose: str, number: int = 0) -> np.random.Generator:
        """The random numbers of one purpose: independent of all others, the same every time.

        Raises:
            DataError: a negative seed.
        """
        if seed < 0:
            raise DataError(f"seed is {seed}; a model organism takes whole numbers from 0.")
        return np.random.default_rng([seed, zlib.crc32(f"{self.name}/{purpose}".encode()), number])


def llama(
    vocabulary: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_mlp: int,
    context: int,
    **more: Any,
) -> Any:
    """A Llama config without special tokens: gated MLP, rotary positions, root-mean-square norms."""
    from transformers import LlamaConfig

    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        **ids | more,
    )


def gpt2(
    vocabulary: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_mlp: int,
    context: int,
    **more: Any,
) -> Any:
    """A GPT-2 config without special tokens and dropout: learned positions, layer norms, plain MLP."""
    from transformers import GPT2Config

    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=d_model,
        n_inner=d_mlp,
        n_layer=n_layers,
        n_head=n_heads,
        n_positions=context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        **ids | more,
    )


def is_held_out_split(split: Split) -> bool:
    """Whether a split is the held-out one. Raises `DataError` where it is neither that nor `train`."""
    if split not in get_args(Split):
        raise DataError(f"There is no split {split!r} of a model organism; expected 'train' or 'held_out'.")
    return split == "held_out"


def falls_to_held_out(content: bytes, one_in: int) -> bool:
    """Whether a problem is held out: one in so many is, by the checksum (CRC-32) of what tells it from others."""
    return zlib.crc32(content) % one_in == 0


def next_word_batch(rows: np.ndarray, learnt: np.ndarray) -> Batch:
    """A batch from whole rows of token ids [batch, length] and which of them are to be predicted (same shape)."""
    targets = np.where(learnt, rows, IGNORE)[:, 1:]
    return Batch(
        torch.from_numpy(np.ascontiguousarray(rows[:, :-1]).astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(targets).astype(np.int64)),
    )


@torch.no_grad()
def greedy(model: Any, prompts: np.ndarray, n_new: int, *, batch_size: int = 512) -> np.ndarray:
    """The most likely continuation of equal-length prompts, `[n, n_new]` token ids, with the model's KV cache."""
    if prompts.ndim != 2:
        raise DataError(f"greedy needs prompts of one length, [n, length], not shape {prompts.shape}.")
    device = next(model.parameters()).device
    out = np.empty((len(prompts), n_new), dtype=np.int64)
    for start in range(0, len(prompts), batch_size):
        ids = torch.from_numpy(prompts[start : start + batch_size].astype(np.int64)).to(device)
        cache: Any = None
        for i in range(n_new):
            reply = model(input_ids=ids, past_key_values=cache, use_cache=n_new > 1)
            cache = reply.past_key_values if n_new > 1 else None
            ids = reply.logits[:, -1].argmax(-1, keepdim=True)
            out[start : start + batch_size, i] = ids[:, 0].cpu().numpy()
    return out


@torch.no_grad()
def next_logits(model: Any, prompts: np.ndarray, *, batch_size: int = 1024) -> Tensor:
    """Logits at the last position of equal-length prompts, [n, vocabulary] float32."""
    device = next(model.parameters()).device
    parts = [
        model(
            input_ids=torch.from_numpy(prompts[i : i + batch_size].astype(np.int64)).to(device),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        for i in range(0, len(prompts), batch_size)
    ]
    return torch.cat(parts).float()
