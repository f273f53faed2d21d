"""Which language a text is in, by its character n-grams.

    p(language | text) from multinomial naive Bayes over n-grams of 1 to 4 characters inside words

after Cavnar and Trenkle (1994), with probabilities in place of rank distances. Fitted on whatever texts it is given (a
few dozen sentences and a word list of each language are enough to tell English from French); accuracy is that on groups
held out, so the claim comes with its number.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import DataError, did_you_mean
from workbench.steering.measure.scorers import FunctionScorer


@dataclass(frozen=True, eq=False)
class LanguageIdentifier:
    """A fitted identifier.

    Attributes:
        languages: the languages it knows, sorted.
        accuracy: share of held-out texts it is right about.
        n: training texts.
    """

    pipeline: Any
    languages: tuple[str, ...]
    accuracy: float
    n: int

    @classmethod
    def fit(
        cls,
        texts: Mapping[str, Sequence[str]],
        *,
        groups: Mapping[str, Sequence[Hashable]] | None = None,
        n_splits: int = 5,
    ) -> LanguageIdentifier:
        """Fit on texts of two or more languages.

        Args:
            texts: language -> texts.
            groups: language -> group of each text; texts of one group (a sentence and its translation) stay on one
                side of a split. None: the i-th texts of all languages are a group.
            n_splits: folds.

        Raises:
            DataError: fewer than two languages, or fewer than `n_splits` texts of one.

        Example:
            >>> LanguageIdentifier.fit({"en": english, "fr": french}).probability(["Il fait beau."], "fr")
        """
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.pipeline import make_pipeline

        if len(texts) < 2:
            raise DataError(
                "Telling languages apart needs texts of at least two: give {'en': [...], 'fr': [...]}."
            )
        for language, several in texts.items():
            if len(several) < n_splits:
                raise DataError(
                    f"{len(several)} texts of {language!r} are too few: give at least {n_splits}."
                )
        x = np.array([t for several in texts.values() for t in several], dtype=object)
        y = np.array([language for language, several in texts.items() for _ in several])
        of = groups or {language: range(len(several)) for language, several in texts.items()}
        counts = {language: (len(several), len(of.get(language, ()))) for language, several in texts.items()}
        if wrong := [language for language, (n, given) in counts.items() if n != given]:
            n, given = counts[wrong[0]]
            raise DataError(
                f"{given} groups were given for {n} texts of {wrong[0]!r}: give one for each text."
            )
        codes = np.unique([str(g) for language in texts for g in of[language]], return_inverse=True)[1]
        if codes.max() + 1 < n_splits:
            raise DataError(
                f"{codes.max() + 1} groups cannot be held out in {n_splits} folds: give more groups or fewer n_splits."
            )
        pipeline = make_pipeline(
            CountVectorizer(analyzer="char_wb", ngram_range=(1, 4)), MultinomialNB(alpha=0.1)
        )
        guessed = cross_val_predict(pipeline, x, y, groups=codes, cv=GroupKFold(n_splits))
        return cls(pipeline.fit(x, y), tuple(sorted(texts)), float(np.mean(guessed == y)), len(y))

    def probability(self, texts: Sequence[str], language: str) -> np.ndarray:
        """[text] probability that each is in `language`; NaN for a text without a letter.

        Raises:
            DataError: a language that it does not know.
        """
        if language not in self.languages:
            raise DataError(
                f"The language {language!r} is not known here: {', '.join(self.languages)}."
                f"{did_you_mean(language, self.languages)}"
            )
        found = np.full(len(texts), np.nan)
        full = [i for i, text in enumerate(texts) if any(c.isalpha() for c in text)]
        if full:
            column = list(self.pipeline.classes_).index(language)
            found[full] = self.pipeline.predict_proba([texts[i] for i in full])[:, column]
        return found

    def scorer(self, language: str) -> FunctionScorer:
        """A text scorer: the probability of one language."""
        self.probability([], language)  # an unknown language is an error now and not after a generation
        return FunctionScorer(
            lambda texts: self.probability(texts, language), f"p({language})", "probability"
        )
