"""`PromptSet`: records of one kind, what was selected from them, and the columns analyses ask for.

A set never changes. `filter`, `sample`, `split` and slices give a new one that says in `selection` how many
records of how many it holds, so that a result can state what it was computed on.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, overload

from workbench.datasets.records import Kind, Pair, Record, Statement, known_fields, record_type, value_of
from workbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas

__all__ = ["PromptSet"]

_SINGULAR: dict[Kind, str] = {"pairs": "pair", "statements": "statement", "texts": "text"}
_COLUMNS: dict[Kind, str] = {
    "pairs": ".texts (the clean prompts), .clean, .corrupt, .answers, .wrong_answers and .groups",
    "statements": ".texts, .labels and .groups",
    "texts": ".texts and .groups",
}


@dataclass(frozen=True, repr=False)
class PromptSet:
    """Prompts of one kind, with their licence, their source and a fingerprint of their content.

    >>> from workbench.datasets import load
    >>> france = load("capitals").filter(country="France", negated=False)
    >>> sorted(set(france.labels))
    ['false', 'true']
    """

    name: str
    """Name of the shipped set, or the user's file."""
    kind: Kind
    """`pairs`, `statements` or `texts`."""
    records: tuple[Record, ...]
    """The records, in the order of the file."""
    licence: str = ""
    """The terms under which the records may be used; empty for a user's file."""
    source: str = ""
    """Where the records come from; for a user's file its path."""
    selection: tuple[str, ...] = ()
    """What was selected, one entry a step, each with "n of N"; empty for the whole set."""

    def __post_init__(self) -> None:
        wanted = record_type(self.kind)
        if not self.records:
            raise DataError(f"{self.name!r} would hold no record at all.")
        seen: dict[str, int] = {}
        for number, record in enumerate(self.records, start=1):
            if not isinstance(record, wanted):
                raise DataError(
                    f"{self.name!r} holds {self.kind}, but record {number} is a {type(record).__name__}."
                )
            if record.id in seen:
                raise DataError(
                    f"{self.name!r}: records {seen[record.id]} and {number} both have the id {record.id!r}; "
                    "ids must be unique."
                )
            seen[record.id] = number

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of kind and records: equal for equal content, wherever it was read from."""
        plain = [{**_documented(r), "extra": dict(r.extra)} for r in self.records]
        content = json.dumps([self.kind, plain], sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def texts(self) -> list[str]:
        """The prompts; for pairs the clean ones."""
        return [r.clean if isinstance(r, Pair) else r.text for r in self.records]

    @property
    def clean(self) -> list[str]:
        """The clean prompts of pairs."""
        return [r.clean for r in self._pairs("clean")]

    @property
    def corrupt(self) -> list[str]:
        """The corrupt prompts of pairs."""
        return [r.corrupt for r in self._pairs("corrupt")]

    @property
    def answers(self) -> list[str]:
        """The right continuations of the clean prompts. `DataError` if a pair has none."""
        return [
            r.answer if r.answer is not None else self._lacks(r, "answer") for r in self._pairs("answers")
        ]

    @property
    def wrong_answers(self) -> list[str]:
        """The right continuations of the corrupt prompts. `DataError` if a pair has none."""
        return [
            r.wrong_answer if r.wrong_answer is not None else self._lacks(r, "wrong_answer")
            for r in self._pairs("wrong_answers")
        ]

    @property
    def labels(self) -> list[str]:
        """The labels of statements."""
        records = [r for r in self.records if isinstance(r, Statement)]
        return [r.label for r in records] if records else self._wrong_kind("labels")

    @property
    def groups(self) -> list[str]:
        """The group of every record. `DataError` if a record has none."""
        return [r.group if r.group is not None else self._lacks(r, "group") for r in self.records]

    @property
    def field_names(self) -> tuple[str, ...]:
        """The fields that at least one record has: documented ones first, then those of `extra`."""
        # Not by truth: a field that is false in every record is there all the same.
        documented = (
            name
            for name in known_fields(self.kind)
            if any(value_of(r, name) not in (None, {}) for r in self.records)
        )
        return (*documented, *dict.fromkeys(name for r in self.records for name in r.extra))

    def column(self, name: str) -> list[Any]:
        """A field of every record, documented or extra; None where a record lacks it.

        >>> from workbench.datasets import load
        >>> set(load("capitals").filter(country="Japan").column("continent"))
        {'Asia'}
        """
        if name not in self.field_names:
            raise DataError(
                f"No record of {self.name!r} has a field {name!r}.{did_you_mean(name, self.field_names)} "
                f"The fields are: {', '.join(self.field_names)}."
            )
        return [value_of(r, name) for r in self.records]

    def filter(self, **field_equals: Any) -> PromptSet:
        """The records whose fields equal the given values; a list, tuple or set means any one of them.

        Raises `DataError` for a field no record has, and where no record is left.

        >>> from workbench.datasets import load
        >>> sorted(set(load("capitals").filter(label=["true", "false"], country="Peru").labels))
        ['false', 'true']
        """
        kept = self.records
        for name, wanted in field_equals.items():
            values = self.column(name)
            choices = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            for choice in choices:
                if choice not in values:
                    self._no_such_value(name, choice, values)
            kept = tuple(r for r in kept if value_of(r, name) in choices)
        asked = ", ".join(f"{name}={wanted!r}" for name, wanted in field_equals.items())
        if not kept:
            raise DataError(f"No record of {self.name!r} has all of {asked}.")
        return self._selected(kept, asked)

    def sample(self, n: int, seed: int = 0) -> PromptSet:
        """`n` records drawn without replacement, in the order of the file.

        Raises `DataError` when fewer than `n` are there, or `n` is less than one.

        >>> from workbench.datasets import load
        >>> load("sentiment").sample(10, seed=1).selection
        ('sample with seed 1: 10 of 384',)
        """
        if not 1 <= n <= len(self):
            raise DataError(
                f"Cannot sample {n} of the {len(self)} records of {self.name!r}: ask for 1 to {len(self)}."
            )
        chosen = sorted(random.Random(seed).sample(range(len(self)), n))
        return self._selected(tuple(self.records[i] for i in chosen), f"sample with seed {seed}")

    def split(self, fraction: float, seed: int = 0, by: str = "group") -> tuple[PromptSet, PromptSet]:
        """Two parts, the first with about `fraction` of the records, that share no value of the field `by`.

        With `by="group"` the records of one country, template or book stay on one side, so that the second
        part tests what was learnt and not what was remembered. `by="id"` splits record by record.

        >>> from workbench.datasets import load
        >>> train, test = load("capitals").split(0.8, seed=0)
        >>> set(train.groups) & set(test.groups)
        set()
        """
        if not 0 < fraction < 1:
            raise DataError(f"fraction is {fraction}; expected a number between 0 and 1, for instance 0.8.")
        if by == "group" and "group" not in self.field_names:
            raise DataError(
                f"{self.name!r} has no groups to split by: give its records a 'group' (what must not be "
                "shared between the parts), or split record by record with by='id'."
            )
        values = [str(v) if v is not None else self._lacks(r, by) for r, v in self._with(by)]
        sizes: dict[str, int] = {}
        for value in values:
            sizes[value] = sizes.get(value, 0) + 1
        if len(sizes) < 2:
            raise DataError(f"All {len(self)} records of {self.name!r} have the same {by}: nothing to split.")
        order = list(sizes)
        random.Random(seed).shuffle(order)
        first = _nearest_in_size(order, sizes, fraction * len(self))
        how = f"split {fraction} by {by} with seed {seed}"
        parts = [
            tuple(r for r, value in zip(self.records, values, strict=True) if (value in first) is side)
            for side in (True, False)
        ]
        return self._selected(parts[0], f"{how}, first part"), self._selected(parts[1], f"{how}, second part")

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per record, one column per field that at least one record has."""
        import pandas  # here, so that loading prompts stays quick

        return pandas.DataFrame({name: self.column(name) for name in self.field_names})

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @overload
    def __getitem__(self, key: int | str) -> Record: ...
    @overload
    def __getitem__(self, key: slice) -> PromptSet: ...
    def __getitem__(self, key: int | str | slice) -> Record | PromptSet:
        """The record at a place or with an id; the set of records in a slice."""
        if isinstance(key, slice):
            return self._selected(self.records[key], f"records [{_slice_words(key)}]")
        if isinstance(key, str):
            if key not in self._by_id:
                hint = did_you_mean(key, self._by_id)
                raise DataError(f"{self.name!r} has no record with the id {key!r}.{hint}")
            return self._by_id[key]
        return self.records[key]  # IndexError past the end, as Python's own loops expect

    def __repr__(self) -> str:
        steps = "".join(f"; {step}" for step in self.selection)
        return f"<PromptSet {self.name!r}: {len(self)} {self.kind}{steps}>"

    @cached_property
    def _by_id(self) -> dict[str, Record]:
        return {r.id: r for r in self.records}

    def _selected(self, kept: tuple[Record, ...], how: str) -> PromptSet:
        step = f"{how}: {len(kept)} of {len(self)}"
        return replace(self, records=kept, selection=(*self.selection, step))

    def _with(self, name: str) -> list[tuple[Record, Any]]:
        return list(zip(self.records, self.column(name), strict=True))

    def _pairs(self, asked: str) -> list[Pair]:
        pairs = [r for r in self.records if isinstance(r, Pair)]
        return pairs if pairs else self._wrong_kind(asked)

    def _wrong_kind(self, asked: str) -> NoReturn:
        raise DataError(
            f"{self.name!r} holds {self.kind}, and a {_SINGULAR[self.kind]} has no .{asked}; "
            f"{self.kind} have {_COLUMNS[self.kind]}."
        )

    def _no_such_value(self, name: str, choice: Any, values: list[Any]) -> NoReturn:
        there = list({repr(v): v for v in values}.items())  # by their words: a value may be a list
        shown = ", ".join(words for words, _ in there[:12])
        more = f", … ({len(there)} in all)" if len(there) > 12 else ""
        hint = did_you_mean(str(choice), [str(v) for _, v in there])
        lists = next((words for words, v in there if isinstance(v, list)), None)
        if lists is not None:
            hint += f" A list is asked for inside a list: {name}=[{lists}]."
        raise DataError(
            f"No record of {self.name!r} has {name}={choice!r}.{hint} The values are: {shown}{more}."
        )

    def _lacks(self, record: Record, name: str) -> NoReturn:
        n = sum(value_of(r, name) is None for r in self.records)
        raise DataError(
            f"{n} of the {len(self)} records of {self.name!r} have no {name!r}, first {record.id!r}."
        )


def _documented(record: Record) -> dict[str, Any]:
    names = (name for name in type(record).__dataclass_fields__ if name != "extra")
    return {name: getattr(record, name) for name in names if getattr(record, name) is not None}


def _nearest_in_size(order: list[str], sizes: dict[str, int], target: float) -> set[str]:
    """The first values of `order` whose records come nearest to `target`; at least one, never all."""
    best, best_distance, total = 1, float("inf"), 0
    for n, value in enumerate(order[:-1], start=1):
        total += sizes[value]
        if abs(total - target) < best_distance:
            best, best_distance = n, abs(total - target)
    return set(order[:best])


def _slice_words(key: slice) -> str:
    ends = [key.start, key.stop] if key.step is None else [key.start, key.stop, key.step]
    return ":".join("" if end is None else str(end) for end in ends)
