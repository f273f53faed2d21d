"""The three kinds of record a prompt set can hold, and how fields read from a file become one.

| kind | record | required fields | what for |
| --- | --- | --- | --- |
| `pairs` | `Pair` | `clean`, `corrupt` | patching, attribution: two prompts that differ in one thing |
| `statements` | `Statement` | `text`, `label` | probes, steering directions: a sentence and its class |
| `texts` | `Text` | `text` | statistics over ordinary language, dictionaries |

Fields that are not named here are kept in `extra`, under the name the file gave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isnan
from typing import Any, Literal, TypeAlias, get_args

from workbench.errors import DataError, did_you_mean

__all__ = [
    "Kind",
    "Pair",
    "Record",
    "Statement",
    "Text",
    "kind_of",
    "known_fields",
    "make_record",
    "record_type",
    "value_of",
]

Kind: TypeAlias = Literal["pairs", "statements", "texts"]
"""What every record of a set is: clean and corrupt prompt pairs, labelled statements, or plain texts."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A clean prompt and a corrupt one that differs in the thing under study.

    >>> Pair(id="1", clean="Mary saw John, John waved to", corrupt="Mary saw John, Mary waved to",
    ...      answer=" Mary", wrong_answer=" John").answer
    ' Mary'
    """

    id: str
    clean: str
    """The prompt whose continuation is `answer`."""
    corrupt: str
    """The prompt whose continuation is `wrong_answer`."""
    answer: str | None = None
    """Right continuation of `clean`, with its leading space."""
    wrong_answer: str | None = None
    """Right continuation of `corrupt`, with its leading space."""
    group: str | None = None
    """Records of one group stay together in a split."""
    template: str | None = None
    """Name of the sentence pattern."""
    order: str | None = None
    """`ABBA` or `BABA`: which name comes first, the indirect object (A) or the subject (B)."""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    """Named `[start, end)` stretches of characters in `clean`, for instance `io`, `s1` and `s2`."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of the file that are not among the above."""

    def __post_init__(self) -> None:
        if self.clean == self.corrupt:
            raise DataError("'clean' and 'corrupt' are the same prompt: a pair must differ somewhere.")
        if self.answer is not None and self.answer == self.wrong_answer:
            raise DataError(f"'answer' and 'wrong_answer' are both {self.answer!r}: they must differ.")
        for name, (start, end) in self.spans.items():
            if not 0 <= start < end <= len(self.clean):
                raise DataError(
                    f"span {name!r} is [{start}, {end}], but 'clean' has {len(self.clean)} characters: "
                    "expected 0 <= start < end <= that."
                )


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A sentence with a label.

    >>> Statement(id="1", text="The capital of France is Paris.", label="true").label
    'true'
    """

    id: str
    text: str
    label: str
    """The class, as text: numbers and booleans of a file become `"1"`, `"true"` and so on."""
    group: str | None = None
    """Records of one group stay together in a split."""
    template: str | None = None
    """Name of the sentence pattern."""
    negated: bool | None = None
    """Whether the sentence contains the negation its template provides."""
    made_up: bool | None = None
    """Whether what it speaks of was invented (so that it is neither true nor false)."""
    country: str | None = None
    """The country the statement is about."""
    capital: str | None = None
    """The city that the statement names, which is the country's capital or not."""
    continent: str | None = None
    """The country's continent."""
    domain: str | None = None
    """What kind of thing is judged: film, hotel, …"""
    word: str | None = None
    """The adjective that carries the judgement."""
    counterpart: str | None = None
    """Id of the record that differs in that one word and has the opposite label."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of the file that are not among the above."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A passage of text.

    >>> Text(id="1", text="In the beginning God created the heaven and the earth.").source is None
    True
    """

    id: str
    text: str
    group: str | None = None
    """Records of one group (a book, a document) stay together in a split."""
    reference: str | None = None
    """Where in the source the passage stands."""
    source: str | None = None
    """The work it was taken from."""
    licence: str | None = None
    """The terms of that work."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of the file that are not among the above."""


Record: TypeAlias = Pair | Statement | Text
"""A record of any kind."""

