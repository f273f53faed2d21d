"""`TextSide`: what of a language model is needed to make token ids. It has no weights, so it travels lightly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextSide:
    """Stands in for a `LanguageModel` wherever only its tokenizer and sizes matter."""

    tokenizer: Any
    name: str
    vocab_size: int
    context_length: int | None

    @classmethod
    def of(cls, model: Any) -> TextSide:
        """The text side of a `LanguageModel`."""
        return cls(model.tokenizer, model.name, model.vocab_size, model.context_length)
