"""Chats as text: the chat template filled in, and which characters each message wrote.

To tell what a message wrote from what the template wrote, the template is filled in a second time with a marker in
place of each content. What stands between the markers is the template's own. The two are checked against each
other: where a template changes what a message says (beyond white space around it) no roles are known, rather than
guessed ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workbench.errors import PromptError
from workbench.model.tokens import fill_chat_template

__all__ = ["ChatText", "Part", "render"]


class Part(NamedTuple):
    """The characters `[start, end)` that a message of `role` wrote."""

    role: str
    start: int
    end: int


class ChatText(NamedTuple):
    """A chat as its template writes it."""

    text: str
    parts: tuple[Part, ...] | None
    """What each message wrote, or None where the template changes it."""


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]], name: str) -> ChatText:
    """Fill in the chat template as `model.encode` does: up to where the assistant begins, or goes on.

    Args:
        tokenizer: one with a chat template.
        messages: with `role` and `content`.
        name: what the prompt is called in an error.

    Raises:
        PromptError: no chat template, or one that refuses these messages.

    Example:
        >>> render(tokenizer, [{"role": "user", "content": "Hello"}], "Prompt '1'").parts     # doctest: +SKIP
        (Part(role='user', start=102, end=107),)
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(f"{name} is a chat, but its model has no chat template: give it as plain text.")
    try:
        text = fill_chat_template(tokenizer, messages)
    except (TemplateError, ValueError) as error:
        raise PromptError(f"{name}: the chat template refuses these messages: {error}.") from None
    markers = [f"\ue000{i}\ue001" for i in range(len(messages))]
    try:
        marked = fill_chat_template(
            tokenizer, [{**m, "content": k} for m, k in zip(messages, markers, strict=True)]
        )
    except (TemplateError, ValueError):
        return ChatText(text, None)
    return ChatText(text, _parts(text, marked, markers, messages))


def _parts(
    text: str, marked: str, markers: list[str], messages: Sequence[Mapping[str, str]]
) -> tuple[Part, ...] | None:
    """Walk through `text` along the template's own pieces; None where it does not go."""
    pieces = []
    for marker in markers:
        piece, found, marked = marked.partition(marker)
        if not found or marker in marked:
            return None
        pieces.append(piece)
    pieces.append(marked)
    if not text.startswith(pieces[0]):
        return None
    at = len(pieces[0])
    parts = []
    for number, (message, piece) in enumerate(zip(messages, pieces[1:], strict=True), start=1):
        said = message["content"]
        last = number == len(messages)
        for form in (said, said.strip(), said.lstrip(), said.rstrip()):
            rest = form + piece
            if text.startswith(rest, at) and (not last or at + len(rest) == len(text)):
                parts.append(Part(message["role"], at, at + len(form)))
                at += len(rest)
                break
        else:
            return None
    return tuple(parts)
