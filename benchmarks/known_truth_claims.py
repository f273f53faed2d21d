"""Claims of the literature about truth in activations, and how each is judged from what `known_truth` measured.

The rules are fixed here, for any model. A strong form gives `holds`, a weak one `holds in kind`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Claim:
    """A claim and how it is judged: `judge` gives (verdict, number in words)."""

    says: str
    source: str
    rule: str
    judge: Callable[[Facts], tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """What was measured."""

    trust: Any
    transfer: Any
    undefined: Any
    permutation: Any
    layer: int

    def at(self, control: str, name: str = "auc", layer: int | None = None) -> str:
        data = self.trust.data.sel(control=control, layer=self.layer if layer is None else layer)
        return interval(data, name)

    def cell(self, train: str, test: str, kind: str = "logistic") -> Any:
        return self.transfer.data.sel(train=train, test=test, probe=kind)


def interval(data: Any, name: str) -> str:
    """`0.737 [0.709, 0.773]`."""
    value, low, high = (float(data[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def graded(strong: bool, weak: bool) -> str:
    """The verdict of a claim by its strong and its weak form."""
    return "holds" if strong else "holds in kind" if weak else "does not hold"


def _readable(f: Facts) -> tuple[str, str]:
    best, margins = f.trust.summary["best"], f.trust.summary["margins"]
    above = all(low > 0 for _, low, _ in margins.values())
    said = f"layer {f.layer}: AUC {f.at('probe')}, nested {best['nested_auc']:.3f}"
    return graded(above and best["nested_auc"] >= 0.9, above), said


def _late(f: Facts) -> tuple[str, str]:
    first = f.trust.data.sel(control="probe", layer=0)
    n_layers = f.trust.data.sizes["layer"]
    strong = float(first["auc_high"]) < 0.6 and f.layer >= n_layers / 3
    return graded(strong, float(first["auc_high"]) < f.trust.summary["best"]["auc_low"]), (
        f"layer 0: AUC {f.at('probe', layer=0)}; best layer {f.layer} of 0–{n_layers - 1}"
    )


def _untrained(f: Facts) -> tuple[str, str]:
    names = ("untrained model", "untrained, trained embedding")
    margins = [f.trust.summary["margins"][name] for name in names]
    largest = float(f.trust.data["auc"].sel(control=list(names)).max())
    weak = all(low > 0 for _, low, _ in margins)
    return graded(weak and largest < 0.6, weak), (
        f"AUC {f.at(names[0])}, with the trained embedding {f.at(names[1])}; highest of all layers {largest:.3f}"
    )


def _words(f: Facts) -> tuple[str, str]:
    names = ("bag of words", "character n-grams", "length", "majority")
    margins = [f.trust.summary["margins"][name] for name in names]
    highest = max(float(f.trust.data["auc"].sel(control=name, layer=f.layer)) for name in names)
    weak = all(low > 0 for _, low, _ in margins)
    return graded(weak and highest < 0.55, weak), f"bag of words {f.at(names[0])}, n-grams {f.at(names[1])}"


def _selective(f: Facts) -> tuple[str, str]:
    at = f.trust.data.sel(control="random token", layer=f.layer)
    strong = float(at["selectivity_low"]) > 0
    said = f"selectivity {interval(at, 'selectivity')}; accuracy {f.at('probe', 'accuracy')}, random labels "
    return graded(strong, float(at["selectivity"]) > 0), said + f.at("random token", "accuracy")


def _corrected(f: Facts) -> tuple[str, str]:
    p = f.permutation.data["p_max"].isel(probe=0)
    n, smallest = int((p <= 0.05).sum()), float(p.min())
    m = f.permutation.data.attrs["n_permutations"]
    said = f"{n} of {p.size} layers with corrected p ≤ 0.05; least p {smallest:.4f} of {m} permutations"
    return graded(n >= p.size / 3, n > 0), said


def _negated(f: Facts) -> tuple[str, str]:
    cell, own = f.cell("plain", "negated"), f.cell("negated", "negated")
    strong, weak = float(cell["auc_high"]) < 0.6, float(cell["drop_low"]) > 0
    said = f"plain → negated {interval(cell, 'auc')}, trained there {interval(own, 'auc')}"
    said += f", cosine {float(cell['cosine']):.2f}"
    return graded(strong and weak, weak), said


def _both(f: Facts) -> tuple[str, str]:
    cell, plain = f.cell("plain + negated", "negated"), f.cell("plain", "negated")
    gain = float(cell["auc"] - plain["auc"])
    strong = float(cell["drop"]) <= 0.05 and float(f.cell("plain + negated", "plain")["drop"]) <= 0.05
    on_plain = interval(f.cell("plain + negated", "plain"), "auc")
    weak = float(cell["auc_low"]) > float(plain["auc_high"])
    return graded(
        strong and weak, weak
    ), f"on negated {interval(cell, 'auc')} (gain {gain:.3f}), on plain {on_plain}"


def _carries(a: str, b: str) -> Callable[[Facts], tuple[str, str]]:
    def judge(f: Facts) -> tuple[str, str]:
        cells = [f.cell(a, b), f.cell(b, a)]
        weak = all(float(c["auc_low"]) > 0.5 for c in cells)
        strong = weak and all(float(c["drop"]) <= 0.05 for c in cells)
        said = ", ".join(
            f"{x} → {y} {interval(c, 'auc')}" for (x, y), c in zip([(a, b), (b, a)], cells, strict=True)
        )
        return graded(strong, weak), said

    return judge


def _mass_mean(f: Facts) -> tuple[str, str]:
    auc = f.transfer.data["auc"]
    off = ~np.eye(auc.sizes["train"], dtype=bool)
    gap = (auc.sel(probe="mass_mean") - auc.sel(probe="logistic")).values[off]
    said = f"mass-mean − logistic: {gap.mean():+.3f} in the mean of {gap.size} transfers "
    said += f"({gap.min():+.3f} to {gap.max():+.3f})"
    return graded(gap.mean() >= 0, gap.mean() >= -0.02), said


def _neither(f: Facts) -> tuple[str, str]:
    at = f.undefined.data.sel(layer=f.layer).isel(probe=0)
    between = float(at["auc_above_low"]) > 0.5 and float(at["auc_below_low"]) > 0.5
    lopsided = not float(at["share_positive_low"]) <= 0.5 <= float(at["share_positive_high"])
    said = (
        f"{interval(at, 'share_positive')} of {f.undefined.data.attrs['n_other']} called true; above false ones "
        f"{interval(at, 'auc_above')}, below true ones {interval(at, 'auc_below')}; outside [0.1, 0.9]: "
        f"{float(at['confident']):.2f} of them, {float(at['confident_labelled']):.2f} of the others"
    )
    return graded(
        lopsided and not between, float(at["confident"]) >= 0.5 * float(at["confident_labelled"])
    ), said


MT = "Marks and Tegmark 2023 (arXiv:2310.06824)"
CLAIMS = (
    Claim(
        "truth is linearly readable",
        MT,
        "above every control (lower ends of the differences above 0); nested AUC ≥ 0.9",
        _readable,
    ),
    Claim(
        "it is not there in the first layers",
        MT,
        "AUC at layer 0 below 0.6, best layer beyond a third of all",
        _late,
    ),
    Claim(
        "it stands out from layer to layer after correction",
        "Westfall and Young 1993",
        "a third of the layers",
        _corrected,
    ),
    Claim(
        "an untrained network does not have it",
        "Zhang and Bowman 2018 (arXiv:1809.10040)",
        "differences above 0; AUC below 0.6 at every layer",
        _untrained,
    ),
    Claim("words alone do not tell it", MT, "differences above 0; AUC below 0.55", _words),
    Claim(
        "the probe is selective",
        "Hewitt and Liang 2019 (arXiv:1909.03368)",
        "accuracy above that on random labels by token, lower end above 0",
        _selective,
    ),
    Claim(
        "a probe of plain statements fails on negated ones",
        "Levinstein and Herrmann 2023 (arXiv:2307.00175)",
        "upper end below 0.6; in kind: below a probe trained there",
        _negated,
    ),
    Claim(
        "training on statements and their negations mends that",
        MT,
        "within 0.05 of a probe trained on either; in kind: above plain alone",
        _both,
    ),
    Claim(
        "it carries over to another sentence",
        MT,
        "both ways within 0.05 of a probe trained there; in kind: above 0.5",
        _carries("capital-of", "is-the-capital"),
    ),
    Claim("it carries over to another topic", MT, "as above", _carries("plain", "continents")),
    Claim(
        "mass-mean carries over at least as well as logistic", MT, "mean gap ≥ 0; in kind ≥ −0.02", _mass_mean
    ),
    Claim(
        "statements that are neither are forced to one side",
        "Savcisens and Eliassi-Rad 2025 (arXiv:2506.23921)",
        "share called true not one half, and not between true and false; in kind: half as often confident",
        _neither,
    ),
    Claim(
        "plain and negated truth become one direction with scale",
        MT,
        "needs models of several sizes",
        lambda _: ("cannot be tested", "one model of 135M parameters"),
    ),
)
