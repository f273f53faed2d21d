"""`plain-text`: passages of ordinary English for statistics of a language model, from three unlike sources.

| source | licence | Debian package | argument |
| --- | --- | --- | --- |
| King James Bible, 1611 | public domain | `bible-kjv` | `--kjv`: file of all verses |
| Python 3.11 documentation | PSF-2.0 | `python3.11-doc` | `--python-docs`: folder `html/_sources` |
| Declaration of Independence and Constitution of the United States | public domain | `miscfiles` | \
`--us-documents`: folder `/usr/share/state` |

The file of verses is what `echo | bible -f 'Gen1:1-Rev22:21'` prints. The packages can be unpacked without
installing them (`apt-get download NAME; dpkg-deb -x FILE.deb FOLDER`). A passage is a run of whole verses or
whole paragraphs of 60 to 200 words; markup is removed, wording is untouched.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from workbench.datasets.builders import BuiltSet
from workbench.errors import DataError

__all__ = ["build"]

FEWEST, MOST = 60, 200
"""Words of a passage."""
N_KJV, N_PYTHON = 240, 300
MOST_PER_PAGE = 8
"""Passages of one page of the Python documentation."""
PYTHON_FOLDERS = ("tutorial", "howto", "faq", "library", "extending", "using", "installing")
# Roles whose printed text is not what stands in the file (a label, a number).
BARE_REFERENCE = re.compile(r":(ref|doc|pep|rfc|issue|source|sub|sup|math|abbr|numref):`[^`<]*`")

PUBLIC_DOMAIN = "public domain"
KJV = "King James Bible (1611)"
PYTHON = "Python 3.11 documentation"
US = "Declaration of Independence and Constitution of the United States"


def build(kjv: Path, python_docs: Path, us_documents: Path, seed: int = 0) -> BuiltSet:
    """Passages drawn with `seed` from the Bible and the Python documentation; the state documents whole."""
    rng = random.Random(seed)
    passages = [
        *_drawn(rng, list(_kjv(kjv)), N_KJV, KJV),
        *_drawn(rng, list(_python(python_docs, rng)), N_PYTHON, PYTHON),
        *_us(us_documents),
    ]
    return BuiltSet(
        name="plain-text",
        kind="texts",
        licence="public domain; PSF-2.0 (the passages from the Python documentation)",
        source=f"{KJV}; {PYTHON}; {US}",
        description=(
            "Passages of 60 to 200 words of English: scripture, technical prose and law. Groups are books of "
            "the Bible, pages of the documentation and the two state documents."
        ),
        seed=seed,
        records=[{"id": f"text-{n:03d}", **passage} for n, passage in enumerate(passages)],
    )


def _passage(text: str, group: str, reference: str, source: str, licence: str) -> dict[str, str]:
    return {"text": text, "group": group, "reference": reference, "source": source, "licence": licence}


def _drawn(rng: random.Random, passages: list[dict[str, str]], n: int, source: str) -> list[dict[str, str]]:
    if len(passages) < n:
        raise DataError(f"{source}: {len(passages)} passages found, {n} wanted; are the files complete?")
    return [passages[i] for i in sorted(rng.sample(range(len(passages)), n))]


def _runs(pieces: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Consecutive (reference, text) pieces joined until there are at least 60 words: (first, last, text).

    A run that would grow beyond 200 words is given up, and so is a rest that stays too short.
    """
    run: list[tuple[str, str]] = []
    for piece in pieces:
        run.append(piece)
        n_words = sum(len(text.split()) for _, text in run)
        if n_words > MOST:
            run = []
        elif n_words >= FEWEST:
            yield run[0][0], run[-1][0], " ".join(text for _, text in run)
            run = []


def _kjv(path: Path) -> Iterator[dict[str, str]]:
    """Runs of verses from the beginning of each chapter, one a chapter."""
    chapters: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        match = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):(\d+) (.+)", line)
        if match is None:
            raise DataError(
                f"{path} line {number}: expected a verse such as 'Ge1:1 In the …', got {line[:40]!r}."
            )
        book, chapter, verse, text = match.groups()
        chapters.setdefault((book, chapter), []).append((verse, text.strip()))
    for (book, chapter), verses in chapters.items():
        for first, last, text in _runs(verses):
            if text[-1] not in ".?!":
                continue
            verses_named = first if first == last else f"{first}-{last}"
            yield _passage(text, f"kjv/{book}", f"{book} {chapter}:{verses_named}", KJV, PUBLIC_DOMAIN)
            break


