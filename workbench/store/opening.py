"""What is checked before a writer may touch a folder, and what it clears away there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from workbench.errors import DataError
from workbench.progress import Silent
from workbench.store.manifest import DTYPES, LOCK, LOG, MANIFEST, PARTS, Manifest, shard_files
from workbench.store.records import SHARD_FILE, record_numbers

FOLDERS = ("shards", "index", "prompts")
PART_FILE = "part.json"
"""What makes a part (`parts.py`) exist."""


class RefuseToWait(Silent):
    """Progress that turns waiting for the lock into an error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stage(self, name: str, total: int) -> None:  # noqa: ARG002
        """Called where the lock is held by somebody else."""
        raise DataError(
            f"Another process is writing to {str(self._folder)!r} (it holds {LOCK!r} there): wait for it to end, or "
            "choose another folder."
        )


def check_manifest(manifest: Manifest) -> None:
    """Refuse a manifest that no store can have: no sites, one twice, an unknown dtype."""
    wrong = [site.name for site in manifest.sites if site.dtype not in DTYPES]
    if wrong:
        raise DataError(
            f"Sites {wrong} have dtypes that a store does not hold: choose one of {', '.join(DTYPES)}."
        )
    if not manifest.sites or manifest.rows_per_shard < 1:
        raise DataError("A store needs at least one site and one row per shard.")
    if len({site.name for site in manifest.sites}) != len(manifest.sites):
        raise DataError("A site is asked for twice: name each once.")


def refuse_existing(folder: Path, *, resume: bool) -> None:
    """Refuse a store that is not to be gone on with, and a folder that holds something else.

    Without a manifest it may hold what a writer that was killed early leaves, nothing more.
    """
    if (folder / MANIFEST).exists() and not resume:
        raise DataError(
            f"{str(folder)!r} holds an activation store already: pass resume=True to go on with it, or choose "
            "another folder."
        )
    if (folder / MANIFEST).exists() or not folder.is_dir():
        return
    ours = {LOCK, LOG, PARTS, *FOLDERS}
    foreign = [p.name for p in folder.iterdir() if p.name not in ours and not _is_scratch(p)]
    if foreign:
        raise DataError(
            f"{str(folder)!r} is no activation store and not empty ({', '.join(sorted(foreign)[:3])}): choose a new "
            "folder."
        )


def nothing_in(folder: Path, existing: Manifest) -> bool:
    """Whether a store was begun and ended before its first shard or part, so that no setting of it matters."""
    parts = any((folder / PARTS).glob(f"*/{PART_FILE}"))
    return not existing.complete and not parts and not record_numbers(folder)


def refuse_difference(folder: Path, existing: Manifest, asked: Manifest) -> None:
    """Refuse to go on with a store that was begun with other sites, model, tokenizer or settings."""
    found = list(differences(existing, asked))
    if found:
        raise DataError(
            f"{str(folder)!r} was begun with something else: {'; '.join(found)}. Ask for the same to go on, or choose "
            "another folder."
        )


def differences(existing: Manifest, asked: Manifest) -> Iterator[str]:
    """What differs between two manifests, of all that decides the bytes: name and both values."""
    counts = ("model", "n_rows", "n_prompts", "dataset_fingerprint")
    for field in fields(Manifest):
        if field.name not in counts:
            yield from _leaves(field.name, _plain(existing, field.name), _plain(asked, field.name))


def _plain(manifest: Manifest, name: str) -> Any:
    value = getattr(manifest, name)
    if name == "sites":
        return {s.name: {"shape": list(s.shape), "dtype": s.dtype, "place": i} for i, s in enumerate(value)}
    return json.loads(json.dumps(value))


def _leaves(name: str, there: Any, here: Any) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            yield from _leaves(f"{name}.{key}", there.get(key, "absent"), here.get(key, "absent"))
    elif there != here:
        there, here = ("present" if isinstance(v, dict) else v for v in (there, here))
        yield f"{name} is {there!r} there and {here!r} here"


def other_data(folder: Path, here: str, there: str) -> DataError:
    """The error for a resume with other prompts than those the store was begun with."""
    return DataError(
        f"{str(folder)!r} was begun with another data set ({there}; now {here}): give the same data to go on, or "
        "collect into another folder."
    )


def remove_leftovers(folder: Path, finished: int, *, keep_parts: bool = False) -> None:
    """Remove what writers that were killed left: files of the unfinished shard, scratch folders, parts."""
    if not keep_parts:
        shutil.rmtree(folder / PARTS, ignore_errors=True)
    keep = {name for number in range(finished) for name in shard_files(number).values()}
    inside = [path for name in FOLDERS for path in (folder / name).glob("*")]
    for path in [*folder.glob(f".{MANIFEST}.tmp-*"), *inside]:
        if _is_scratch(path):
            shutil.rmtree(path)
        elif SHARD_FILE.fullmatch(path.name) and path.relative_to(folder).as_posix() not in keep:
            path.unlink()


def _is_scratch(path: Path) -> bool:
    """Whether a path is a scratch folder of `workbench.files`; under our lock no living writer has one here."""
    return path.name.startswith(".") and ".tmp-" in path.name and path.is_dir()
