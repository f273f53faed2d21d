"""What can be known without the model: classifiers that see the text, or no input at all, on the probe's own folds.

| baseline | what it sees |
| --- | --- |
| `majority` | nothing: the more frequent label of the training rows (AUC one half) |
| `bag of words` | how often each word (lower case), number and punctuation mark occurs |
| `character n-grams` | TF-IDF of runs of 1 to 4 characters inside words |
| `length` | numbers of characters and of words |
| `token count` | number of tokens (only where token ids are given) |

All but the first are L2-penalised logistic regressions (scikit-learn), fitted to the rows of the other folds;
vocabularies and scales come from those rows alone. A probe that does not beat them has shown nothing about the model.

An AUC clearly below one half means that the data set is balanced in words: what speaks for "true" in the training
rows must then speak against it in the held-out ones. It says that words alone do not tell, not that they tell the
opposite.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float64, Int64

from probes.folds import assign_folds
from probes.trust.fitting import Scorer, interval, whole_settings
from probes.trust.labels import group_codes, two_classes
from workbench.errors import DataError, did_you_mean
from workbench.provenance import provenance
from workbench.results import Result, array

WORD = r"(?u)\w+|[^\w\s]"
"""A word or number, or one punctuation mark."""
BASELINES = ("majority", "bag of words", "character n-grams", "length", "token count")
"""Every baseline by name."""


def text_scores(
    texts: Sequence[str],
    positive: Bool[np.ndarray, " row"],
    fold: Int64[np.ndarray, " row"],
    baseline: str,
    *,
    token_ids: Sequence[Sequence[int]] | None = None,
    penalty: float = 1.0,
) -> Float64[np.ndarray, " row"]:
    """Held-out log-odds of every text by one baseline; those of `majority` are the log prior of the other folds.

    Args:
        texts: one per row.
        positive, fold: labels, and the fold in which each row is held out (that of the probe).
        baseline: one of `BASELINES`.
        token_ids: of every text, for `token count`.
        penalty: C of the logistic regression.

    Raises:
        DataError: an unknown baseline, `token count` without token ids, what is no text, numbers of rows that do not
            match, or a penalty that is no number above 0.
    """
    whole_settings(penalty)
    if baseline not in BASELINES:
        hint = did_you_mean(baseline, BASELINES)
        raise DataError(f"There is no baseline {baseline!r}; they are {', '.join(BASELINES)}.{hint}")
    if not len(texts) == len(positive) == len(fold):
        raise DataError(
            f"{len(texts)} texts, {len(positive)} labels and {len(fold)} folds: one of each a row."
        )
    if baseline == "token count" and (token_ids is None or len(token_ids) != len(texts)):
        given = "none" if token_ids is None else f"{len(token_ids)}"
        raise DataError(
            f"The baseline 'token count' needs the token ids of every text: given {given} for {len(texts)} texts."
        )
    strange = [text for text in texts if not isinstance(text, str)]
    if strange:
        raise DataError(f"A text baseline reads texts; one of these is {strange[0]!r}.")
    blank = [i for i, text in enumerate(texts) if not text.strip()]
    if blank:
        raise DataError(
            f"{len(blank)} of {len(texts)} texts are empty, the first at {blank[0]}: leave them out."
        )
    out = np.zeros(len(texts))
    for index in np.unique(fold):
        train, test = np.flatnonzero(fold != index), np.flatnonzero(fold == index)
        if baseline == "majority":
            share = positive[train].mean()
            out[test] = np.log(share) - np.log1p(-share)
            continue
        model, rows = _pipeline(baseline, penalty), _features(baseline, texts, token_ids)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is not converged after 2,000 steps is as good as it gets
            model.fit([rows[i] for i in train], positive[train])
        out[test] = model.decision_function([rows[i] for i in test])
    return out


def _features(baseline: str, texts: Sequence[str], token_ids: Any) -> list[Any]:
    if baseline == "length":
        return [[float(len(text)), float(len(text.split()))] for text in texts]
    if baseline == "token count":
        return [[float(len(row))] for row in token_ids]
    return list(texts)


def _pipeline(baseline: str, penalty: float) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = {
        "bag of words": lambda: CountVectorizer(token_pattern=WORD),
        "character n-grams": lambda: TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4)),
    }.get(baseline, StandardScaler)
    return make_pipeline(seen(), LogisticRegression(C=penalty, max_iter=2000))


def text_only(
    texts: Sequence[str],
    labels: Any,
    *,
    groups: Any = None,
    positive: Any = None,
    baselines: str | Iterable[str] | None = None,
    token_ids: Sequence[Sequence[int]] | None = None,
    folds: int = 5,
    penalty: float = 1.0,
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> Result:
    """Score every text-only baseline on the folds that `probes.sweep` uses with the same groups and seed.

    Args:
        texts: one per row.
        labels: two classes, one per text.
        groups: what must not be on both sides of a split, one per text.
        positive: the positive class; by default the one that sorts last.
        baselines: names, or one; by default all, `token count` only where `token_ids` are given.
        token_ids: of every text.
        folds, penalty, seed, n_bootstrap: as in `probes.sweep`.

    Returns:
        A `Result` of kind `probe_text_baselines` with dim `baseline`: `auc`, `accuracy`, each with `_low` and
        `_high`, and `n`. Summary: `best` (the baseline of highest AUC) and `n`.

    Raises:
        DataError: labels, groups or folds that do not fit, or an unknown baseline.

    Example:
        >>> text_only(statements.texts, statements.labels, groups=statements.groups).summary["best"]
    """
    folds, seed, n_bootstrap = whole_settings(penalty, folds=folds, seed=seed, n_bootstrap=n_bootstrap)
    if n_bootstrap < 1:
        raise DataError(f"n_bootstrap must be at least 1, not {n_bootstrap}.")
    up, classes = two_classes(labels, len(texts), positive)
    codes = group_codes(groups, len(texts))
    fold = assign_folds(up, codes, n=folds, seed=seed)
    scorer = Scorer(fold, codes, n=n_bootstrap, seed=seed + 2)
    every = [name for name in BASELINES if name != "token count" or token_ids is not None]
    names = every if baselines is None else [baselines] if isinstance(baselines, str) else list(baselines)
    if not names:
        raise DataError(f"No baseline was asked for; they are {', '.join(BASELINES)}.")
    found: dict[str, list[float]] = {}
    for name in names:
        scores = text_scores(texts, up, fold, name, token_ids=token_ids, penalty=penalty)
        for key, value in scored(scores, up, scorer).items():
            found.setdefault(key, []).append(value)
    variables = {key: array(("baseline",), values, long_name=MEANING[key]) for key, values in found.items()}
    variables["n"] = array(("baseline",), np.full(len(names), len(texts)), long_name="texts")
    attrs = {
        "n": len(texts),
        "n_positive": int(up.sum()),
        "positive": str(classes[1]),
        "negative": str(classes[0]),
        "folds": folds,
        "grouped": codes is not None,
        "penalty": penalty,
        "n_bootstrap": n_bootstrap,
        "control": "these are controls themselves: nothing of the model goes in",
    }
    best = names[int(np.nanargmax(found["auc"]))]
    summary = {"best": best, "auc": round(max(found["auc"]), 4), "n": len(texts)}
    made = provenance(None, seed=seed)
    return Result("probe_text_baselines", xr.Dataset(variables, {"baseline": names}, attrs), made, summary)


MEANING = {
    "auc": "AUC, out of fold",
    "auc_low": "AUC, lower end of the 95 % interval",
    "auc_high": "AUC, upper end of the 95 % interval",
    "accuracy": "accuracy, out of fold",
    "accuracy_low": "accuracy, lower end of the 95 % interval",
    "accuracy_high": "accuracy, upper end of the 95 % interval",
}
"""What the scores of a cell are called."""


def scored(
    scores: Float64[np.ndarray, " row"],
    positive: Bool[np.ndarray, " row"],
    scorer: Scorer,
    draws: Float64[np.ndarray, " draw"] | None = None,
) -> dict[str, float]:
    """AUC and accuracy with their intervals, under the names in `MEANING`; `draws` of the AUC, if they are known."""
    auc_low, auc_high = interval(scorer.auc_draws(scores, positive) if draws is None else draws)
    low, high = interval(scorer.accuracy_draws(scores, positive))
    return {
        "auc": scorer.auc(scores, positive),
        "auc_low": auc_low,
        "auc_high": auc_high,
        "accuracy": scorer.accuracy(scores, positive),
        "accuracy_low": low,
        "accuracy_high": high,
    }
