"""One site of `three_way`: one-against-the-rest probes, stacked, calibrated into conformal sets, scored held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from probes.conformal import ConformalSets, set_table
from probes.folds import assign_folds
from probes.mil.bags import Bags
from probes.mil.labels import interval
from probes.mil.sawmil import SawmilProbe
from workbench.progress import Progress


@dataclass(frozen=True, eq=False)
class Outcome:
    """Held-out outcomes of one site and one label vector."""

    codes: Int64[np.ndarray, " bag"]
    p: Float64[np.ndarray, "bag class"]
    scores: Float64[np.ndarray, "bag class"]
    contains: Bool[np.ndarray, "bag class"]
    answers: Int64[np.ndarray, " bag"]
    carried: Bool[np.ndarray, "bag class"]
    penalty: Float64[np.ndarray, "fold class"]


def cross_predict(
    bags: Bags,
    codes: Int64[np.ndarray, " bag"],
    fold: Int64[np.ndarray, " bag"],
    units: Int64[np.ndarray, " bag"] | None,
    classes: Sequence[Any],
    *,
    alpha: float,
    per_class: bool,
    progress: Progress,
    **settings: Any,
) -> Outcome:
    """Steps 1 to 4 of `probes.mil.three_way` for one label vector."""
    n, folds = len(bags), int(fold.max()) + 1
    shape = (n, len(classes))
    p, scores = np.zeros(shape), np.zeros(shape)
    contains, carried, answers = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(n, dtype=np.int64)
    penalty = np.zeros((folds, len(classes)))
    for k in range(folds):
        test, calibrate = fold == k, fold == (k + 1) % folds
        train = ~(test | calibrate)
        stack, probes = fit_stack(
            bags.select(train), codes[train], None if units is None else units[train], classes, settings
        )
        held, other = bags.select(test), bags.select(calibrate)
        scores[test] = np.stack([probe.decision_function(held) for probe in probes], axis=1)
        p[test] = stack.predict_proba(scores[test])
        known = stack.predict_proba(np.stack([probe.decision_function(other) for probe in probes], axis=1))
        sets = ConformalSets(alpha, per_class=per_class).fit(
            known, codes[calibrate], classes=range(len(classes))
        )
        contains[test], answers[test] = sets.contains(p[test]), sets.answers(p[test])
        carried[test] = np.stack([held.known[probe.carrier(held)] for probe in probes], axis=1)
        penalty[k] = [probe.C_ for probe in probes]
        progress.advance()
    return Outcome(codes, p, scores, contains, answers, carried, penalty)


def fit_stack(
    bags: Bags, codes: np.ndarray, units: np.ndarray | None, classes: Sequence[Any], settings: dict[str, Any]
) -> tuple[LogisticRegression, list[SawmilProbe]]:
    """One probe per class against the rest, and the stack on their inner out-of-fold scores."""
    inner = assign_folds(
        codes, units, n=settings["inner_folds"], seed=settings["seed"], names=[str(c) for c in classes]
    )
    probes = []
    for c in range(len(classes)):
        probe = SawmilProbe(penalties=settings["penalties"], eta=settings["eta"])
        probes.append(probe.fit(bags, codes == c, fold=inner))
    out = np.stack([probe.out_of_fold_ for probe in probes], axis=1)
    return LogisticRegression(max_iter=1000).fit(out, codes), probes


def mcc(confusion: Float64[np.ndarray, "*draw class class"]) -> Float64[np.ndarray, "*draw"]:
    """Matthews' correlation of (draws of) confusion matrices [true, predicted]; 0 where one side is constant."""
    n, right = confusion.sum((-2, -1)), np.trace(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    both = (n**2 - (true**2).sum(-1)) * (n**2 - (predicted**2).sum(-1))
    top = right * n - (true * predicted).sum(-1)
    return np.where(both > 0, top / np.sqrt(np.where(both > 0, both, 1)), 0.0)


def confusions(
    run: Outcome, weights: Float64[np.ndarray, "draw bag"]
) -> Float64[np.ndarray, "draw class class"]:
    """[draw, true, predicted] weighted counts."""
    n = run.p.shape[1]
    cell = np.eye(n * n)[run.codes * n + run.p.argmax(1)]
    return (weights @ cell).reshape(-1, n, n)


def task_auc(
    scores: Float64[np.ndarray, " bag"], positive: Bool[np.ndarray, " bag"], fold: Int64[np.ndarray, " bag"]
) -> float:
    """Mean AUC of the folds with bags of the class and of others; NaN where there is none (uneven groups)."""
    each = [
        roc_auc_score(positive[fold == k], scores[fold == k])
        for k in np.unique(fold)
        if 0 < positive[fold == k].sum() < (fold == k).sum()
    ]
    return float(np.mean(each)) if each else float("nan")


def score_site(
    bags: Bags, runs: list[Outcome], fold: np.ndarray, weights: np.ndarray, classes: Sequence[Any]
) -> dict[str, Any]:
    """Every number of one site."""
    run, ones = runs[0], np.ones((1, len(fold)))
    n, codes = len(classes), run.codes
    counts = confusions(run, ones)[0]
    table = set_table(run.contains, run.answers, codes, classes, weights)
    found: dict[str, Any] = {"mcc": float(mcc(counts[None])[0]), "confusion": counts.astype(np.int64)}
    found["mcc_low"], found["mcc_high"] = interval(mcc(confusions(run, weights)))
    found["accuracy"] = float(np.trace(counts) / counts.sum())
    found["answers"] = np.array(
        [[((codes == c) & (run.answers == a)).sum() for a in (*range(n), -1)] for c in range(n)]
    )
    for name in ("coverage", "abstention"):
        for end in ("", "_low", "_high"):
            found[name + end] = table[name + end].values
    found["set_size"], found["accuracy_answered"] = table["set_size"].values, table["accuracy"].values
    found["task_auc"] = np.array([task_auc(run.scores[:, c], codes == c, fold) for c in range(n)])
    chance = np.add.reduceat(bags.known.astype(float), bags.offsets[:-1]) / bags.sizes
    found["carried_by_known"] = np.array([run.carried[codes == c, c].mean() for c in range(n)])
    found["carried_by_chance"] = np.array([chance[codes == c].mean() for c in range(n)])
    found["penalty"] = np.exp(np.log(run.penalty).mean(0))
    if len(runs) > 1:
        others = [float(mcc(confusions(r, ones))[0]) for r in runs[1:]]
        found |= {"control_mcc": float(np.mean(others)), "control_mcc_high": max(others)}
        found["control_coverage"] = float(
            np.mean([r.contains[np.arange(len(fold)), r.codes].mean() for r in runs[1:]])
        )
        found["control_abstention"] = float(np.mean([(r.answers < 0).mean() for r in runs[1:]]))
    return found


def final_probes(
    bags: Bags, codes: np.ndarray, units: Any, classes: Sequence[Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Weights of the probes fitted to all bags."""
    _, probes = fit_stack(bags, codes, units, classes, settings)
    weight = np.stack([probe.coef_[0] for probe in probes]).astype(np.float32)
    return {"weight": weight, "bias": np.array([probe.intercept_[0] for probe in probes])}