def _python(folder: Path, rng: random.Random) -> Iterator[dict[str, str]]:
    """Runs of unindented paragraphs of prose, at most `MOST_PER_PAGE` a page."""
    pages = [page for part in PYTHON_FOLDERS for page in sorted((folder / part).glob("*.rst.txt"))]
    if not pages:
        raise DataError(
            f"{folder}: no page of {', '.join(PYTHON_FOLDERS)} there; expected the folder 'html/_sources' of "
            "Debian's python3.11-doc."
        )
    for page in pages:
        name = f"{page.parent.name}/{page.name.removesuffix('.rst.txt')}"
        found = [
            (section, text)
            for section, paragraphs in _sections(_read(page))
            for _, _, text in _runs(("", paragraph) for paragraph in paragraphs)
        ]
        for i in sorted(rng.sample(range(len(found)), min(MOST_PER_PAGE, len(found)))):
            section, text = found[i]
            yield _passage(text, f"python/{name}", f"{name}: {section}", PYTHON, "PSF-2.0")


def _sections(rst: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, consecutive paragraphs of prose) of a reStructuredText page; anything else ends a run."""
    heading, run = "", []
    for block in re.split(r"\n\s*\n", rst):
        lines = block.strip("\n").split("\n")
        title = _title(lines)
        prose = None if title else _prose(lines)
        if prose is not None:
            run.append(prose)
            continue
        if run:
            yield heading, run
        heading, run = title or heading, []
    if run:
        yield heading, run


def _title(lines: list[str]) -> str:
    """The text of a heading: a line with a rule of one punctuation mark under it (and perhaps over it)."""
    for text, rule in pairwise(lines):
        if re.fullmatch(r"([=\-*~^\"'#+.])\1{2,}", rule.strip()) and re.match(r"\w|:|`", text.strip()):
            return _without_markup(text.strip())
    return ""


def _prose(lines: list[str]) -> str | None:
    """The paragraph as plain text; None for lists, directives, code, and what markup would be left in."""
    if any(not re.match(r"[A-Za-z`*:\"(]", line) for line in lines):
        return None
    rst = " ".join(line.strip() for line in lines)
    if BARE_REFERENCE.search(rst):
        return None
    text = _without_markup(rst)
    if not re.match(r"[A-Z\"]", text) or text[-1] not in ".?!" or re.search(r"[`*|<>{}\\=_@]|::|:\w+:", text):
        return None
    return text


def _without_markup(text: str) -> str:
    text = re.sub(r":[\w:+-]+:`~[\w.]*\.(\w+)`", r"\1", text)  # :class:`~package.Name` prints Name
    text = re.sub(
        r":[\w:+-]+:`[!~.]*([^`<]+?)(?:\s*<[^`>]*>)?`", r"\1", text
    )  # :func:`x`, :ref:`words <target>`
    text = re.sub(r"``([^`]*)``", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*(?:<[^`>]*>)?`__?", r"\1", text)  # `words <address>`_
    text = re.sub(r"\*\*?([^\s*](?:[^*]*[^\s*])?)\*\*?", r"\1", text)
    text = re.sub(r"\s*---\s*", " – ", text)
    return re.sub(r"\s+", " ", text).strip()


def _us(folder: Path) -> Iterator[dict[str, str]]:
    """Every passage of both documents."""
    for name, stop in (("us-declaration", "The signers of the Declaration"), ("us-constitution", "")):
        plain, packed = folder / name, folder / f"{name}.gz"
        text = _read(packed if packed.is_file() else plain)
        if stop:
            text = text.split(stop)[0]
        n = 0
        for paragraphs in _between_headings(text):
            for _, _, passage in _runs(("", paragraph) for paragraph in paragraphs):
                n += 1
                yield _passage(passage, name, f"{name} passage {n}", US, PUBLIC_DOMAIN)


def _between_headings(text: str) -> Iterator[list[str]]:
    """The paragraphs that follow each heading; a heading (or a signature) does not end like a sentence."""
    run: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"\s+", " ", block).strip()
        if re.search(r"[a-z][.;,:]$", paragraph) and len(paragraph.split()) > 5:
            run.append(paragraph)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
