"""Which position of one prompt corresponds to which of the other, where they have different numbers of tokens.

A patch at position p of the base run takes the activation of the source run at the position that corresponds to p. In
prompts of one length that is p itself. In others somebody has to say it, in one of three ways:

    Alignment.of_tokens({0: 0, 1: 1, 2: 4})                     position of clean -> position of corrupt
    Alignment.of_spans(model, clean, corrupt, {"subject": ("Mary Ann", "John"), "end": ("drink to", "drink to")})
    align(model, clean, corrupt)                                a diff of the token ids

A group (a span) has as many tokens on both sides, or else says which of them correspond: with `unequal="last"` the last
ones (in a causal model the last token of a name has seen all of it), the others are left out and counted. Positions in
no group correspond to nothing: no patch is made there, and the grid has NaN.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from numbers import Integral
from typing import Literal

from workbench.errors import PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.offsets import covered, spell
from workbench.model.tokens import Prompt

Span = str | tuple[int, int]
"""A piece of the prompt's text that occurs once, or its `[start, end)` positions (tokens)."""
Unequal = Literal["error", "last"]


@dataclass(frozen=True)
class Group:
    """Tokens of the clean prompt and as many of the corrupt one, in order."""

    name: str
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """Corresponding positions of a clean and a corrupt prompt, in named groups.

    Attributes:
        groups: what corresponds; no position is in two groups.
        left_out: positions of the clean and of the corrupt prompt that a group had too many of (`unequal="last"`).
    """

    groups: tuple[Group, ...]
    left_out: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def __post_init__(self) -> None:
        if not self.groups or not any(g.clean for g in self.groups):
            raise PromptError(
                "An alignment without positions was given: say at least one position of each prompt."
            )
        for side in ("clean", "corrupt"):
            seen: dict[int, str] = {}
            for group in self.groups:
                for position in getattr(group, side):
                    if position in seen:
                        raise PromptError(
                            f"Position {position} of the {side} prompt is aligned twice (in {seen[position]!r} and "
                            f"{group.name!r}): it can correspond to one position only."
                        )
                    seen[position] = group.name

    @classmethod
    def of_tokens(cls, positions: Mapping[int, int]) -> Alignment:
        """From a map of positions: clean -> corrupt, each a group of its own.

        Example:
            >>> Alignment.of_tokens({0: 0, 1: 2}).groups[1]
            Group(name='1', clean=(1,), corrupt=(2,))
        """
        return cls(tuple(Group(str(a), (int(a),), (int(b),)) for a, b in sorted(positions.items())))

    @classmethod
    def of_spans(
        cls,
        model: LanguageModel,
        clean: Prompt,
        corrupt: Prompt,
        spans: Mapping[str, Span | tuple[Span, Span]],
        *,
        unequal: Unequal = "error",
    ) -> Alignment:
        """From named spans: name -> what it is in the clean and in the corrupt prompt (one value: the same in both).

        Args:
            model: whose tokens are counted.
            clean, corrupt: the prompts.
            spans: name -> (clean span, corrupt span). A span is a piece of text that occurs once, or `(start, end)`
                positions of tokens, end not included.
            unequal: what to do where a span has more tokens in one prompt: `error`, or align the `last` of them.

        Raises:
            PromptError: a text that does not occur, or more than once, a span outside the prompt, spans of unequal
                lengths.

        Example:
            >>> Alignment.of_spans(model, clean, corrupt, {"name": ("Mary Ann", "John")}, unequal="last")
        """
        groups = []
        out: tuple[list[int], list[int]] = ([], [])
        for name, given in spans.items():
            both = given if _is_two(given) else (given, given)
            a, b = (
                _positions(model, prompt, span, f"{name!r} of the {side} prompt")  # type: ignore[arg-type]
                for prompt, span, side in zip((clean, corrupt), both, ("clean", "corrupt"), strict=True)
            )
            if len(a) != len(b) and unequal != "last":
                raise PromptError(
                    f"Span {name!r} has {len(a)} tokens in the clean prompt and {len(b)} in the corrupt one: reword "
                    "it, give equal spans, or align their last tokens with unequal='last'."
                )
            n = min(len(a), len(b))
            out[0].extend(a[: len(a) - n])
            out[1].extend(b[: len(b) - n])
            groups.append(Group(str(name), tuple(a[len(a) - n :]), tuple(b[len(b) - n :])))
        return cls(tuple(groups), (tuple(out[0]), tuple(out[1])))

    def sides(self, *, denoising: bool) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Name, positions of the base run and positions of the source run of each group."""
        return [(g.name, *((g.corrupt, g.clean) if denoising else (g.clean, g.corrupt))) for g in self.groups]

    def check(self, clean: int, corrupt: int) -> None:
        """Raise `PromptError` where a position is outside prompts of these numbers of tokens."""
        for side, length in (("clean", clean), ("corrupt", corrupt)):
            for group in self.groups:
                if outside := [p for p in getattr(group, side) if not 0 <= p < length]:
                    raise PromptError(
                        f"The alignment's {group.name!r} has position {outside[0]} of the {side} prompt, which has "
                        f"{length} tokens (0 to {length - 1})."
                    )


def align(model: LanguageModel, clean: Prompt, corrupt: Prompt) -> Alignment:
    """An alignment by comparing token ids: what is equal corresponds, token by token.

    Where tokens were exchanged for as many others, they correspond one by one; for fewer or more, the last of them do.
    Tokens that only one prompt has correspond to nothing. Every corresponding pair is a group named by its position in
    the clean prompt. The longest common stretches are found as by `difflib`; look at what comes out.

    Example:
        >>> align(model, "The doctor said that", "The old doctor said that").left_out
        ((), (1,))
    """
    a, b = model.encode(clean), model.encode(corrupt)
    pairs: dict[int, int] = {}
    out: tuple[list[int], list[int]] = ([], [])
    for _, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        n = min(a1 - a0, b1 - b0)
        pairs |= {a1 - n + i: b1 - n + i for i in range(n)}
        out[0].extend(range(a0, a1 - n))
        out[1].extend(range(b0, b1 - n))
    if not pairs:
        raise PromptError("The prompts share no token and nothing corresponds: align them by spans.")
    made = Alignment.of_tokens(pairs)
    return Alignment(made.groups, (tuple(out[0]), tuple(out[1])))


def _is_two(given: object) -> bool:
    """Whether a value gives both prompts' spans (two texts, or two pairs of numbers, or one of each)."""
    return isinstance(given, tuple) and len(given) == 2 and not all(isinstance(x, Integral) for x in given)


