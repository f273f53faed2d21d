"""The library: a folder of directions by name, for scripts, the command line and the dashboard alike.

    LIBRARY/NAME.safetensors     a direction or a set (see `storage`), with tags and date in metadata `library`

LIBRARY is `$WORKBENCH_DIRECTIONS`, or `directions` in the user's data folder of the system. There is no index to get
out of step: a listing reads the headers. Files are complete or absent, and whatever changes the folder holds a lock, so
several processes may save, rename and delete at once; of two that save one name the second is told so.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.directions import storage
from workbench.directions.direction import Direction
from workbench.directions.entries import Entry, kept, line
from workbench.directions.sets import DirectionSet
from workbench.directions.sets import load as load_file
from workbench.errors import DataError, did_you_mean
from workbench.files import cannot_write, locked

SUFFIX = ".safetensors"
LOCK = ".lock"
_NAME = re.compile(r"\w[\w .+=@,()-]{0,99}")
MOST_BYTES = 255 - len(f".{SUFFIX}.tmp-01234567")
"""File systems take names of 255 bytes; while a file is written it stands in a folder of a longer name (`files`)."""


def library(path: str | Path | None = None) -> Library:
    """The library in a folder; by default the user's own.

    Args:
        path: the folder; `$WORKBENCH_DIRECTIONS` by default, else `directions` in the user's data folder.

    Example:
        >>> mine = wb.directions.library()
        >>> mine.save("truth", direction, tags=["probe"])
        >>> mine.load("truth");  mine.search("probe resid_post")
    """
    return Library(default_folder() if path is None else Path(path).expanduser())


def default_folder() -> Path:
    """`$WORKBENCH_DIRECTIONS`, or `directions` in the user's data folder (on Linux under `$XDG_DATA_HOME`)."""
    if chosen := os.environ.get("WORKBENCH_DIRECTIONS"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_data_path("latent-workbench") / "directions"


class Library:
    """A folder of named directions; made by `library`. The folder is made when something is saved.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Library({str(self.folder)!r}, {len(self)} directions)"

    def __len__(self) -> int:
        return len(self.names())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _is_name(name) and self._file(name).is_file()

    def names(self) -> list[str]:
        """What there is, in alphabetical order."""
        if not self.folder.is_dir():
            return []
        found = (p.name.removesuffix(SUFFIX) for p in self.folder.iterdir() if p.name.endswith(SUFFIX))
        return sorted((name for name in found if _is_name(name)), key=str.casefold)

    def save(
        self,
        name: str,
        direction: Direction | DirectionSet,
        *,
        tags: Iterable[str] = (),
        replace: bool = False,
    ) -> Path:
        """Put a direction (or a set) into the library.

        Args:
            name: up to 100 letters, digits and `_ - . + = @ , ( )` and spaces (229 bytes of UTF-8); it begins with a
                letter or digit.
            direction: what is saved; what was saved under that name keeps its tags only if they are given again.
            tags: words to find it by.
            replace: write over what has that name.

        Raises:
            DataError: a name or tag that cannot be used, or one that is taken.
            WorkbenchError: the system refuses to write there.
        """
        name, words = checked_name(name), _tags(tags)
        with self._locked():
            taken = self._taken(name)
            if taken is not None and not (replace and taken == name):
                raise DataError(
                    f"The library has a direction {taken!r} already: choose another name, or replace it "
                    "(replace=True, `--replace`)."
                    if taken == name
                    else f"The library has {taken!r}, which differs from {name!r} in case only: choose another name."
                )
            return self._write(self._file(name), direction, words)

    def load(self, name: str) -> Direction | DirectionSet:
        """A direction or set by name, bit for bit. Raises `DataError` for an unknown or damaged one."""
        return load_file(self._existing(name))

    def direction(self, name: str) -> Direction:
        """A direction by name; a set of one is one. Raises `DataError` where it is a set of several."""
        found = self.load(name)
        if isinstance(found, DirectionSet):
            if len(found) > 1:
                raise DataError(
                    f"{name!r} is a set of {len(found)} directions, here one is needed: take it from "
                    f"`library.load({name!r})` by number, name or site."
                )
            return found[0]
        return found

    def entries(
        self, *, site: str | None = None, tag: str | None = None, fingerprint: str | None = None
    ) -> list[Entry]:
        """A line for each, or for those at a site, with a tag, of a model. Damaged files are listed with `problem`."""
        every = [line(name, self._file(name)) for name in self.names()]
        every = [e for e in every if not e.problem or Path(e.path).exists()]  # not what was removed meanwhile
        kept = [e for e in every if site is None or site in e.sites]
        kept = [e for e in kept if tag is None or tag in e.tags]
        return [e for e in kept if fingerprint is None or e.fingerprint == fingerprint]

    def entry(self, name: str) -> Entry:
        """The line of one; only the file's header is read. Raises `DataError` for an unknown one."""
        return line(name, self._existing(name))

    def search(self, text: str) -> list[Entry]:
        """Entries in which every word of a text occurs: in name, title, site, source, model or tags."""
        words = text.casefold().split()
        found = []
        for e in self.entries():
            told = " ".join([e.name, e.title, *e.sites, e.source, e.model, *e.tags]).casefold()
            if all(word in told for word in words):
                found.append(e)
        return found

    def rename(self, name: str, new: str) -> Path:
        """Give another name. Raises `DataError` for an unknown one, or where the new name is taken."""
        new = checked_name(new)
        self._existing(name)
        with self._locked():
            path, taken = self._existing(name), self._taken(new)
            if taken is not None and taken != name:
                raise DataError(f"The library has a direction {taken!r} already: choose another name.")
            try:
                path.rename(self._file(new))
            except OSError as error:
                raise cannot_write(self._file(new), error) from error
        return self._file(new)

    def delete(self, name: str) -> None:
        """Remove one for good. Raises `DataError` for an unknown one."""
        self._existing(name)
        with self._locked():
            path = self._existing(name)
            try:
                path.unlink()
            except OSError as error:
                raise cannot_write(path, error) from error

    def tag(self, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> tuple[str, ...]:
        """Add and remove tags; returns those it has then."""
        added, gone = _tags(add), set(_tags(remove))
        with self._locked():
            path = self._existing(name)
            load_file(path)  # what is damaged is left as it is
            metadata, tensors = storage.read(path)
            known = kept(metadata)
            tags = tuple(t for t in dict.fromkeys([*known.get("tags", ()), *added]) if t not in gone)
            storage.write(path, tensors, {**metadata, "library": json.dumps({**known, "tags": tags})})
        return tags

    # -- inside ----------------------------------------------------------------------------------------

    def _locked(self) -> Any:
        return locked(self.folder / LOCK)

    def _file(self, name: str) -> Path:
        return self.folder / f"{unicodedata.normalize('NFC', name)}{SUFFIX}"

    def _existing(self, name: str) -> Path:
        path = self._file(checked_name(name))
        if not path.is_file():
            names = self.names()
            held = f"it has {len(names)}" if names else "it is empty"
            raise DataError(
                f"The library {str(self.folder)!r} has no direction {name!r} ({held}).{did_you_mean(name, names)}"
            )
        return path

    def _taken(self, name: str) -> str | None:
        """The entry that has this name, or one that differs in case only (some file systems cannot hold both)."""
        same = [n for n in self.names() if n.casefold() == name.casefold()]
        return name if name in same else (same[0] if same else None)

    def _write(self, path: Path, found: Direction | DirectionSet, tags: tuple[str, ...]) -> Path:
        extra = {"library": json.dumps({"tags": tags, "saved": _now()})}
        if isinstance(found, Direction):
            header = storage.as_json(storage.header_of(found), "Settings and provenance of a direction")
            return storage.write(path, {"vector": found.vector}, {"direction": header, **extra})
        if not isinstance(found, DirectionSet):
            raise DataError(f"A library holds directions and sets of them, not {type(found).__name__}.")
        return storage.write(path, found.tensors(), {"direction_set": found.header(), **extra})


def _is_name(name: str) -> bool:
    if not _NAME.fullmatch(name) or name.endswith((".", " ")) or ".." in name:
        return False
    return len(unicodedata.normalize("NFC", name).encode()) <= MOST_BYTES


def checked_name(name: str) -> str:
    plain = unicodedata.normalize("NFC", name) if isinstance(name, str) else name
    if not isinstance(plain, str) or not _is_name(plain):
        raise DataError(
            f"{name!r} cannot be the name of a direction: use up to 100 letters, digits, spaces and . _ + = @ , ( ) - "
            f"(at most {MOST_BYTES} bytes of UTF-8: 76 Chinese characters), beginning with a letter or digit, without "
            "`..` and without a path."
        )
    return plain


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    given = [tags] if isinstance(tags, str) else list(tags)
    for tag in given:
        if not isinstance(tag, str) or not tag.strip() or not tag.isprintable() or "," in tag:
            raise DataError(f"{tag!r} cannot be a tag: give a word or a few, without commas.")
    return tuple(dict.fromkeys(tag.strip() for tag in given))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
