"""`indirect-objects`: pairs of prompts in which two people are named and one gives the other something.

In "When Mary and John went to the store, John gave a drink to" the next word is the *indirect object* (IO),
the person named once: Mary. The *subject* (S) is named twice, at S1 and S2. The corrupt prompt has the other
name at S2, so that the right continuation is the other person; nothing else changes.

The task is that of Wang et al. 2022 (arXiv:2211.00593); templates and word lists are our own. Here the
corrupt prompt is always the S2 swap, and every name is IO and S equally often in each template and order.
All names, places and objects are one token (with their leading space) in SmolLM2's tokenizer, so that the two
prompts of a pair have equally many tokens, and so have all pairs of one template; the tests check this.
"""

from __future__ import annotations

import random
import re

from workbench.datasets.builders import BuiltSet

__all__ = ["build"]

NAMES = (
    *("Mary", "John", "Alice", "James", "Sarah", "Robert", "Emma", "David", "Anna", "Peter"),
    *("Laura", "Michael", "Helen", "Thomas", "Julia", "George", "Susan", "Daniel", "Rachel", "Paul"),
)
PLACES = (
    *("store", "park", "office", "school", "station", "garden", "library", "museum", "market", "hotel"),
    *("restaurant", "bank", "airport", "church", "hospital", "farm", "bakery", "gym", "castle", "studio"),
)
# All begin with a consonant: the templates say "a".
OBJECTS = (
    *("drink", "book", "ring", "letter", "ticket", "key", "flower", "ball", "cup", "coin", "map"),
    *("pen", "bag", "hat", "phone", "camera", "cake", "picture", "note", "card", "watch", "guitar"),
)
# {first} and {second} are the two people in the order in which they are named, {s2} is the subject again.
TEMPLATES = {
    "went": "When {first} and {second} went to the {place}, {s2} gave a {object} to",
    "hour": "After {first} and {second} had spent an hour at the {place}, {s2} handed a {object} to",
    "waiting": "While {first} and {second} were waiting near the {place}, {s2} showed a {object} to",
    "met": "Then {first} and {second} met outside the {place}, and {s2} passed a {object} to",
    "walked": "Today {first} and {second} walked past the {place} together, and {s2} offered a {object} to",
    "worked": "Because {first} and {second} both worked at the {place}, {s2} brought a {object} to",
}
ORDERS = ("ABBA", "BABA")


def build(seed: int = 0) -> BuiltSet:
    """Every template in both orders, each with a fresh ring of all names: 6 x 2 x 20 = 240 pairs."""
    rng = random.Random(seed)
    # The benchmarks use the first record (14 tokens), hence its fixed words.
    places, objects = _shuffled(rng, PLACES, "store"), _shuffled(rng, OBJECTS, "drink")
    records: list[dict] = []
    for template, pattern in TEMPLATES.items():
        for order in ORDERS:
            # Neighbours in a ring: every name is the indirect object once and the subject once.
            ring = _shuffled(rng, NAMES) if records else _shuffled(rng, NAMES, "Mary", "John")
            for io, s in zip(ring, ring[1:] + ring[:1], strict=True):
                n = len(records)
                words = {"place": places[n % len(places)], "object": objects[n % len(objects)]}
                head = {"id": f"io-{n:03d}", "template": template, "order": order}
                records.append(_record(head, pattern, io, s, words))
    return BuiltSet(
        name="indirect-objects",
        kind="pairs",
        licence="Apache-2.0",
        source="Our own templates and word lists; the task is that of Wang et al. 2022 (arXiv:2211.00593)",
        description=(
            "Clean and corrupt prompts whose next word is the person named once; the corrupt prompt repeats "
            "the other name. Both orders (ABBA, BABA), every name equally often right and wrong."
        ),
        seed=seed,
        records=records,
    )


def _record(head: dict[str, str], pattern: str, io: str, s: str, words: dict[str, str]) -> dict:
    places = ("first", "second") if head["order"] == "ABBA" else ("second", "first")
    people = dict(zip(places, (io, s), strict=True))
    clean, spans = _filled(pattern, {**people, **words, "s2": s})
    corrupt, _ = _filled(pattern, {**people, **words, "s2": io})
    return {
        "id": head["id"],
        "clean": clean,
        "corrupt": corrupt,
        "answer": f" {io}",
        "wrong_answer": f" {s}",
        "group": "+".join(sorted((io, s))),
        "template": head["template"],
        "order": head["order"],
        "spans": {"io": spans[places[0]], "s1": spans[places[1]], "s2": spans["s2"]},
    }


def _filled(pattern: str, words: dict[str, str]) -> tuple[str, dict[str, list[int]]]:
    """The pattern with its words, and the characters at which each of them stands."""
    text, spans = "", {}
    for literal, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", pattern):
        text += literal
        if name:
            spans[name] = [len(text), len(text) + len(words[name])]
            text += words[name]
    return text, spans


def _shuffled(rng: random.Random, words: tuple[str, ...], *first: str) -> list[str]:
    """All words in random order, after those that are to come first."""
    rest = [word for word in words if word not in first]
    rng.shuffle(rest)
    return [*first, *rest]
