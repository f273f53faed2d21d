"""Prompts -> token ids, a padded batch, and positions counted in the unpadded prompt.

A prompt is a string, a list of chat messages (`{"role": ..., "content": ...}`) or token ids.
Strings are tokenised as the model's own tokenizer does it; a beginning-of-sequence token that the text or
the chat template already carries is never added a second time.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.errors import PositionError, PromptError, did_you_mean

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel

Prompt = str | Sequence[int] | Sequence[dict[str, str]] | Tensor
Positions = int | Sequence[int] | Literal["all"]


@dataclass(frozen=True)
class TokenBatch:
    """Prompts as one padded batch.

    Attributes:
        ids: [batch, position] int64, padded.
        mask: [batch, position] int64, 1 at real tokens.
        lengths: number of real tokens of each prompt.
        side: which side the padding is on.
        tokens: the text of each real token, per prompt.
    """

    ids: Tensor
    mask: Tensor
    lengths: tuple[int, ...]
    side: Literal["left", "right"]
    tokens: tuple[tuple[str, ...], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def padded(self) -> bool:
        """Whether any row carries padding."""
        return len(set(self.lengths)) > 1

    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with. Position ids count real tokens, so padding cannot shift them."""
        if not self.padded:
            return {"input_ids": self.ids}
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions}

    def columns(self, row: int, positions: Sequence[int]) -> list[int]:
        """Columns of the padded batch at which the given absolute positions of prompt `row` stand."""
        offset = self.ids.shape[1] - self.lengths[row] if self.side == "left" else 0
        return [offset + p for p in positions]

    def resolve(self, row: int, positions: Positions) -> list[int]:
        """Absolute positions in prompt `row` (negative ones count from its end).

        Raises:
            PositionError: outside the prompt; the message lists its tokens.
        """
        return resolve_positions(positions, self.lengths[row], self.tokens[row])

    def resolve_one(self, row: int, position: int | Sequence[int], name: str = "The position") -> int:
        """The one absolute position that was asked for in prompt `row` (an index, or a list of one).

        Raises:
            PositionError: outside the prompt, or several.
        """
        found = self.resolve(row, position)
        if len(found) != 1:
            raise PositionError(
                f"{name} is {position!r}, which is {len(found)} positions: give exactly one index of the prompt."
            )
        return found[0]


def resolve_positions(positions: Positions, length: int, tokens: Sequence[str] = ()) -> list[int]:
    """Absolute positions in a prompt of `length` tokens. Raises `PositionError` for one that is outside."""
    if isinstance(positions, str):
        if positions != "all":
            raise PositionError(f"Positions {positions!r} are not known: give 'all', an index, or a list.")
        return list(range(length))
    given: Any = positions
    many = isinstance(given, Iterable) and getattr(given, "ndim", 1) > 0
    wanted = [_index(p) for p in (given if many else [given])]
    if not wanted:
        raise PositionError("No positions were asked for: give 'all', an index such as -1, or a list.")
    for position in wanted:
        if not -length <= position < length:
            shown = " ".join(f"{i}:{t!r}" for i, t in enumerate(tokens)) if tokens else ""
            raise PositionError(
                f"Position {position} is outside the prompt of {length} tokens (0 to {length - 1}, "
                f"or -1 to {-length} from its end).{' Tokens: ' + shown if shown else ''}"
            )
    return [p % length for p in wanted]


