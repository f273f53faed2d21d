"""A small classifier of texts, judged on groups it has not seen.

    score(text) = w . f(text) + b        log-odds of the positive class, L2-penalised logistic regression

with features f: counts of words, of character n-grams (both tf-idf), or any function texts -> [text, d]; `reading`
is one: the mean activation of the *unsteered* model at a site over the text's tokens, so that the classifier knows
words that stand in none of its training texts. AUC and its interval come from cross-validation by group,

    AUC = share of couples (positive, negative) *of one fold* in which the positive scores higher; ties count ½

(scores of different folds come from different classifiers: put together, a fold rich in one class is scored by a
classifier that leans to the other, and pure noise would get an AUC far below ½). Beside it stands the AUC with shuffled
labels. It is not the probe that steers: it reads finished texts, with nothing edited.
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
        auc: held-out AUC by group (NaN where no fold has both classes).
        auc_low, auc_high: 95 % bootstrap interval over groups.
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

        fold = np.zeros(len(y), dtype=int)
        for i, (_, test) in enumerate(folds):
            fold[test] = i
        couples = _Couples(held_out(y), y, fold)
        shuffled = np.random.default_rng(seed).permutation(y)
        low, high = _auc_interval(couples, codes, seed)
        return cls(
            pipeline.fit(x, y),
            function,
            name,
            couples.value(),
            low,
            high,
            _Couples(held_out(shuffled), shuffled, fold).value(),
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


class _Couples:
    """Couples (positive, negative) of each fold: which are in the right order. Texts without a score are in none."""

    def __init__(self, scores: np.ndarray, y: np.ndarray, fold: np.ndarray) -> None:
        self._folds: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for one in np.unique(fold):
            here = (fold == one) & np.isfinite(scores)
            up, down = np.flatnonzero(here & y), np.flatnonzero(here & ~y)
            gap = scores[up][:, None] - scores[down][None]
            self._folds.append((up, down, (gap > 0) + 0.5 * (gap == 0)))

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """[draw] for weights [draw, text]; NaN where no couple is left."""
        right, all_of_them = np.zeros(len(weights)), np.zeros(len(weights))
        for up, down, ordered in self._folds:
            u, v = weights[:, up], weights[:, down]
            right += ((u @ ordered) * v).sum(1)
            all_of_them += u.sum(1) * v.sum(1)
        return np.where(all_of_them > 0, right / np.maximum(all_of_them, 1e-12), np.nan)

    def value(self) -> float:
        """The AUC of the texts as they are."""
        n = 1 + max((int(i.max()) for up, down, _ in self._folds for i in (up, down) if len(i)), default=-1)
        return float(self.auc(np.ones((1, n)))[0])


def _auc_interval(couples: _Couples, codes: np.ndarray, seed: int, draws: int = 1000) -> tuple[float, float]:
    """95 % percentile interval by resampling groups."""
    n = int(codes.max()) + 1
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)
    found = couples.auc(counts[:, codes])
    if not np.isfinite(found).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)
