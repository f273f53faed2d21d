"""Reading rows one after another from a file, without ever holding the file.

`.jsonl`, `.csv` and `.txt` are read line by line and `.parquet` in batches of a row group, so memory is bounded by
the longest line or the largest row group. A `.json` file is one value and is read whole.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from workbench.datasets.files import read_rows
from workbench.errors import DataError
from workbench.files import sha256_of

__all__ = ["ENDINGS", "Row", "Rows", "exists", "file_rows"]

COUNT_AT_MOST = 256 * 2**20
"""A text file of more bytes is not read a first time only to count its rows."""
_ROWS_AT_ONCE = 256
_TOO_LONG = "a number has more digits than can be read; give it as text."
_TOO_DEEP = "lists or objects lie too deep in each other to be read."
_JSON_COLUMNS = ("spans", "messages", "ids", "tokens")


class Row(NamedTuple):
    """What a source gave, and where it stood there."""

    value: Any
    where: str


@dataclass(frozen=True)
class Rows:
    """A place rows can be read from, any number of times unless `one_shot`."""

    kind: str
    name: str
    read: Callable[[], Iterator[Row]]
    count: Callable[[], int | None] = lambda: None
    """Number of rows, or None where it is not known without reading them all."""
    identity: Callable[[], Mapping[str, Any]] = field(default=dict)
    """What tells this source from another of the same name, as plain JSON."""
    one_shot: bool = False


def file_rows(path: Path, *, txt: Literal["lines", "file"] = "lines") -> Rows:
    """The rows of one file.

    - `.jsonl`: one JSON value a line: an object, a text, or a list of token ids or of messages. Empty lines are none.
    - `.parquet`: one row each.
    - `.csv`: the first row names the columns; `spans`, `messages`, `ids` and `tokens` are read as JSON.
    - `.txt`: one prompt a line, empty lines left out; with `txt="file"` the whole file is one prompt.
    - `.json`: a list of objects or of texts.

    Raises:
        DataError: no such file, or an ending that is not known; while reading, a line that cannot be read.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(
            f"{path}: cannot read {ending or 'a file without ending'}; the endings read are {_known()}."
        )
    if not exists(path.is_file):
        raise DataError(f"{path}: there is no such file.")
    readers: dict[str, Callable[[], Iterator[Row]]] = {
        ".jsonl": lambda: _jsonl(path),
        ".csv": lambda: _csv(path),
        ".txt": lambda: _whole(path) if txt == "file" else _txt(path),
        ".parquet": lambda: _parquet(path),
        ".json": lambda: _one_value(path),
    }
    counts: dict[str, Callable[[], int | None]] = {
        ".jsonl": lambda: _lines_with_text(path),
        ".txt": lambda: 1 if txt == "file" else _lines_with_text(path),
        ".parquet": lambda: _parquet_file(path).metadata.num_rows,
    }
    return Rows(
        kind=ending[1:],
        name=str(path),
        read=readers[ending],
        count=counts.get(ending, lambda: None),
        identity=lambda: (
            {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            | ({"txt": txt} if ending == ".txt" else {})
        ),
    )


ENDINGS = (".jsonl", ".parquet", ".csv", ".txt", ".json")
"""The file endings that can be read."""


def exists(there: Callable[[], bool]) -> bool:
    """What `path.is_file` or `path.is_dir` says; no for a path that none can have (one that is too long, say)."""
    try:
        return there()
    except (OSError, ValueError):
        return False


def _known() -> str:
    return ", ".join(ENDINGS)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, line ends kept."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{path} line {number}: not UTF-8 text; save the file as UTF-8.") from None


def _lines_with_text(path: Path) -> int | None:
    if path.stat().st_size > COUNT_AT_MOST:
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, column {error.colno}: not valid JSON: {error.msg}.") from None
    except ValueError:
        raise DataError(f"{where}: {_TOO_LONG}") from None
    except RecursionError:
        raise DataError(f"{where}: {_TOO_DEEP}") from None


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path} line {number}"
            yield Row(_json(line, where), where)


def _one_value(path: Path) -> Iterator[Row]:
    try:
        rows = list(read_rows(path))
    except RecursionError:
        raise DataError(f"{path}: {_TOO_DEEP}") from None
    except ValueError:
        raise DataError(f"{path}: {_TOO_LONG}") from None
    for row in rows:
        yield Row(row.fields, row.where)


def _txt(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            yield Row(line.removesuffix("\n").removesuffix("\r"), f"{path} line {number}")


def _whole(path: Path) -> Iterator[Row]:
    yield Row("".join(line for _, line in _lines(path)), str(path))


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] | None = None
    last_line = 0
    while True:
        # A cell may span lines, so a row begins on the line after the one before it ended.
        where = f"{path} line {last_line + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            hint = " A .jsonl file takes texts of any length." if "field limit" in str(error) else ""
            raise DataError(f"{path} line {reader.line_num}: not valid CSV: {error}.{hint}") from None
        last_line = reader.line_num
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if "" in header or len(set(header)) != len(header):
                raise DataError(
                    f"{where}: the first row must name every column, each name once; it is {header}."
                )
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{where}: {len(cells)} cells, but the first row names {len(header)} columns "
                f"({', '.join(header)}). Put a cell that contains commas in double quotes."
            )
        fields: dict[str, Any] = dict(zip(header, cells, strict=True))
        for name in _JSON_COLUMNS:
            if name in fields:
                fields[name] = _json(fields[name], f"{where}, column {name!r}") if fields[name] else None
        yield Row(fields, where)


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException

    number = 0
    try:
        with _parquet_file(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(row, f"{path} row {number}")
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} after row {number}: damaged Parquet: {_first_line(error)}") from None


def _parquet_file(path: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except ArrowException as error:
        raise DataError(f"{path}: not a Parquet file: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