def _index(position: Any) -> int:
    try:
        if not isinstance(position, bool):
            return operator.index(position)
    except TypeError:
        pass
    raise PositionError(
        f"Position {position!r} is not a whole number: give an index of the prompt, such as -1."
    )


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several -> a list of prompts; of a tensor [prompt, token] each row.

    Raises:
        PromptError: neither (a number, a single message, a tokenizer's dictionary).
    """
    if isinstance(prompts, Tensor):
        return list(prompts) if prompts.ndim == 2 else [prompts]
    if isinstance(prompts, str):
        return [prompts]
    given: Any = prompts
    if isinstance(given, (Mapping, bytes)) or not isinstance(given, Iterable):
        raise PromptError(f"Prompts were given as {_kind(given)}. Give {_PROMPT}, or several of these.")
    items = list(given)
    if items and (isinstance(items[0], (Integral, dict)) or _is_scalar(items[0])):
        return [items]  # one prompt: token ids, or the messages of a chat
    return items


_PROMPT = "a text, a list of token ids, or a list of messages with 'role' and 'content'"


def _kind(given: Any) -> str:
    if isinstance(given, Mapping) and "role" in given:
        return "a single message, not a list of messages"
    if isinstance(given, Mapping) and "input_ids" in given:
        return f"what a tokenizer returns ({type(given).__name__}), of which only 'input_ids' are token ids"
    return type(given).__name__


def _is_scalar(item: Any) -> bool:
    """One number in a tensor of its own, as `list(ids)` of a tensor gives them."""
    return isinstance(item, (Tensor, np.ndarray)) and item.ndim == 0


def at_least_one(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several -> a list of prompts. Raises `PromptError` where there are none."""
    listed = as_list(prompts)
    if not listed:
        raise PromptError("No prompts were given: give at least one.")
    return listed


def encode(model: LanguageModel, prompt: Prompt, *, name: str = "The prompt") -> list[int]:
    """Token ids of one prompt.

    Raises:
        PromptError: empty, longer than the model's context, or of no known kind.
    """
    tokenizer = model.tokenizer
    if isinstance(prompt, (Tensor, np.ndarray)):
        if prompt.ndim > 1 and prompt.shape[0] != 1:
            raise PromptError(
                f"{name} is an array of shape {tuple(prompt.shape)}: one prompt is [token], or [1, token]."
            )
        prompt = prompt.reshape(-1).tolist()
    if isinstance(prompt, (list, tuple)) and prompt and _is_scalar(prompt[0]):
        prompt = [item.item() if _is_scalar(item) else item for item in prompt]  # type: ignore[union-attr]
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError(f"{name} is empty: give at least one token of text.")
        if tokenizer is None:
            raise PromptError(f"{name} is text, but {model.name} has no tokenizer: give token ids.")
        if unknown := unknown_words(tokenizer, prompt):
            raise PromptError(
                f"{name} has the word {unknown[0]!r}, which {model.name} does not know."
                f"{did_you_mean(unknown[0], tokenizer.get_vocab())}"
            )
        ids = list(tokenizer(prompt)["input_ids"])
    elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(f"{name} was given as {_kind(prompt)}. Give {_PROMPT}.")
    elif prompt and all(isinstance(item, Integral) for item in prompt):
        ids = [int(i) for i in prompt]  # type: ignore[arg-type]
        outside = [i for i in ids if not 0 <= i < model.vocab_size]
        if outside:
            raise PromptError(
                f"{name} has token id {outside[0]}, but {model.name} has ids 0–{model.vocab_size - 1}."
            )
    elif prompt and all(isinstance(item, dict) for item in prompt):
        ids = _encode_chat(model, prompt, name)
    else:
        raise PromptError(
            f"{name} is {'empty' if not prompt else f'a {type(prompt).__name__}'}: give {_PROMPT}."
        )
    bos = tokenizer.bos_token_id if tokenizer is not None else None
    while bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos and not _is_ids(prompt):
        ids = ids[1:]
    if not ids:
        raise PromptError(f"{name} is empty: its text {prompt!r} has no tokens.")
    if model.context_length and len(ids) > model.context_length:
        raise PromptError(
            f"{name} has {len(ids)} tokens, but {model.name} reads at most {model.context_length}. Shorten it "
            "or split it; nothing is cut off silently."
        )
    return ids


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Words that a word-level tokenizer without an unknown-word token cannot encode; none for all others."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "WordLevel" or backend.pre_tokenizer is None:
        return []
    if tokenizer.unk_token is not None:
        return []
    plain = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
    known = tokenizer.get_vocab()
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(plain) if word not in known]


def _is_ids(prompt: Any) -> bool:
    return not isinstance(prompt, str) and isinstance(prompt[0], Integral)


def _encode_chat(model: LanguageModel, messages: Any, name: str) -> list[int]:
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(f"{name} is a chat, but {model.name} has no chat template: give it as plain text.")
    wrong = [m for m in messages if not {"role", "content"} <= set(m)]
    if wrong:
        raise PromptError(f"{name}: message {wrong[0]!r} needs 'role' and 'content'.")
    from jinja2 import TemplateError

    try:
        text = fill_chat_template(tokenizer, messages)
    except (TemplateError, ValueError) as error:
        raise PromptError(f"{name}: the chat template refuses these messages: {error}.") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def fill_chat_template(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """A chat as text: up to where the assistant begins, or goes on where the last message is its own."""
    goes_on = messages[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
    )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token on its own, spaces kept."""
    texts = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    pieces = tokenizer.convert_ids_to_tokens([int(i) for i in ids])
    return tuple(_with_spaces(text, piece) for text, piece in zip(texts, pieces, strict=True))


_SPACE = "\u2581"
"""SentencePiece's mark for a space. Some decoders drop the first one of a text, so of every token on its own."""


def _with_spaces(text: str, piece: Any) -> str:
    if not isinstance(piece, str) or text.startswith(_SPACE):
        return text
    marks, spaces = len(piece) - len(piece.lstrip(_SPACE)), len(text) - len(text.lstrip(" "))
    return " " * max(0, marks - spaces) + text


def batch(
    model: LanguageModel, prompts: Prompt | Sequence[Prompt], *, side: Literal["left", "right"] = "right"
) -> TokenBatch:
    """Encode and pad prompts. Raises `PromptError` naming the prompt that cannot be used."""
    listed = at_least_one(prompts)
    many = len(listed) > 1
    rows = [
        encode(model, prompt, name=f"Prompt {i}" if many else "The prompt") for i, prompt in enumerate(listed)
    ]
    return from_ids(model, rows, side=side)


def from_ids(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    side: Literal["left", "right"] = "right",
    with_texts: bool = True,
) -> TokenBatch:
    """A padded batch of rows of token ids that are known to be good.

    `with_texts=False` leaves the text of each token away, which takes longer to look up than to pad.
    """
    pad = model.tokenizer.pad_token_id if model.tokenizer is not None else None
    if pad is None or pad >= model.vocab_size:  # a token added to the tokenizer alone has no embedding
        pad = 0
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, at] = torch.tensor(row)
        mask[i, at] = 1
    texts: tuple[tuple[str, ...], ...] = ()
    if with_texts:
        different = sorted(
            {i for row in rows for i in row}
        )  # a text has far fewer different tokens than tokens
        if model.tokenizer is None:
            spelt = {i: str(i) for i in different}
        else:
            spelt = dict(zip(different, token_texts(model.tokenizer, different), strict=True))
        texts = tuple(tuple(spelt[i] for i in row) for row in rows)
    return TokenBatch(
        ids.to(model.device), mask.to(model.device), tuple(len(row) for row in rows), side, texts
    )