def _positions(model: LanguageModel, prompt: Prompt, span: Span, what: str) -> list[int]:
    ids = model.encode(prompt)
    if not isinstance(span, str):
        try:
            start, end = (operator.index(at) for at in span)
        except (TypeError, ValueError) as error:
            raise PromptError(f"{what} is {span!r}: give a text, or (start, end) positions.") from error
        if not 0 <= start < end <= len(ids):
            raise PromptError(
                f"{what} is [{start}, {end}), but the prompt has {len(ids)} tokens: expected 0 <= start < end <= that."
            )
        return list(range(start, end))
    if model.tokenizer is None:
        raise PromptError(
            f"{what} is a text, but {model.name} has no tokenizer: give (start, end) positions."
        )
    text, offsets = spell(model.tokenizer, ids)
    wanted = span.strip() or span
    places = _occurrences(text, wanted)
    if len(places) != 1:
        raise PromptError(
            f"{what} is {span!r}, which occurs {len(places)} times in {text!r}: give a text that occurs once, or "
            "(start, end) positions of tokens."
        )
    (found,) = covered(text, offsets, [(places[0], places[0] + len(wanted))])
    return found


def _occurrences(text: str, piece: str) -> list[int]:
    return [i for i in range(len(text) - len(piece) + 1) if text.startswith(piece, i)]


def as_alignments(
    given: Alignment | Mapping[int, int] | Sequence[Alignment | Mapping[int, int]] | None, n: int
) -> list[Alignment] | None:
    """One alignment per pair, or None. Raises `PromptError` for another number of them."""
    if given is None:
        return None
    listed = [given] * n if isinstance(given, (Alignment, Mapping)) else list(given)
    if len(listed) != n:
        raise PromptError(f"{len(listed)} alignments were given for {n} pairs: give one, or one per pair.")
    return [a if isinstance(a, Alignment) else Alignment.of_tokens(a) for a in listed]
