"""Was an instruction followed? Checks that need no judge.

    upper case      upper-case letters / letters that have a case                    ("answer in upper case")
    sentences       number of sentences, the last one counted although unfinished
    one sentence    1 if the text is exactly one finished sentence, else 0           ("answer in one sentence")

"Answer in French" is `LanguageIdentifier.scorer("fr")`. A sentence ends with `.`, `!`, `?` or `…` before a space or the
end; not after a capital alone (`J. S. Bach`) or a common abbreviation. A line break also ends one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_END = re.compile(r"[.!?…]+[\"'»”’)]*(?=\s|$)")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e|approx|No)$")
_LIST_NUMBER = re.compile(r"(?:^|\s)\d+$")


def sentences(text: str) -> list[str]:
    """The sentences of a text, the last one perhaps unfinished.

    Example:
        >>> sentences("Dr. Bach came. He sat down and")
        ['Dr. Bach came.', 'He sat down and']
    """
    found: list[str] = []
    for line in re.split(r"\n+", text.strip()):
        begin = 0
        for end in _END.finditer(line):
            before = line[begin : end.start()]
            if end.group() == "." and (_ABBREVIATION.search(before) or _LIST_NUMBER.fullmatch(before)):
                continue
            found.append(line[begin : end.end()])
            begin = end.end()
        found.append(line[begin:])
    return [one.strip() for one in found if any(c.isalnum() for c in one)]


@dataclass(frozen=True)
class UpperCase:
    """Share of upper-case letters among those that have a case; NaN for a text without any."""

    name: str = "share of upper-case letters"
    units: str = ""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[text] float64 in 0–1."""
        counts = [(sum(c.isupper() for c in t), sum(c.isupper() or c.islower() for c in t)) for t in texts]
        return np.array([up / n if n else np.nan for up, n in counts])


@dataclass(frozen=True)
class SentenceCount:
    """Number of sentences; NaN for an empty text."""

    name: str = "sentences"
    units: str = ""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[text] float64."""
        return np.array([float(n) if (n := len(sentences(t))) else np.nan for t in texts])


@dataclass(frozen=True)
class OneSentence:
    """1 where the text is one finished sentence and nothing else, else 0; NaN for an empty text.

    Give the generation room for more: a text that the token limit cut inside its first sentence is unfinished, hence 0.
    """

    name: str = "exactly one sentence"
    units: str = ""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[text] 0 or 1."""
        return np.array([self._one(t) for t in texts])

    @staticmethod
    def _one(text: str) -> float:
        found = sentences(text)
        if not found:
            return float("nan")
        return float(len(found) == 1 and bool(re.search(r"[.!?…][\"'»”’)]*$", text.strip())))