_TYPES: dict[Kind, type[Pair] | type[Statement] | type[Text]] = {
    "pairs": Pair,
    "statements": Statement,
    "texts": Text,
}
_REQUIRED: dict[Kind, tuple[str, ...]] = {
    "pairs": ("clean", "corrupt"),
    "statements": ("text", "label"),
    "texts": ("text",),
}
_ANSWERS = ("answer", "wrong_answer")
_BOOLEANS = ("negated", "made_up")
_WANTED = "expected 'text'; 'text' and 'label'; or 'clean' and 'corrupt'"


def record_type(kind: Kind) -> type[Pair] | type[Statement] | type[Text]:
    """The class of the records in a set of `kind`."""
    return _TYPES[kind]


def known_fields(kind: Kind) -> tuple[str, ...]:
    """The documented fields of a kind, `id` first, without `extra`."""
    return tuple(f.name for f in fields(_TYPES[kind]) if f.name != "extra")


def value_of(record: Record, name: str) -> Any:
    """A documented or extra field of a record; None where it has none of that name."""
    if name != "extra" and name in type(record).__dataclass_fields__:
        return getattr(record, name)
    return record.extra.get(name)


def kind_of(given: Mapping[str, Any], where: str) -> Kind:
    """Which kind of record these fields make. `where` (file and line) begins the error's message."""
    if "clean" in given or "corrupt" in given:
        kind: Kind = "pairs"
    elif "label" in given:
        kind = "statements"
    else:
        kind = "texts"
    missing = [name for name in _REQUIRED[kind] if name not in given]
    if missing:
        has = ", ".join(repr(name) for name in given) or "nothing"
        guesses = {name for names in _REQUIRED.values() for name in names}
        hint = next((h for h in (did_you_mean(name.lower(), guesses) for name in given) if h), "")
        raise DataError(
            f"{where}: {' and '.join(repr(m) for m in missing)} missing; it has the fields {has}, "
            f"{_WANTED}.{hint}"
        )
    return kind


def make_record(kind: Kind, given: Mapping[str, Any], *, default_id: str, where: str) -> Record:
    """A checked record from the fields of one line.

    Numbers and booleans where text is expected become text. A field that is null, NaN (pandas' null) or empty
    is one that the record lacks; an answer may be a space or a line break. `where` (file and line) begins the message
    of the `DataError` raised for a required field that is missing or empty, or a value of the wrong type.

    >>> make_record("texts", {"text": "Hello.", "page": 3}, default_id="1", where="my.jsonl line 1").extra
    {'page': 3}
    """
    if kind not in get_args(Kind):
        raise DataError(f"{where}: the kind {kind!r} does not exist; expected pairs, statements or texts.")
    known = known_fields(kind)
    values: dict[str, Any] = {"extra": {k: v for k, v in given.items() if k not in known}}
    for name in known:
        value = given.get(name)
        empty = _is_empty(name, value)
        if empty and name in _REQUIRED[kind]:
            raise DataError(f"{where}: {name!r} is {'empty' if name in given else 'missing'}.")
        if not empty:
            values[name] = _converted(name, value, where)
    values.setdefault("id", default_id)
    try:
        return _TYPES[kind](**values)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _is_empty(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return not (value if name in _ANSWERS else value.strip())
    return value is None or (isinstance(value, float) and isnan(value))


def _converted(name: str, value: Any, where: str) -> Any:
    if name in _BOOLEANS:
        return _as_boolean(name, value, where)
    if name == "spans":
        return _as_spans(value, where)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise DataError(f"{where}: {name!r} is a {type(value).__name__}; expected text.")


def _as_boolean(name: str, value: Any, where: str) -> bool:
    # A CSV file has only text, hence the two spellings.
    word = str(value).lower() if isinstance(value, bool | str) else ""
    if word not in ("true", "false"):
        raise DataError(f"{where}: {name!r} is {value!r}; expected true or false.")
    return word == "true"


def _as_spans(value: Any, where: str) -> dict[str, tuple[int, int]]:
    wanted = """expected {"name": [start, end], ...} with characters of 'clean' counted from 0"""
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: 'spans' is a {type(value).__name__}; {wanted}.")
    spans: dict[str, tuple[int, int]] = {}
    for name, span in value.items():
        ends = list(span) if isinstance(span, list | tuple) else []
        if len(ends) != 2 or any(type(end) is not int for end in ends):
            raise DataError(f"{where}: span {name!r} is {span!r}; {wanted}.")
        spans[name] = (ends[0], ends[1])
    return spans
