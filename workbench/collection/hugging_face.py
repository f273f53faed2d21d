"""Rows of a Hugging Face data set: a folder that `datasets` wrote, a folder of files, or a name on the Hub.

A folder written by `save_to_disk` is memory-mapped. Everything else goes through `load_dataset(streaming=True)`,
which reads rows as they are asked for and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.collection.rows import Row, Rows
from workbench.errors import DataError, did_you_mean
from workbench.files import sha256_of

__all__ = ["folder_rows", "hub_rows", "is_hub_id"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[^:/]+){0,2}")
_WRITTEN_BY_DATASETS = ("state.json", "dataset_dict.json")


def is_hub_id(name: str) -> bool:
    """Whether a name looks like `org/name`, `org/name:split` or `org/name:config:split`."""
    return _HUB_ID.fullmatch(name) is not None


def folder_rows(folder: Path, split: str | None) -> Rows:
    """The rows of a folder: one that `datasets` wrote, or one of parquet, jsonl, csv or text files.

    Raises:
        DataError: nothing that can be read is in it, there is no such split, or it has several and none is asked for.
    """
    import datasets

    name = str(folder) + (f":{split}" if split else "")
    written = any((folder / mark).is_file() for mark in _WRITTEN_BY_DATASETS)
    try:
        if written:
            found: Any = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder.resolve()), streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{folder}: not a folder of data: {_first_line(error)}. Expected one written by `save_to_disk`, or one of "
            "parquet, jsonl, csv or txt files."
        ) from None
    dataset = _one_split(found, str(folder), split)

    def identity() -> dict[str, Any]:
        if written:
            return {"fingerprint": dataset._fingerprint, "split": split}
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {"split": split, "files": {str(p.relative_to(folder)): sha256_of(p) for p in files}}

    return Rows(
        kind="datasets" if written else "folder",
        name=name,
        read=lambda: _read(dataset, name),
        count=lambda: len(dataset) if written else None,
        identity=identity,
    )


def hub_rows(name: str) -> Rows:
    """The rows of `org/name`, `org/name:split` or `org/name:config:split` on the Hub, streamed.

    Raises:
        DataError: it cannot be reached or does not exist, needs a configuration, or has no such split.
    """
    import datasets

    repository, *rest = name.split(":")
    config, split = (rest[0], rest[1]) if len(rest) == 2 else (None, rest[0] if rest else None)
    try:
        found: Any = datasets.load_dataset(repository, config, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name!r} is no file, folder or prompt set here, and as a data set of the Hugging Face Hub it could not "
            f"be opened: {_first_line(error)}. Check the name (org/name, org/name:split or org/name:config:split) and "
            "the connection (HF_HUB_OFFLINE), or download the data and give its folder."
        ) from None
    dataset = _one_split(found, repository if config is None else f"{repository}:{config}", split)
    return Rows(
        kind="hub",
        name=name,
        read=lambda: _read(dataset, name),
        identity=lambda: {"config": config, "split": split},
    )


def _one_split(found: Any, name: str, split: str | None) -> Any:
    if not isinstance(found, dict):  # a single data set has no splits
        if split is not None:
            raise DataError(f"{name} has no splits, so there is no {split!r}: give {name!r} alone.")
        return found
    there = [str(s) for s in found]
    if split is None and len(there) == 1:
        return found[there[0]]
    if split is None:
        raise DataError(
            f"{name} has the splits {', '.join(there)}: choose one, for instance '{name}:{there[0]}'."
        )
    if split not in there:
        raise DataError(
            f"{name} has no split {split!r}.{did_you_mean(split, there)} Its splits are {', '.join(there)}."
        )
    return found[split]


def _read(dataset: Any, name: str) -> Iterator[Row]:
    from datasets.exceptions import DatasetsError

    rows = iter(dataset)
    number = 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except (OSError, ValueError, DatasetsError) as error:
            raise DataError(f"{name} row {number}: cannot be read: {_first_line(error)}") from None
        yield Row(row, f"{name} row {number}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
