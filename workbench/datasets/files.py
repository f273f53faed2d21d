"""Reading a user's own file of prompts: `.jsonl`, `.json`, `.csv` or `.txt`.

Each reader gives the fields of every record with the place it stood at ("my.csv line 7"), so that
whatever is wrong with it later can be said with file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import DataError

__all__ = ["ENDINGS", "Row", "read_rows"]


@dataclass(frozen=True)
class Row:
    """The fields of one record, and where in which file it stands."""

    fields: Mapping[str, Any]
    where: str
    default_id: str
    """The record's id if the file gives none: the number of its line."""


def read_rows(path: Path) -> list[Row]:
    """Every record of a file, in order. Lines that are empty are not records.

    - `.jsonl`: one JSON object per line.
    - `.json`: a list of objects, or a list of texts.
    - `.csv`: the first row names the columns.
    - `.txt`: one prompt per line.

    Raises `DataError` naming file and line for anything that cannot be read as that.

    >>> read_rows(Path("my-prompts.txt"))[0].fields                                    # doctest: +SKIP
    {'text': 'The first line of the file'}
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot read {path.suffix or 'a file without ending'}; {_endings()}.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a file: {_endings()}.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    rows = reader(path, _text(path))
    if not rows:
        raise DataError(f"{path}: there is no record in it.")
    return rows


def _endings() -> str:
    return f"the endings read are {', '.join(_READERS)}"


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: not UTF-8 text; save the file as UTF-8.") from None


def _lines(text: str) -> list[str]:
    # Not str.splitlines: it also breaks at characters that may stand inside a JSON string or a prompt.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _jsonl(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        value = _json_value(line, where)
        if not isinstance(value, dict):
            raise DataError(f"{where}: a {type(value).__name__}; expected one JSON object per line.")
        _refuse_half_characters(value, line, where)
        rows.append(Row(value, where, str(number)))
    return rows


def _json(path: Path, text: str) -> list[Row]:
    value = _json_value(text, str(path), lines=True)
    if not isinstance(value, list):
        raise DataError(f"{path}: a {type(value).__name__}; expected a list of objects or of texts.")
    rows = []
    for number, item in enumerate(value, start=1):
        where = f"{path} record {number}"
        if not isinstance(item, dict | str):
            raise DataError(f"{where}: a {type(item).__name__}; expected an object or a text.")
        _refuse_half_characters(item, text, where)
        rows.append(Row({"text": item} if isinstance(item, str) else item, where, str(number)))
    return rows


def _json_value(text: str, where: str, *, lines: bool = False) -> Any:
    """`lines`: the text is a whole file, so its line is said too."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{where} line {error.lineno}" if lines else where
        raise DataError(f"{place}, column {error.colno}: not valid JSON: {error.msg}.") from None
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{where}: cannot be read as JSON: {error}.") from None


def _refuse_half_characters(value: Any, text: str, where: str) -> None:
    """An emoji is two escapes in JSON; what was cut between them is no text, and no tokenizer takes it."""
    if not _SURROGATE.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start : error.end])
        raise DataError(
            f"{where}: holds half a character, {half}, as a text that was cut inside an emoji does; remove it."
        ) from None


def _csv(path: Path, text: str) -> list[Row]:
    # The module's limit for a cell is one for all of its users: it is only ever raised, so nobody is hurt.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    rows = []
    last_line = 0
    try:
        for cells in reader:
            # A cell may span lines, so a row begins on the line after the one before it ended.
            number, last_line = last_line + 1, reader.line_num
            if not cells:
                continue
            if header is None:
                header = _csv_header(path, number, cells)
                continue
            where = f"{path} line {number}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, but the first row names {len(header)} columns "
                    f"({', '.join(header)}). Put a cell that contains commas in double quotes."
                )
            rows.append(Row(_csv_fields(header, cells, where), where, str(number)))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: not valid CSV: {error}.") from None
    return rows


def _csv_header(path: Path, number: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "" in names or len(set(names)) != len(names):
        raise DataError(
            f"{path} line {number}: the first row must name every column, each name once; it is {names}."
        )
    return names


def _csv_fields(header: list[str], cells: list[str], where: str) -> dict[str, Any]:
    fields: dict[str, Any] = dict(zip(header, cells, strict=True))
    if fields.get("spans"):
        fields["spans"] = _json_value(fields["spans"], f"{where}, column 'spans'")
    return fields


def _txt(path: Path, text: str) -> list[Row]:
    return [
        Row({"text": line}, f"{path} line {number}", str(number))
        for number, line in enumerate(_lines(text), start=1)
        if line.strip()
    ]


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".txt": _txt,
}
ENDINGS = tuple(_READERS)
"""The file endings that can be read."""
