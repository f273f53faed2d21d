"""`sentiment`: short sentences that praise or complain, in minimal pairs that differ in one adjective.

Every sentence is a template filled with a thing and an adjective of one domain. Three of the eight templates
negate ("was not at all boring" is positive), so that the adjective alone does not give the label. Templates
and word lists are our own.
"""

from __future__ import annotations

import random

from workbench.datasets.builders import BuiltSet

__all__ = ["build"]

# domain: (things, (positive adjective, negative adjective) pairs); every adjective fits every thing and
# can follow "not at all".
DOMAINS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "film": (
        ("film", "script", "ending", "opening scene", "documentary"),
        (
            *(("gripping", "boring"), ("moving", "flat"), ("original", "predictable")),
            *(("clever", "clumsy"), ("captivating", "dreary"), ("memorable", "forgettable")),
        ),
    ),
    "restaurant": (
        ("soup", "main course", "dessert", "breakfast", "fish"),
        (
            *(("delicious", "disgusting"), ("tasty", "bland"), ("fresh", "stale")),
            *(("appetizing", "revolting"), ("superb", "inedible"), ("wonderful", "horrible")),
        ),
    ),
    "book": (
        ("novel", "first chapter", "story", "biography", "poem"),
        (
            *(("gripping", "tedious"), ("absorbing", "dreary"), ("inspiring", "dull")),
            *(("thoughtful", "shallow"), ("elegant", "clumsy"), ("enjoyable", "tiresome")),
        ),
    ),
    "hotel": (
        ("room", "lobby", "bathroom", "breakfast hall", "suite"),
        (
            *(("clean", "dirty"), ("comfortable", "uncomfortable"), ("spotless", "filthy")),
            *(("pleasant", "unpleasant"), ("inviting", "shabby"), ("charming", "gloomy")),
        ),
    ),
    "product": (
        ("camera", "phone", "laptop", "kettle", "backpack"),
        (
            *(("reliable", "unreliable"), ("sturdy", "flimsy"), ("impressive", "disappointing")),
            *(("handy", "useless"), ("stylish", "ugly"), ("excellent", "terrible")),
        ),
    ),
    "concert": (
        ("concert", "performance", "singer", "orchestra", "first song"),
        (
            *(("thrilling", "boring"), ("dazzling", "dreary"), ("brilliant", "mediocre")),
            *(("enchanting", "tiresome"), ("polished", "sloppy"), ("wonderful", "awful")),
        ),
    ),
    "journey": (
        ("flight", "train ride", "bus trip", "boat trip", "drive home"),
        (
            *(("pleasant", "unpleasant"), ("enjoyable", "miserable"), ("relaxing", "exhausting")),
            *(("smooth", "chaotic"), ("delightful", "dreadful"), ("comfortable", "cramped")),
        ),
    ),
    "class": (
        ("lecture", "workshop", "course", "lesson", "seminar"),
        (
            *(("clear", "confusing"), ("inspiring", "tedious"), ("helpful", "pointless")),
            *(("lively", "dull"), ("fascinating", "boring"), ("rewarding", "frustrating")),
        ),
    ),
}
# name: (sentence, whether it turns the adjective's judgement round)
TEMPLATES: dict[str, tuple[str, bool]] = {
    "was": ("The {thing} was {word}.", False),
    "found": ("I found the {thing} {word}.", False),
    "agreed": ("Everyone agreed that the {thing} was {word}.", False),
    "price": ("For the price, the {thing} seemed really {word}.", False),
    "sister": ("My sister called the {thing} {word}, and I think she is right.", False),
    "not-at-all": ("The {thing} was not at all {word}.", True),
    "nobody": ("Nobody could call the {thing} {word}.", True),
    "never-say": ("I would never say that the {thing} was {word}.", True),
}
PAIRS_PER_CELL = 3
"""Minimal pairs for each template in each domain; each adjective pair then serves four templates."""


def build(seed: int = 0) -> BuiltSet:
    """8 domains x 8 templates x 3 minimal pairs = 384 sentences, half of them positive in every cell."""
    rng = random.Random(seed)
    records: list[dict] = []
    for domain, (things, adjectives) in DOMAINS.items():
        ring = list(adjectives)
        rng.shuffle(ring)
        for place, template in enumerate(TEMPLATES):
            chosen_things = rng.sample(things, PAIRS_PER_CELL)
            for i, thing in enumerate(chosen_things):
                pair = ring[(place * PAIRS_PER_CELL + i) % len(ring)]
                records += _minimal_pair(len(records), domain, template, thing, pair)
    return BuiltSet(
        name="sentiment",
        kind="statements",
        licence="Apache-2.0",
        source="Our own templates and word lists",
        description=(
            "Short positive and negative sentences about eight kinds of thing, in minimal pairs that differ "
            "in one adjective; three of eight templates negate it. Groups are template and domain."
        ),
        seed=seed,
        records=records,
    )


def _minimal_pair(n: int, domain: str, template: str, thing: str, pair: tuple[str, str]) -> list[dict]:
    sentence, negated = TEMPLATES[template]
    ids = (f"sent-{n:03d}", f"sent-{n + 1:03d}")
    labels = ("negative", "positive") if negated else ("positive", "negative")
    return [
        {
            "id": ids[i],
            "text": sentence.format(thing=thing, word=pair[i]),
            "label": labels[i],
            "group": f"{template}/{domain}",
            "template": template,
            "negated": negated,
            "domain": domain,
            "word": pair[i],
            "counterpart": ids[1 - i],
        }
        for i in (0, 1)
    ]
