"""What the fields of a row mean: one row of any source -> one `Item`.

| field | meaning |
| --- | --- |
| `text` (or the column named), for pairs `clean` | the text |
| `messages` | a chat, where there is no text |
| `ids`, `tokens` | token ids, where there is neither |
| `answer` | a continuation that is read along with the text |
| `spans` | `{"name": [start, end]}` in characters of the text |
| `id` | the name of the prompt; else its running number, from 1 |

All other fields are kept as labels, which are plain JSON. A field that is null (or NaN, as data frames have it) is a
field that is not there, and so is an empty `answer`, `id` or `spans`: a table has no other way to leave a cell out.
"""

from __future__ import annotations

import datetime
import json
import math
import operator
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from workbench.collection.items import Item
from workbench.errors import DataError, did_you_mean

__all__ = ["EmptyText", "item_of", "whole_number"]

_SPANS = """expected {"name": [start, end], ...} with characters of the text counted from 0"""
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = "a text, a row of fields, a list of token ids, or a list of messages with 'role' and 'content'"


class EmptyText(DataError):
    """A row whose text is there but empty; a source can be told to leave such rows out."""


def item_of(
    value: Any,
    *,
    number: int,
    where: str,
    text_column: str = "text",
    labels: Collection[str] | None = None,
) -> Item:
    """One item from a text, a row of fields, token ids, chat messages or an `Item`.

    Args:
        value: what the source gave.
        number: its running number from 1, the id where it has none of its own.
        where: begins the message of an error (`my.jsonl line 7`).
        text_column: the field that holds the text.
        labels: names of the other fields to keep; None keeps all.

    Raises:
        EmptyText: the text is empty or white space.
        DataError: no text, or a field of the wrong type.

    Example:
        >>> item_of({"text": "Rome is in", "answer": " Italy", "page": 3}, number=1, where="row 1").labels
        {'page': 3}
    """
    try:
        return _checked(_read(value, number, where, text_column, labels), where)
    except RecursionError:
        raise DataError(f"{where}: lists or objects lie too deep in each other to be kept.") from None


def _read(value: Any, number: int, where: str, text_column: str, labels: Collection[str] | None) -> Item:
    if isinstance(value, Item):
        return _plain_item(value, where)
    if hasattr(value, "tolist") and not isinstance(value, Mapping):
        value = value.tolist()
    if isinstance(value, str):
        return Item(str(number), text=value)
    if isinstance(value, Mapping):
        return _from_fields(value, number, where, text_column, labels)
    if isinstance(value, list | tuple) and value:
        if all(isinstance(v, Mapping) for v in value):
            return Item(str(number), messages=_messages(value, where))
        return Item(str(number), ids=_ids(value, where))
    hint = " For one prompt of token ids give a list that holds it: [[5, 6, 7]]." if _is_int(value) else ""
    what = "an empty list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
    raise DataError(f"{where}: {what}; expected {_KINDS}.{hint}")


def _from_fields(
    row: Mapping[str, Any], number: int, where: str, text_column: str, labels: Collection[str] | None
) -> Item:
    given = {str(name): value for name, value in row.items() if not _missing(value)}
    text = text_column
    if text_column == "text" and "text" not in given and "clean" in given:
        text = "clean"
    values: dict[str, Any] = {"id": _id(given.pop("id", ""), number, where)}
    if text in given:
        values["text"] = given.pop(text)
        if not isinstance(values["text"], str):
            raise DataError(f"{where}: {text!r} is a {type(values['text']).__name__}; expected text.")
    elif "messages" in given:
        values["messages"] = _messages(given.pop("messages"), where)
    elif name := next((n for n in ("ids", "tokens") if n in given), None):
        values["ids"] = _ids(given.pop(name), where)
    else:
        _no_text(row, where, text_column)
    if (answer := given.pop("answer", "")) != "":
        values["answer"] = _answer(answer, where)
    if spans := given.pop("spans", None):
        values["spans"] = _spans(spans, where)
    kept = given if labels is None else {name: given[name] for name in labels if name in given}
    values["labels"] = {name: _plain(value, f"{where}: {name!r}") for name, value in kept.items()}
    return Item(**values)


def _plain_item(item: Item, where: str) -> Item:
    """An `Item` of the caller's own, its fields read as those of a row are."""
    if not isinstance(item.id, str):
        raise DataError(f"{where}: the id of an Item is {item.id!r}; expected text, such as '{item.id}'.")
    for name, kind, expected in (
        ("text", str, "text"),
        ("answer", str, "text"),
        ("labels", Mapping, "a dict"),
    ):
        given = getattr(item, name)
        if given is not None and not isinstance(given, kind):
            raise DataError(f"{where}: {name!r} of an Item is {given!r}; expected {expected}.")
    return replace(
        item,
        messages=None if item.messages is None else _messages(item.messages, where),
        ids=None if item.ids is None else _ids(item.ids, where),
        spans=_spans(item.spans, where),
        labels={str(name): _plain(value, f"{where}: {name!r}") for name, value in item.labels.items()},
    )


