"""Characters and tokens: which characters of a text each token stands for, and which tokens a stretch covers.

A token belongs to the characters `[start, end)` when it overlaps them. White space that a token begins with does not
count (` Mary` stands for the word it starts, so the stretch `"store "` does not reach into it), unless nothing but
white space was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["covered", "spell"]

_BROKEN = "\ufffd"
"""What bytes decode to that are no character, or not yet."""
_LONGEST = 8
"""Tokens after which bytes that are still no character are taken for broken."""


def covered(
    text: str, offsets: Sequence[tuple[int, int]], stretches: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """The positions of the tokens in each of some stretches of characters, in order.

    Args:
        text: the text.
        offsets: [position] the `[start, end)` characters of each token; an empty one is in no stretch.
        stretches: `[start, end)` characters.

    Example:
        >>> covered("to the store", [(0, 2), (2, 6), (6, 12)], [(3, 7), (7, 8), (0, 3)])
        [[1], [2], [0]]
    """
    raw = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    starts = np.array([_first_visible(text, start, end) for start, end in offsets], dtype=np.int64)
    found = []
    for start, end in stretches:
        hit = np.flatnonzero((starts < end) & (raw[:, 1] > start) & (raw[:, 1] > raw[:, 0]))
        if not hit.size:
            hit = np.flatnonzero((raw[:, 0] < end) & (raw[:, 1] > start) & (raw[:, 1] > raw[:, 0]))
        found.append(hit.tolist())
    return found


def _first_visible(text: str, start: int, end: int) -> int:
    at = start
    while at < end and text[at].isspace():
        at += 1
    return at if at < end else start


def spell(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text that token ids spell, and the `[start, end)` characters of each.

    Works with every tokenizer: each token is decoded together with those just before it, which settles whether it
    begins with a space. Tokens that are only together a character (the bytes of an emoji) each stand for all of it.
    A beginning-of-sequence token that comes first has no characters, as where a tokenizer adds it to a text.

    Example:
        >>> spell(tokenizer, tokenizer("Mary went")["input_ids"])          # doctest: +SKIP
        ('Mary went', [(0, 4), (4, 9)])
    """
    first = 1 if len(ids) and ids[0] == tokenizer.bos_token_id else 0
    offsets: list[tuple[int, int]] = [(0, 0)] * first
    text = ""  # what all tokens up to `done` spell
    before = done = first  # `before` is where the last piece that ended with a whole character began
    known = 0  # characters that ids[before:done] decode to
    begin = 0  # character the next token begins in
    for i in range(first, len(ids)):
        piece = tokenizer.decode(list(ids[before : i + 1]), clean_up_tokenization_spaces=False)
        shift = len(text) - known
        if piece.endswith(_BROKEN) and i + 1 < len(ids) and i - done < _LONGEST:
            forming = shift + max(
                len(piece.rstrip(_BROKEN)), known
            )  # perhaps the first bytes of this character
            offsets.append((begin, forming + 1))
            begin = forming
            continue
        text += piece[known:]
        offsets.append((begin, len(text)))
        before, done, begin = done, i + 1, len(text)
        known = len(tokenizer.decode(list(ids[before:done]), clean_up_tokenization_spaces=False))
    return text, offsets
