"""Known answers about truth: which claims of the literature hold on smollm2-135m, each with its number and controls.

Statements about capitals (true, false, negated, about invented countries) and, made from the same countries, about
continents; the last token's residual stream. Rows: a verdict for each claim, the probe and its controls by layer, the
transfer matrix. The rule of every verdict is in `known_truth_claims` and printed beside it:

    holds                    the claim as the paper states it
    holds in kind            the direction of the effect, not its size
    does not hold            neither
    cannot be tested         it speaks of larger models

Goals check the instruments and not the model: controls are at chance, and the probe is above them.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import Goal, Report, machine, main
from benchmarks.known_truth_claims import CLAIMS, Facts, interval

CONTINENTS = {
    "capital-of": "{country} is a country in {continent}.",
    "is-the-capital": "{country} lies in {continent}.",
}
"""Templates of the second topic."""


def statements(seed: int = 0) -> tuple[list[str], list[str], list[str], list[set[str]]]:
    """Texts, labels, groups and the sets each text is in. Groups join circles of countries over both topics.

    For the continents two circles of different continents are joined, and their countries exchange continents: every
    country, and every continent, is then as often in a true as in a false statement of its own group.
    """
    import workbench as wb

    capitals = wb.datasets.load("capitals")
    columns = {
        name: capitals.column(name)
        for name in ("made_up", "negated", "template", "country", "continent", "group")
    }
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    real = [one for one in records if not one["made_up"]]
    continent = {one["country"]: one["continent"] for one in real}
    of_circle: dict[str, list[str]] = {}
    for country, name in {one["country"]: one["group"] for one in real}.items():
        of_circle.setdefault(name, []).append(country)
    pairs = _pairs_of_circles(of_circle, continent, seed)
    joined = {name: f"{a} | {b}" for a, b in pairs for name in (a, b)}
    texts, labels = list(capitals.texts), list(capitals.labels)
    groups = [str(joined.get(one["group"], one["group"])) for one in records]
    kinds: list[set[str]] = []
    for one in records:
        if one["made_up"]:
            kinds.append({"made up, negated" if one["negated"] else "made up"})
        else:
            kinds.append(
                {"plain + negated"} | ({"negated"} if one["negated"] else {"plain", one["template"]})
            )
    for a, b in pairs:
        size = min(len(of_circle[a]), len(of_circle[b]))
        for country in of_circle[a][:size] + of_circle[b][:size]:
            for place in (continent[of_circle[a][0]], continent[of_circle[b][0]]):
                for pattern in CONTINENTS.values():
                    texts.append(pattern.format(country=country, continent=place))
                    labels.append(str(place == continent[country]).lower())
                    groups.append(joined[a])
                    kinds.append({"continents"})
    return texts, labels, groups, kinds


def _pairs_of_circles(
    of_circle: dict[str, list[str]], continent: dict[str, str], seed: int
) -> list[tuple[str, str]]:
    """Circles of different continents, two by two; those of the most frequent continent that are left stay alone."""
    left: dict[str, list[str]] = {}
    for name in sorted(of_circle):
        left.setdefault(continent[of_circle[name][0]], []).append(name)
    draw = random.Random(seed)
    for names in left.values():
        draw.shuffle(names)
    pairs = []
    while sum(bool(names) for names in left.values()) > 1:
        first, second = sorted(left, key=lambda c: (-len(left[c]), c))[:2]
        pairs.append((left[first].pop(), left[second].pop()))
    return pairs


def measure(threads: int, seed: int = 0) -> tuple[Facts, dict[str, float]]:
    """Everything that the claims are judged by."""
    import torch

    import workbench as wb
    from probes import trust

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    model = wb.load_model("smollm2-135m", device="cpu", dtype="float32")
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    plain = wb.datasets.load("capitals").filter(label=["true", "false"], negated=False)
    options = {"kind": "ridge", "penalty": PENALTY, "seed": seed}
    report = trust.trust_report(model, plain, n_control=3, **options)
    layer = int(report.summary["best"]["layer"])
    seconds["report"] = time.perf_counter() - started
    started = time.perf_counter()
    texts, labels, groups, kinds = statements(seed)
    acts = wb.collect(model, texts, "blocks.*.hook_resid_post", -1)
    seconds["collect"] = time.perf_counter() - started

    def these(*names: str) -> tuple[Any, list[str], list[str]]:
        at = [i for i, some in enumerate(kinds) if some & set(names)]
        values = {site: rows[at] for site, rows in acts.values.items()}
        index = {name: getattr(acts, name)[at] for name in ("position", "token_id")}
        part = replace(
            acts, values=values, prompt=np.arange(len(at)), n_prompts=len(at), token=("",) * len(at), **index
        )
        return part, [labels[i] for i in at], [groups[i] for i in at]

    started = time.perf_counter()
    site = f"blocks.{layer}.hook_resid_post"
    kinds_of_probe = ["logistic", "mass_mean"]
    sets = {name: these(name) for name in SETS}
    moved = trust.transfer_matrix(sets, site=site, kinds=kinds_of_probe, penalty=PENALTY, seed=seed)
    seconds["transfer"] = time.perf_counter() - started
    started = time.perf_counter()
    some, said, which = these("plain", "made up")
    where = trust.undefined_rows(
        some, said, which, sites=[site], kinds="logistic", penalty=PENALTY, seed=seed
    )
    seconds["neither"] = time.perf_counter() - started
    started = time.perf_counter()
    some, said, which = these("plain")
    tested = trust.permutation_test(some, said, groups=which, kinds="mass_mean", n=499, seed=seed)
    seconds["permutation"] = time.perf_counter() - started
    torch.set_num_threads(before)
    return Facts(report, moved, where, tested, layer), {k: round(v, 1) for k, v in seconds.items()}


PENALTY = 0.001
"""C of ridge and logistic regression: strong, since there are about as many dimensions as statements."""
SETS = ("plain", "capital-of", "is-the-capital", "negated", "plain + negated", "continents")
"""The sets of the transfer matrix."""


SHOWN = (
    "probe",
    "shuffled labels",
    "random token",
    "untrained model",
    "untrained, trained embedding",
    "bag of words",
)
"""The controls that are printed for every layer."""


def run(threads: int = 2, seed: int = 0) -> Report:
    """Judge every claim."""
    facts, seconds = measure(threads, seed)
    attrs = facts.trust.data.attrs
    report = Report(
        settings={
            **machine(), "threads": threads, "model": "smollm2-135m, float32", "position": "last token", "seed": seed,
            "statements": f"{attrs['n']} plain ({attrs['n_positive']} true)",
            "folds": f"{attrs['folds']}, groups kept", "C": PENALTY, "seconds": seconds,
        }
    )  # fmt: skip
    for claim in CLAIMS:
        verdict, number = claim.judge(facts)
        report.rows.append(
            {
                "claim": claim.says,
                "verdict": verdict,
                "number": number,
                "rule": claim.rule,
                "source": claim.source,
            }
        )
    for layer in facts.trust.data["layer"].values.tolist():
        at = facts.trust.data.sel(layer=layer)
        report.rows.append({"layer": layer} | {name: interval(at.sel(control=name), "auc") for name in SHOWN})
    for train in SETS:
        for test in SETS:
            one = {"trained on": train, "tested on": test, "n": int(facts.cell(train, test)["n"])}
            for kind in ("logistic", "mass_mean"):
                cell = facts.cell(train, test, kind)
                one |= {
                    kind: interval(cell, "auc"),
                    f"{kind}, permuted": round(float(cell["control_auc"]), 3),
                }
            report.rows.append(one | {"cosine": round(float(facts.cell(train, test)["cosine"]), 3)})
    shuffled = facts.trust.data["auc"].sel(control="shuffled labels")
    least = min(low for _, low, _ in facts.trust.summary["margins"].values())
    report.goals += [
        Goal.at_most("shuffled_labels_from_chance", round(abs(float(shuffled.mean()) - 0.5), 4), 0.02),
        Goal.at_least("least_margin_over_a_control", round(least, 4), 0.0),
        Goal.at_least("claims_judged", len(CLAIMS), 12),
    ]
    return report


if __name__ == "__main__":
    main(run, __doc__ or "", threads=2, seed=0)
