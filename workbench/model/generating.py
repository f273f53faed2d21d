"""What every generation with a model shares: where a text ends, what is off, and noise that no batch changes.

Sampling is the Gumbel-max trick: with independent standard Gumbel numbers G_i

    token = argmax_i ( score_i + G_i )        G_i = -log(-log u_i)

is distributed as softmax(score). u_i comes from a counter, not from a generator with a state:

    key  = mix(mix(mix(seed) + row) + step)             u_i = (top 52 bits of mix(key + (i + 1) φ) + 1/2) / 2⁵²

with mix and φ those of SplitMix64 (Steele, Lea and Flood 2014), all in 64-bit integers. So a draw depends on
(seed, number of the row, step, token) and on nothing else: a row draws the same numbers alone, in any batch, in halves
of a batch that did not fit into memory, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["NOTHING_ELSE", "GumbelNoise", "ends_of", "gumbel", "row_keys"]

NOTHING_ELSE: dict[str, Any] = {
    "num_beams": 1, "num_return_sequences": 1, "min_new_tokens": None, "do_sample": False,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "max_time": None, "stop_strings": None, "bad_words_ids": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "exponential_decay_length_penalty": None, "guidance_scale": None,
    "return_dict_in_generate": False, "penalty_alpha": None, "dola_layers": None,
    "watermarking_config": None, "token_healing": False, "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
}  # fmt: skip
"""Arguments to `hf.generate` that switch off what a model's generation config may ask for besides: one greedy sequence
a prompt, of the model's own logits. Where a caller sets one of these itself, it puts its own value over this one."""


def ends_of(model: Any) -> list[int]:
    """Token ids that end a text: the tokenizer's end-of-sequence token and those of the model's generation config.

    Instruct models end a turn with a token that only the generation config names.

    Args:
        model: a `LanguageModel`, with or without a tokenizer.

    Returns:
        Each id once, the tokenizer's first; empty where neither names any.

    Example:
        >>> ends_of(model)                                                # doctest: +SKIP
        [2, 107]
    """
    config = getattr(model.hf, "generation_config", None)
    known = [getattr(model.tokenizer, "eos_token_id", None), getattr(config, "eos_token_id", None)]
    flat = [t for one in known for t in (one if isinstance(one, list | tuple) else [one])]
    return list(dict.fromkeys(int(t) for t in flat if t is not None))


def row_keys(seed: int, rows: Sequence[int], device: torch.device | str = "cpu") -> Int[Tensor, " row"]:
    """The key of each row: [row] int64.

    Args:
        seed: of the whole run.
        rows: number of each row; rows of equal number draw equal noise.
        device: where the noise is to be drawn.
    """
    start = torch.tensor([_signed(seed % (1 << 64))])
    numbers = torch.tensor([_signed(row % (1 << 64)) for row in rows], dtype=torch.int64)
    return _mix(_mix(start) + numbers).to(device)


def gumbel(keys: Int[Tensor, " row"], step: int, n: int) -> Float[Tensor, "row n"]:
    """[row, n] float64 standard Gumbel numbers of one step.

    Args:
        keys: of the rows (`row_keys`).
        step: tokens generated before this one.
        n: tokens to choose from.
    """
    tokens = torch.arange(1, n + 1, device=keys.device) * _PHI
    bits = _shift(_mix(_mix(keys + step)[:, None] + tokens), 12)
    return bits.double().add_(0.5).mul_(2.0**-52).log_().neg_().log_().neg_()


class GumbelNoise:
    """A logits processor that makes transformers' greedy search sample; it goes last, after temperature and the like.

    Args:
        keys: of the rows (`row_keys`).
        start: width of the padded prompts, where step 0 is.
    """

    def __init__(self, keys: Int[Tensor, " row"], start: int) -> None:
        self._keys, self._start = keys, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[row, token] scores plus the noise of this step, in float64, so that ties do not occur."""
        step = input_ids.shape[1] - self._start
        return scores.double() + gumbel(self._keys, step, scores.shape[-1])


def _signed(x: int) -> int:
    """An unsigned 64-bit number as the int64 with the same bits."""
    return x - (1 << 64) if x >= 1 << 63 else x


_PHI = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix(z: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """SplitMix64's finaliser; shifts are logical, products wrap around."""
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)
