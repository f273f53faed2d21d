"""`open_source`: prompts from wherever they are, one after another, as `Item`s.

| given | what it is |
| --- | --- |
| `my.jsonl`, `.parquet`, `.csv`, `.txt`, `.json` | a file, streamed (`workbench.collection.rows`) |
| `folder`, `folder:split` | written by `datasets`, or holding parquet, jsonl, csv or txt files |
| `capitals`, `capitals:test`, a `PromptSet` | a prompt set of this project; of pairs the clean prompts |
| `org/name`, `org/name:split`, `org/name:config:split` | a data set of the Hugging Face Hub, streamed |
| a list, generator or function that makes one | texts, rows, lists of token ids, chats, `Item`s |

What the fields of a row mean is said in `workbench.collection.fields`. Ids are taken as they are: nothing looks
for an id that occurs twice, because that would mean to hold all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from workbench import datasets
from workbench.collection.fields import EmptyText, item_of, whole_number
from workbench.collection.hugging_face import folder_rows, hub_rows, is_hub_id
from workbench.collection.items import Item
from workbench.collection.rows import ENDINGS, Row, Rows, exists, file_rows
from workbench.datasets.promptset import PromptSet
from workbench.datasets.records import Record, known_fields, value_of
from workbench.errors import DataError, did_you_mean

__all__ = ["Source", "open_source"]


@dataclass
class Source:
    """Prompts that can be gone through, again and again unless they come from a generator.

    Attributes:
        rows: where they are read from.
        text_column: the field that holds the text.
        limit: how many rows are read at most; None reads all.
        labels: names of the other fields that are kept; None keeps all.
        skip_empty: leave rows out whose text is empty; `skipped` counts those of the latest pass.
    """

    rows: Rows
    text_column: str = "text"
    limit: int | None = None
    labels: tuple[str, ...] | None = None
    skip_empty: bool = False
    skipped: int = field(default=0, init=False)
    _begun: bool = field(default=False, init=False, repr=False)

    @property
    def name(self) -> str:
        """What was given: a path, a name, or the kind of a Python value."""
        return self.rows.name

    @cached_property
    def length(self) -> int | None:
        """Number of items; None where it is known only after reading them all (one read of a text file at most)."""
        n = None if self.skip_empty else self.rows.count()
        return n if n is None or self.limit is None else min(n, self.limit)

    def __iter__(self) -> Iterator[Item]:
        """The items, read as they are asked for.

        Raises:
            DataError: a row that cannot be used, naming file and line; no row at all; a generator read before.
        """
        if self.rows.one_shot and self._begun:
            raise DataError(
                f"{self.name} has been read already and cannot begin again: give a list, or a function that makes it "
                "anew (`lambda: my_generator()`)."
            )
        self._begun = True
        self.skipped = 0
        return self._items()

    def _items(self) -> Iterator[Item]:
        given = 0
        for number, row in enumerate(islice(self.rows.read(), self.limit), start=1):
            try:
                item = item_of(
                    row.value,
                    number=number,
                    where=row.where,
                    text_column=self.text_column,
                    labels=self.labels,
                )
            except EmptyText:
                if not self.skip_empty:
                    raise
                self.skipped += 1
                continue
            given += 1
            yield item
        if not given:
            raise DataError(
                f"{self.name} has no prompt in it"
                + (f": all of its {self.skipped} rows are empty." if self.skipped else ".")
            )

    def describe(self) -> dict[str, Any]:
        """Plain JSON that tells this source from any other, content included (a file is read once to hash it).

        Of a generator, a function or a data set on the Hub only the name is known.
        """
        identity = dict(self.rows.identity())
        if self.rows.kind == "list":
            digest = hashlib.sha256()
            for item in self:
                digest.update(json.dumps(asdict(item), sort_keys=True).encode() + b"\n")
            identity["sha256"] = digest.hexdigest()
        return {
            "kind": self.rows.kind,
            "name": self.name,
            "text_column": self.text_column,
            "limit": self.limit,
            "labels": list(self.labels) if self.labels is not None else None,
            "skip_empty": self.skip_empty,
            **identity,
        }


def open_source(
    given: Any,
    *,
    text_column: str = "text",
    limit: int | None = None,
    txt: Literal["lines", "file"] = "lines",
    labels: Iterable[str] | None = None,
    skip_empty: bool = False,
) -> Source:
    """A source of prompts from a path, a name or Python values (see the table above).

    Args:
        given: the path, name or values. An opened `Source` is returned as it is, or with a lower `limit`.
        text_column: the field that holds the text. Where it is `text`, pairs give their `clean` prompt.
        limit: at most so many rows, the first ones.
        txt: a `.txt` file is one prompt a line, or with `"file"` one prompt.
        labels: the other fields to keep with each prompt; None keeps all.
        skip_empty: leave rows out whose text is empty or white space. Otherwise such a row is an error.

    Raises:
        DataError: there is nothing of that name, or it is of a kind that cannot be read; an opened `Source` and another
            setting than it has. What is wrong with a row is said when it is read.

    Example:
        >>> source = open_source("indirect-objects", limit=100)
        >>> next(iter(source)).answer
        ' Mary'
    """
    if limit is not None and (whole_number(limit) or 0) < 1:
        raise DataError(f"limit is {limit!r}; expected a whole number, at least 1.")
    if txt not in ("lines", "file"):
        raise DataError(f"txt is {txt!r}; expected 'lines' (a prompt each) or 'file' (one prompt).")
    if isinstance(given, Source):
        if (
            text_column not in ("text", given.text_column)
            or txt != "lines"
            or labels is not None
            or skip_empty
        ):
            raise DataError(
                f"{given.name} was opened already, with settings of its own: give text_column, txt, labels and "
                "skip_empty to open_source, or give what it was opened from."
            )
        return _narrowed(given, limit)
    if isinstance(given, str | os.PathLike):
        rows = _named(str(given), txt)
    elif isinstance(given, PromptSet):
        rows = _prompt_set(given)
    else:
        rows = _python(given)
    names = None if labels is None else tuple(sorted(set(labels)))
    return Source(rows, text_column, limit, names, skip_empty)


def _narrowed(source: Source, limit: int | None) -> Source:
    """An opened source of which at most `limit` rows are read."""
    if limit is None or (source.limit is not None and source.limit <= limit):
        return source

    def read() -> Iterator[Row]:
        source._begun = True  # a generator that was read cannot be read again under another limit
        return source.rows.read()

    narrowed = replace(source, limit=limit, rows=replace(source.rows, read=read))
    narrowed._begun = source._begun
    return narrowed


def _named(name: str, txt: Literal["lines", "file"]) -> Rows:
    path = Path(name)
    if exists(path.is_dir):
        return folder_rows(path, None)
    if exists(path.is_file) or path.suffix.lower() in ENDINGS:
        return file_rows(path, txt=txt)
    head, _, split = name.rpartition(":")
    if head and exists(Path(head).is_dir):
        return folder_rows(Path(head), split)
    sets = [*datasets.names(), *datasets.generated()]
    if name in sets:
        return _prompt_set(datasets.load(name))
    if head in sets:
        return _prompt_set(datasets.load(head, split=split), name=name)
    if is_hub_id(name):
        return hub_rows(name)
    shown = name if len(name) <= 80 else name[:80] + "…"
    raise DataError(
        f"There is no file, folder or prompt set {shown!r}.{did_you_mean(name, sets)} Expected a file ending in "
        f"{', '.join(ENDINGS)}, a folder of `datasets`, one of the sets {', '.join(sets)}, or a Hub data set as "
        "org/name. One prompt is given in a list."
    )


def _prompt_set(prompts: PromptSet, name: str | None = None) -> Rows:
    def read() -> Iterator[Row]:
        for record in prompts:
            yield Row(_fields(prompts, record), f"{prompts.name} record {record.id!r}")

    return Rows(
        kind="prompt set",
        name=name or prompts.name,
        read=read,
        count=lambda: len(prompts),
        identity=lambda: {"fingerprint": prompts.fingerprint, "selection": list(prompts.selection)},
    )


def _fields(prompts: PromptSet, record: Record) -> dict[str, Any]:
    documented = {name: value_of(record, name) for name in known_fields(prompts.kind)}
    return {**record.extra, **{name: value for name, value in documented.items() if value is not None}}


def _python(given: Any) -> Rows:
    if hasattr(given, "itertuples"):  # a data frame, whose own iterator gives the names of its columns
        given = given.to_dict("records")
    if isinstance(given, Mapping) or not (callable(given) or isinstance(given, Iterable)):
        raise DataError(
            f"A {type(given).__name__} is no source of prompts: give a path, a name, or a list of texts, rows, "
            "token ids or chats (one prompt goes in a list as well)."
        )
    make: Callable[[], Any] = given if callable(given) else lambda: given
    one_shot = not callable(given) and iter(given) is given
    length = len(given) if isinstance(given, Sized) else None
    if callable(given):
        kind = "function"
    elif length is not None:
        kind = "list"
    else:
        kind = "generator" if one_shot else "iterable"

    def read() -> Iterator[Row]:
        made = make()
        if not isinstance(made, Iterable):
            raise DataError(f"{name} gave a {type(made).__name__}; expected something to iterate over.")
        for number, value in enumerate(made, start=1):
            yield Row(value, f"Prompt {number} of the {kind}")

    name = f"a {kind}" if kind != "iterable" else f"a {type(given).__name__}"
    return Rows(kind=kind, name=name, read=read, count=lambda: length, one_shot=one_shot)