def _checked(item: Item, where: str) -> Item:
    n = sum(x is not None for x in (item.text, item.messages, item.ids))
    if n != 1:
        raise DataError(f"{where}: an item needs exactly one of text, messages and ids; {n} are given.")
    if item.text is not None and not item.text.strip():
        raise EmptyText(f"{where}: the text is empty. Leave such rows out with skip_empty=True.")
    if item.spans and item.text is None:
        raise DataError(f"{where}: 'spans' count characters of a text; this prompt is a chat or token ids.")
    for name, (start, end) in item.spans.items():
        if "|" in name or not name:
            raise DataError(f"{where}: a span cannot be called {name!r}: give a name without '|'.")
        if not 0 <= start < end <= len(item.text or ""):
            raise DataError(
                f"{where}: span {name!r} is [{start}, {end}], but the text has {len(item.text or '')} characters: "
                "expected 0 <= start < end <= that."
            )
    _refuse_half_characters(item, where)
    return item


def _refuse_half_characters(item: Item, where: str) -> None:
    """A lone surrogate (`"\\ud83d"` in JSON) is half of a character: no tokenizer and no file takes it."""
    said = [message[key] for message in item.messages or () for key in ("role", "content")]
    labels = [json.dumps(item.labels, ensure_ascii=False)] if item.labels else []
    places = [("text", [item.text]), ("answer", [item.answer]), ("id", [item.id]), ("messages", said)]
    for name, texts in [*places, ("spans", list(item.spans)), ("labels", labels)]:
        if any(_SURROGATE.search(text) for text in texts if text and not text.isascii()):
            raise DataError(
                f"{where}: {name!r} of prompt {item.id!r} has half of a character (a lone surrogate, as in "
                '"\\ud83d"), which is no text: mend or remove it.'
            )


def _id(value: Any, number: int, where: str) -> str:
    value = _python(value)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DataError(f"{where}: 'id' is a {type(value).__name__}; expected text or a number.")
    return str(value) if value != "" else str(number)


def _answer(value: Any, where: str) -> str:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}: 'answer' is a {type(value).__name__}; expected text.")
    return str(value)


def _ids(value: Any, where: str) -> tuple[int, ...]:
    value = _python(value)
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: {value!r} is no list of token ids; expected {_KINDS}.")
    ids = [_python(v) for v in value]
    wrong = next((v for v in ids if not _is_int(v)), None)
    if wrong is not None:
        raise DataError(f"{where}: {wrong!r} is no token id; expected {_KINDS}.")
    return tuple(ids)


def _messages(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    wanted = """expected messages such as {"role": "user", "content": "Hello"}"""
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: 'messages' is {value!r}; {wanted}.")
    messages = []
    for message in value:
        given = {k: v for k, v in message.items() if v is not None} if isinstance(message, Mapping) else {}
        if not isinstance(given.get("role"), str) or not isinstance(given.get("content"), str):
            raise DataError(f"{where}: message {message!r} cannot be read; {wanted}.")
        messages.append(given)
    return tuple(messages)


def _spans(value: Any, where: str) -> dict[str, tuple[int, int]]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: 'spans' is a {type(value).__name__}; {_SPANS}.")
    spans = {}
    for name, span in value.items():
        if span is None:  # a table gives every row the span names of all
            continue
        if not isinstance(span, list | tuple) or len(span) != 2 or not all(_is_int(end) for end in span):
            raise DataError(f"{where}: span {name!r} is {span!r}; {_SPANS}.")
        spans[str(name)] = (span[0], span[1])
    return spans


def _plain(value: Any, what: str) -> Any:
    """The value as JSON has it. Dates become text and NaN, which tables use for a missing value, null."""
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(k): _plain(v, what) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, what) for v in value]
    raise DataError(
        f"{what} is a {type(value).__name__}, which cannot be kept as a label: labels are text, numbers and lists "
        "of them. Name the fields to keep with labels=[...]."
    )


def _no_text(row: Mapping[str, Any], where: str, text_column: str) -> NoReturn:
    names = [str(name) for name in row]
    if set(names) >= {"role", "content"}:
        raise DataError(f"{where}: a single message; one chat is a list of them, so give [[message, ...]].")
    if text_column in names:
        raise EmptyText(f"{where}: {text_column!r} is null. Leave such rows out with skip_empty=True.")
    raise DataError(
        f"{where}: {text_column!r} is missing; the row has the fields {', '.join(map(repr, names)) or '(none)'}."
        f"{did_you_mean(text_column, names)} Name the field that holds the text with "
        "text_column=..., or give 'messages' or 'ids'."
    )


def _python(value: Any) -> Any:
    """A numpy array or scalar as plain Python, and a whole float as the integer it was before a table had gaps."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_number(value: Any) -> int | None:
    """An integer of Python or of an array as Python's own; None for anything else, `True` and `3.0` as well."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
