"""Finding prompt sets by name, and reading a user's own file as one.

`names()` lists what ships; `load` takes such a name or a path and gives a `PromptSet`. Sets that are not files
but made on demand (the problems of the model organisms, or of another package) come from providers, found through
the entry-point group `workbench.datasets`: objects with `names() -> list[str]` and
`load(name, *, split, limit, seed) -> PromptSet`.
"""

from __future__ import annotations

import json
import operator
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from workbench.datasets.files import ENDINGS, Row, read_rows
from workbench.datasets.paths import prompts_folder
from workbench.datasets.promptset import PromptSet
from workbench.datasets.records import kind_of, make_record
from workbench.errors import DataError, did_you_mean

__all__ = ["TRAIN_FRACTION", "Provider", "generated", "index", "load", "names"]

TRAIN_FRACTION = 0.8
"""Share of the records in `split="train"`; the rest is `split="test"`."""


ENTRY_POINT_GROUP = "workbench.datasets"


class Provider(Protocol):
    """Something that makes prompt sets on demand."""

    def names(self) -> list[str]:
        """The sets it can make."""
        ...

    def load(self, name: str, *, split: str | None, limit: int | None, seed: int) -> PromptSet:
        """Make one. `split` is "train", "test" or None; `limit` None means the provider's own size."""
        ...


def index() -> dict[str, dict[str, Any]]:
    """What `index.json` says of every shipped set: file, kind, n, licence, source, description, sha256."""
    path = prompts_folder() / "index.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sets"]
    except (json.JSONDecodeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}): reinstall the package.") from None


def names() -> list[str]:
    """The names of the shipped prompt sets.

    >>> "capitals" in names()
    True
    """
    return sorted(index())


def generated() -> dict[str, Provider]:
    """The sets that are made on demand, and who makes them.

    >>> "addition" in generated()
    True
    """
    found: dict[str, Provider] = {}
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        provider: Provider = entry.load()
        for name in provider.names():
            found.setdefault(name, provider)
    return found


def load(
    name_or_path: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> PromptSet:
    """A shipped prompt set, one made on demand, or a file of your own (`.jsonl`, `.json`, `.csv`, `.txt`).

    In your own file a record needs `text`, or `text` and `label`, or `clean` and `corrupt`; the fields
    documented in `workbench.datasets.records` are understood, all others are kept in each record's `extra`.

    Args:
        name_or_path: one of `names()` or `generated()`, or a path.
        split: `"train"` (80 %) or `"test"` (20 %) of the records, no group on both sides; record by record
            where the file gives no groups. The same `seed` gives two parts that share nothing. Of a set that is
            made on demand the provider says what its parts are: for a model organism problems that the model was
            trained on, and (also without `split`) held-out ones; a group may stand in both.
        limit: at most this many records, drawn with `seed` (not the first: files go by template). Sets made on
            demand have a size of their own where none is given (500 pairs of an organism).
        seed: for `split` and `limit`.

    Returns:
        The set; its `selection` says "n of N" for each step.

    Raises:
        DataError: unknown name, or an unreadable file; it names the file, the line and what is expected. `limit` or
            `seed` is no whole number.

    >>> len(load("capitals", split="test", limit=20))
    20
    """
    if split not in (None, "train", "test"):
        raise DataError(f"There is no split {split!r}; expected 'train' or 'test'.")
    for what, number in (("limit", limit), ("seed", seed)):
        if number is not None and not _is_whole(number):
            raise DataError(f"{what} is {number!r}; expected a whole number.")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; expected at least 1.")
    if not _is_path(name_or_path) and (name := str(name_or_path)) not in index():
        makers = generated()
        if name in makers:
            return makers[name].load(name, split=split, limit=limit, seed=seed)
    prompts = _read_path(Path(name_or_path)) if _is_path(name_or_path) else _read_shipped(str(name_or_path))
    if split is not None:
        by = "group" if "group" in prompts.field_names else "id"
        prompts = prompts.split(TRAIN_FRACTION, seed=seed, by=by)[0 if split == "train" else 1]
    if limit is not None and limit < len(prompts):
        prompts = prompts.sample(limit, seed=seed)
    return prompts


def check(name_or_path: str | os.PathLike[str]) -> None:
    """Raise what `load` raises where there is no such set or file; one that is there is not read."""
    if _is_path(name_or_path):
        there = Path(name_or_path).is_file()
    else:
        there = str(name_or_path) in index() or str(name_or_path) in generated()
    if not there:
        load(name_or_path)


def _is_whole(number: object) -> bool:
    try:
        operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _is_path(given: str | os.PathLike[str]) -> bool:
    if not isinstance(given, str):
        return True
    return Path(given).suffix.lower() in ENDINGS or "/" in given or os.sep in given


def _read_shipped(name: str) -> PromptSet:
    known = index()
    if name not in known:
        there = [*sorted(known), *generated()]
        raise DataError(
            f"There is no prompt set {name!r}.{did_you_mean(name, there)} The sets are: "
            f"{', '.join(there)}. A file of your own needs one of the endings {', '.join(ENDINGS)}."
        )
    entry = known[name]
    rows = read_rows(prompts_folder() / entry["file"])
    return _prompt_set(rows, name=name, licence=entry["licence"], source=entry["source"])


def _read_path(path: Path) -> PromptSet:
    return _prompt_set(read_rows(path), name=path.name, licence="", source=str(path))


def _prompt_set(rows: list[Row], *, name: str, licence: str, source: str) -> PromptSet:
    kind = kind_of(rows[0].fields, rows[0].where)
    records = []
    first_with: dict[str, str] = {}
    for row in rows:
        here = kind_of(row.fields, row.where)
        if here != kind:
            raise DataError(
                f"{row.where} has the fields of {here}, but {rows[0].where} those of {kind}: every record of "
                "a file must have 'text', or 'text' and 'label', or 'clean' and 'corrupt'."
            )
        record = make_record(kind, row.fields, default_id=row.default_id, where=row.where)
        if record.id in first_with:
            raise DataError(
                f"{row.where}: the id {record.id!r} is that of {first_with[record.id]}; ids must be unique."
            )
        first_with[record.id] = row.where
        records.append(record)
    return PromptSet(name, kind, tuple(records), licence, source)
