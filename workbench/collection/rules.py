"""The rules of a selection, read from what people write: words, indices, `kind:value`.

The meaning of each is in the table of `workbench.collection.selection`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from workbench.errors import PositionError, did_you_mean

__all__ = ["KNOWN", "Rule", "places_of", "rules_of"]

Kind: TypeAlias = Literal["all", "index", "span", "answer", "match", "token", "role"]
"""What a rule goes by."""

_WORDS = ("all", "last", "answer")
_PREFIXES = ("span:", "match:", "token:", "role:")
_INDICES = re.compile(r"\s*-?\d+\s*(,\s*-?\d+\s*)*")
KNOWN = "'all', 'last', 'answer', 'span:NAME', 'match:REGEX', 'token:TEXT', 'role:NAME', an index such as -1"


class Rule(NamedTuple):
    """One of the rules above: its kind and what stands after the colon, or the index."""

    kind: Kind
    value: str | int = ""

    def plain(self) -> str | int:
        """The one way this rule is written."""
        if self.kind == "index":
            return self.value
        return f"{self.kind}:{self.value}" if self.kind not in ("all", "answer") else self.kind


def rules_of(given: Any) -> list[Rule]:
    """The rules that one word, index or `"0,3"` stands for. Raises `PositionError` for one that is not known."""
    if isinstance(given, bool) or not isinstance(given, str):
        return [Rule("index", _whole(given))]
    if given == "last":
        return [Rule("index", -1)]
    if given in ("all", "answer"):
        return [Rule(given)]
    if _INDICES.fullmatch(given):
        return [Rule("index", int(place)) for place in given.split(",")]
    head, colon, value = given.partition(":")
    if head + colon not in _PREFIXES or not value:
        near = did_you_mean(given if not colon else head + colon, (*_WORDS, *_PREFIXES))
        raise PositionError(f"Positions {given!r} are not known.{near} Expected {KNOWN}, or a list of these.")
    if head == "match":
        try:
            re.compile(value)
        except re.error as error:
            raise PositionError(f"Positions {given!r}: not a regular expression: {error}.") from None
    if given == "span:answer":
        return [Rule("answer")]
    return [Rule(head, value)]  # type: ignore[arg-type]


def _whole(given: Any) -> int:
    if isinstance(given, bool):
        raise PositionError(f"Position {given!r} is not a whole number.")
    try:
        return operator.index(given)
    except TypeError:
        raise PositionError(f"Position {given!r} is not a whole number. Expected {KNOWN}.") from None


def places_of(given: Sequence[Any], prompt: int) -> tuple[int, ...]:
    """The places listed for one prompt, sorted, none twice. Raises `PositionError` where there is none."""
    if not given:
        raise PositionError(f"Prompt {prompt}: its list of positions is empty; give at least one.")
    return tuple(sorted({_whole(place) for place in given}))
