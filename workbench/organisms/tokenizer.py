"""Word-level tokenizers: one token a word, words set apart by spaces, and by symbols where a task has them.

There is no unknown-word token: a word that the model never saw is an error when it is encoded, not a
silent `<unk>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.errors import DataError


def word_tokenizer(words: Sequence[str], *, symbols: Sequence[str] = (), start: str | None = None) -> Any:
    """A fast Hugging Face tokenizer whose token ids are the places of `words`.

    Args:
        words: the vocabulary; no word may hold a space or occur twice.
        symbols: set apart even where no space does, so that `12+34=` reads as `12 + 34 =`. A `-` is set apart
            only after a digit, so that `-5` stays one word.
        start: a word put before every prompt (the tokenizer's `bos_token`), or None.

    Raises:
        DataError: a word occurs twice or holds a space; `start` is no word.

    Example:
        >>> word_tokenizer(["1", "2", "+", "="], symbols="+=")("1+2=")["input_ids"]
        [0, 2, 1, 3]
    """
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    if len(set(words)) != len(words):
        twice = next(word for i, word in enumerate(words) if word in words[:i])
        raise DataError(f"The word {twice!r} occurs twice in the vocabulary.")
    spaced = [word for word in words if not word or any(c.isspace() for c in word)]
    if spaced:
        raise DataError(f"{spaced[0]!r} cannot be a word: it is empty or holds a space.")
    if start is not None and start not in words:
        raise DataError(f"The start word {start!r} is not in the vocabulary.")
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}))
    if symbols:
        apart = [
            normalizers.Replace(Regex(r"(?<=\d)\s*-"), " - ")
            if symbol == "-"
            else normalizers.Replace(symbol, f" {symbol} ")
            for symbol in symbols
        ]
        raw.normalizer = normalizers.Sequence(apart)
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if start is not None:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, words.index(start))]
        )
    named = {"bos_token": start} if start is not None else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, clean_up_tokenization_spaces=False, padding_side="right", **named
    )
    return tokenizer
