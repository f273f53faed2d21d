"""A small classifier of texts, judged on groups it has not seen.

    score(text) = w . f(text) + b        log-odds of the positive class, L2-penalised logistic regression

with features f: counts of words, of character n-grams (both tf-idf), or any function texts -> [text, d]; `reading`
is one: the mean activation of the *unsteered* model at a site over the text's tokens, so that the classifier knows
words that stand in none of its training texts. AUC and its interval come from cross-validation by group, and beside it
stands the AUC with shuffled labels. It is not the probe that steers: it reads finished texts, with nothing edited.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from workbench.errors import DataError
from workbench.model.language_model import LanguageModel

Features = Literal["words", "characters"] | Callable[[list[str]], np.ndarray]


def reading(model: LanguageModel, site: str) -> Callable[[list[str]], np.ndarray]:
    """Features of texts: the unsteered model's mean activation at `site`, over all tokens but the first.

    Example:
        >>> TextClassifier.fit(texts, labels, features=reading(model, "blocks.15.hook_resid_post"))
    """

    def features(texts: list[str]) -> np.ndarray:
        from workbench.activations import collect

        acts = collect(model, texts, site, "all")
        rows = acts.rows(site).float().flatten(1).numpy()
        alone = np.bincount(acts.prompt, minlength=len(texts)) == 1  # a text of one token has no other
        used = (acts.position > 0) | alone[acts.prompt]
        sums = np.zeros((len(texts), rows.shape[1]))
        np.add.at(sums, acts.prompt[used], rows[used])
        return sums / np.bincount(acts.prompt[used], minlength=len(texts))[:, None]

    return features


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """A fitted classifier; calling it with texts gives log-odds of the positive class.

    Attributes:
        name, units: for tables.
        auc: held-out AUC by group; auc_low, auc_high: 95 % bootstrap interval over groups.
        shuffled_auc: the same with labels shuffled before fitting.
        n, n_groups: training texts and groups.
    """

    pipeline: Any
    features: Callable[[list[str]], Any] | None
    name: str
    auc: float
    auc_low: float
    auc_high: float
    shuffled_auc: float
    n: int
    n_groups: int
    units: str = "log-odds"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[text] log-odds; NaN for a text without a visible character."""
        found = np.full(len(texts), np.nan)
        full = [i for i, text in enumerate(texts) if text.strip()]
        if full:
            given = [texts[i] for i in full]
            found[full] = self.pipeline.decision_function(self.features(given) if self.features else given)
        return found

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Sequence[Any],
        *,
        features: Features = "characters",
        groups: Sequence[Hashable] | None = None,
        name: str = "classifier",
        n_splits: int = 5,
        seed: int = 0,
    ) -> TextClassifier:
        """Fit on all texts; the AUC comes from models that had not seen a text's group.

        Args:
            texts: training texts.
            labels: True (positive) or False for each.
            features: `words`, `characters`, or a function texts -> [text, d].
            groups: texts of one group stay on one side of a split; None: each text is its own.
            name: for tables.
            n_splits: folds (fewer where there are fewer groups).
            seed: of the shuffled labels and the bootstrap.

        Raises:
            DataError: lengths that differ, an empty text, one class only, fewer than two groups.

        Example:
            >>> TextClassifier.fit(["I love it", "I hate it"] * 10, [True, False] * 10, groups=range(20)).auc
        """
        from sklearn.base import clone
        from sklearn.model_selection import GroupKFold

        y = np.asarray([bool(label) for label in labels])
        own = list(groups) if groups is not None else list(range(len(texts)))
        _check(texts, y, own)
        codes = np.unique([str(g) for g in own], return_inverse=True)[1]
        pipeline, function = _pipeline(features)
        x = function(list(texts)) if function else np.array(list(texts), dtype=object)
        folds = list(GroupKFold(min(n_splits, codes.max() + 1)).split(x, y, codes))

        def held_out(wanted: np.ndarray) -> np.ndarray:
            scores = np.full(len(y), np.nan)
            for train, test in folds:
                if len(set(wanted[train].tolist())) == 2:
                    fitted: Any = clone(pipeline)
                    scores[test] = fitted.fit(x[train], wanted[train]).decision_function(x[test])
            return scores

        scores = held_out(y)
        shuffled = np.random.default_rng(seed).permutation(y)
        low, high = _auc_interval(scores, y, codes, seed)
        return cls(
            pipeline.fit(x, y),
            function,
            name,
            _auc(scores, y),
            low,
            high,
            _auc(held_out(shuffled), shuffled),
            len(y),
            int(codes.max()) + 1,
        )


def _check(texts: Sequence[str], y: np.ndarray, groups: list[Any]) -> None:
    if not len(texts) == len(y) == len(groups):
        raise DataError(
            f"{len(texts)} texts, {len(y)} labels and {len(groups)} groups: give one each a text."
        )
    if y.all() or not y.any():
        raise DataError("A classifier needs texts of both classes: all labels given are the same.")
    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise DataError(f"Text {empty[0]} is empty: leave it out.")
    if len(set(map(str, groups))) < 2:
        raise DataError("All texts are of one group: held-out groups need at least two.")


def _pipeline(features: Features) -> tuple[Any, Callable[[list[str]], Any] | None]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if callable(features):
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)), features
    if features == "words":
        counted = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    elif features == "characters":
        counted = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    else:
        raise DataError(
            f"Features {features!r} are not known: give 'words', 'characters', or a function texts -> [text, d]."
        )
    return make_pipeline(counted, LogisticRegression(C=10.0, max_iter=2000)), None


def _auc(scores: np.ndarray, y: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    known = np.isfinite(scores)
    if len(set(y[known].tolist())) < 2:
        return float("nan")
    return float(roc_auc_score(y[known], scores[known]))


def _auc_interval(scores: np.ndarray, y: np.ndarray, codes: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval by resampling groups, 200 times."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(codes == c) for c in range(codes.max() + 1)]
    drawn = []
    for _ in range(200):
        picked = np.concatenate([members[c] for c in rng.integers(len(members), size=len(members))])
        drawn.append(_auc(scores[picked], y[picked]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)
