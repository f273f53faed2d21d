"""What a source gives and what the tokenizer makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One prompt or text of a source. Exactly one of `text`, `messages` and `ids` is given."""

    id: str
    text: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    """A chat: `{"role": ..., "content": ...}`."""
    ids: tuple[int, ...] | None = None
    answer: str | None = None
    """A continuation that is read along with the text (its tokens are the span `answer`)."""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Named `[start, end)` stretches of characters of `text`."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """All other fields, kept with the prompt in the store. Plain JSON values."""


@dataclass(frozen=True)
class Context:
    """Token ids that go through the model as one prompt."""

    id: str
    ids: tuple[int, ...]
    spans: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Name -> the positions of its tokens. A token belongs to a span when their characters overlap."""
    roles: Sequence[str] | None = None
    """[position] role of the chat message each token belongs to (`""` for the template's own), or None."""
    texts: Sequence[str] | None = None
    """[position] text of each token on its own, where a rule needs it."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    special: tuple[int, ...] = ()
    """Positions of special tokens (BOS, EOS, those of a chat template)."""
    text: str | None = None
    """What the tokens spell together, where a rule needs it."""
    offsets: Sequence[tuple[int, int]] | None = None
    """[position] the `[start, end)` characters of `text` each token stands for; `(0, 0)` where it has none."""
    number: int = 0
    """Place among all contexts of a run, from 0."""
