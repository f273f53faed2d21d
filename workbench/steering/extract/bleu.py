"""BLEU-4 of token sequences: how much of a sentence came back.

    p_n   = Σ_sentences Σ_ngram min(count in hypothesis, count in reference) / Σ_sentences n-grams of the hypothesis
    BLEU  = 100 · min(1, exp(1 - r / c)) · exp( mean_{n=1..4} ln p_n )          r, c: tokens of references, hypotheses

Papineni et al. 2002, with one reference each. `corpus_bleu` adds the counts of all sentences and smooths nothing.
`sentence_bleu` adds 1 to both counts for n > 1 (Lin and Och 2004), else one missing 4-gram would make a sentence 0, and
leaves out orders for which hypothesis or reference is too short. Equal sequences get 100 in both.

Tokens are whatever is given: here a model's own token ids, so no other tokenizer comes in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from workbench.errors import DataError

ORDER = 4


def sentence_bleu(hypothesis: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """0–100. Raises `DataError` for an empty reference.

    Example:
        >>> sentence_bleu("a b c d".split(), "a b c d".split())
        100.0
    """
    _not_empty([reference])
    order = min(ORDER, len(reference), max(len(hypothesis), 1))
    precisions = []
    for n in range(1, order + 1):
        matched, total = _matches(hypothesis, reference, n)
        more = n > 1
        precisions.append((matched + more) / max(total + more, 1))
    return _score(precisions, len(hypothesis), len(reference))


def corpus_bleu(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> float:
    """0–100 of all sentences together; orders that no hypothesis is long enough for are left out.

    Raises:
        DataError: other numbers of hypotheses and references, none, or an empty reference.
    """
    if len(hypotheses) != len(references) or not references:
        raise DataError(f"{len(hypotheses)} hypotheses and {len(references)} references: give one for each.")
    _not_empty(references)
    precisions = []
    for n in range(1, ORDER + 1):
        counts = [_matches(h, r, n) for h, r in zip(hypotheses, references, strict=True)]
        matched, total = (sum(c[i] for c in counts) for i in (0, 1))
        if total or n == 1:
            precisions.append(matched / max(total, 1))
    return _score(precisions, sum(map(len, hypotheses)), sum(map(len, references)))


def _matches(hypothesis: Sequence[Hashable], reference: Sequence[Hashable], n: int) -> tuple[int, int]:
    """n-grams of the hypothesis that the reference has as well (as often), and all of them."""
    ours, theirs = (
        Counter(tuple(s[i : i + n]) for i in range(len(s) - n + 1)) for s in (hypothesis, reference)
    )
    return sum((ours & theirs).values()), sum(ours.values())


def _score(precisions: Sequence[float], ours: int, theirs: int) -> float:
    if not ours or min(precisions) == 0:
        return 0.0
    brevity = min(1.0, math.exp(1 - theirs / ours))
    return 100 * brevity * math.exp(sum(map(math.log, precisions)) / len(precisions))


def _not_empty(references: Sequence[Sequence[Hashable]]) -> None:
    if any(not len(r) for r in references):
        raise DataError("BLEU needs a reference of at least one token.")
