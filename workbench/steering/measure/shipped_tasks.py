"""The tasks that ship, from the sets under `data/`: sentiment, formality, language, and following three instructions.

| task                   | pairs                                      | score of the continuation                   |
| ---------------------- | ------------------------------------------ | ------------------------------------------- |
| sentiment              | minimal pairs of `sentiment`               | log-odds of a classifier of the other pairs |
| formality              | formal and casual sentences                | log-odds of a classifier of the other pairs |
| language               | French and English sentences               | p(French), n-grams of the other pairs       |
| answer in French       | a question with and without instruction    | p(French)                                   |
| answer in upper case   | the same                                   | share of upper-case letters                 |
| answer in one sentence | a request with and without the instruction | 1 if exactly one finished sentence          |

Classifiers read finished texts with the unsteered model (`classifier.reading`) and are fitted on pairs that no
direction is made from. Selection and test prompts are different prompts; the in-context baseline has three sentences
of what is wanted before the prompt, or the instruction in the request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.datasets import PromptSet, data_folder, load
from workbench.errors import DataError, did_you_mean
from workbench.model.language_model import LanguageModel
from workbench.steering.measure.classifier import TextClassifier, reading
from workbench.steering.measure.instructions import OneSentence, UpperCase
from workbench.steering.measure.language import LanguageIdentifier
from workbench.steering.measure.tasks import SteeringTask

SHIPPED = (
    "sentiment",
    "formality",
    "language",
    "answer in French",
    "answer in upper case",
    "answer in one sentence",
)
INSTRUCTIONS = {
    "answer in French": " Answer in French.",
    "answer in upper case": " Answer in upper case letters only.",
    "answer in one sentence": " Answer in exactly one short sentence.",
}
N_SELECTION, N_TEST, N_TRAIN = 8, 24, 24
TOKENS, TOKENS_OF_A_SENTENCE = 20, 32
_STOPS = ".!? "
"""Cut from the end of sentences that directions are made from: their last token should say something."""
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def shipped_task(
    model: LanguageModel,
    name: str,
    *,
    n_train: int = N_TRAIN,
    n_selection: int = N_SELECTION,
    n_test: int = N_TEST,
    seed: int = 0,
) -> SteeringTask:
    """One of `SHIPPED`, ready for `compare_methods`.

    Args:
        model: whose reading the classifiers use, and whose chat template the requests.
        name: of the task.
        n_train, n_selection, n_test: pairs and prompts, at most 24 pairs and 32 prompts in all (112 for sentiment and
            language).
        seed: which pairs make directions and which the classifier, and which prompts are for what.

    Raises:
        DataError: no such task, or more asked for than there is.

    Example:
        >>> shipped_task(model, "sentiment").scorer.auc
    """
    if name not in SHIPPED:
        raise DataError(f"There is no task {name!r}: {', '.join(SHIPPED)}.{did_you_mean(name, SHIPPED)}")
    rng = np.random.default_rng(seed)
    if name in INSTRUCTIONS:
        return _instruction(name, rng, n_train, n_selection, n_test)
    pairs, others = _pairs(name, rng, n_train)
    openers = _drawn(
        _texts("openers", "message" if name == "formality" else "evaluation"),
        rng,
        n_selection + n_test,
        "openers",
    )
    if name == "language":
        identifier = french_identifier(others)
        scorer: Any = identifier.scorer("fr")
        note = f"held-out accuracy {identifier.accuracy:.3f} on {identifier.n} texts"
    else:
        scorer = _reading_classifier(model, name, others)
        note = (
            f"held-out AUC {scorer.auc:.3f} [{scorer.auc_low:.3f}, {scorer.auc_high:.3f}] on {scorer.n} texts of "
            f"{scorer.n_groups} groups; shuffled labels {scorer.shuffled_auc:.3f}"
        )
    before = " ".join(positive for positive, _, _ in pairs[:3])
    return SteeringTask(
        name,
        positive=[p.rstrip(_STOPS) for p, _, _ in pairs],
        negative=[n.rstrip(_STOPS) for _, n, _ in pairs],
        selection=openers[:n_selection],
        test=openers[n_selection:],
        scorer=scorer,
        in_context=lambda prompt: f"{before} {prompt}",
        max_new_tokens=TOKENS,
        scorer_note=note,
    )


Pair = tuple[str, str, str]
"""(wanted, not wanted, group)"""


def french_identifier(pairs: Sequence[Pair] | None = None) -> LanguageIdentifier:
    """English or French, from sentence pairs (by default all that ship) and the word lists."""
    used = _all_pairs("language") if pairs is None else pairs
    words = load(data_folder() / "steering" / "words.jsonl")
    texts: dict[str, list[str]] = {"fr": [p for p, _, _ in used], "en": [n for _, n, _ in used]}
    groups: dict[str, list[str]] = {language: [g for _, _, g in used] for language in texts}
    for record in words:
        texts[record.label].append(record.text)  # type: ignore[union-attr]
        groups[record.label].append(str(record.group))  # type: ignore[union-attr]
    return LanguageIdentifier.fit(texts, groups=groups)


def _reading_classifier(model: LanguageModel, name: str, pairs: Sequence[Pair]) -> TextClassifier:
    texts = [t for positive, negative, _ in pairs for t in (positive, negative)]
    site = f"blocks.{model.n_layers // 2}.hook_resid_post"
    return TextClassifier.fit(
        texts,
        [True, False] * len(pairs),
        features=reading(model, site),
        groups=[g for _, _, g in pairs for _ in range(2)],
        name=f"{name} classifier",
    )


def _all_pairs(name: str) -> list[Pair]:
    """Every pair of a set."""
    if name == "sentiment":
        statements = load("sentiment")
        of = {s.id: s for s in statements}
        return [
            (s.text, of[s.counterpart].text, str(s.group))  # type: ignore[union-attr]
            for s in statements
            if s.label == "positive"  # type: ignore[union-attr]
        ]
    wanted = {"formality": "formal", "language": "fr"}[name]
    found: dict[str, dict[bool, str]] = {}
    for s in load(data_folder() / "steering" / f"{name}.jsonl"):
        found.setdefault(str(s.group), {})[s.label == wanted] = s.text  # type: ignore[union-attr]
    return [(both[True], both[False], group) for group, both in found.items()]


def _pairs(name: str, rng: np.random.Generator, n_train: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs that directions are made from, and those for the classifier: no group on both sides."""
    every = _all_pairs(name)
    groups = sorted({g for _, _, g in every})
    half = {groups[i] for i in rng.permutation(len(groups))[: len(groups) // 2]}
    mine = [p for p in every if p[2] in half]
    return _drawn(mine, rng, n_train, f"pairs for {name!r}"), [p for p in every if p[2] not in half]


def _texts(name: str, group: str) -> list[str]:
    chosen: PromptSet = load(data_folder() / "steering" / f"{name}.jsonl").filter(group=group)
    return list(chosen.texts)


def _drawn(items: list[Any], rng: np.random.Generator, n: int, what: str) -> list[Any]:
    if n > len(items):
        raise DataError(f"{n} {what} were asked for, there are {len(items)}: ask for fewer.")
    return [items[i] for i in rng.permutation(len(items))[:n]]


def _instruction(
    name: str, rng: np.random.Generator, n_train: int, n_selection: int, n_test: int
) -> SteeringTask:
    one_sentence = name == "answer in one sentence"
    texts = _drawn(
        _texts("requests", "topic" if one_sentence else "question"),
        rng,
        n_train + n_selection + n_test,
        "requests",
    )
    said = INSTRUCTIONS[name]
    ask: Callable[[str], list[dict[str, str]]] = lambda text: [SYSTEM, {"role": "user", "content": text}]  # noqa: E731
    scorer: Any = OneSentence() if one_sentence else UpperCase()
    note = "counted, no classifier"
    if name == "answer in French":
        identifier = french_identifier()
        scorer = identifier.scorer("fr")
        note = f"held-out accuracy {identifier.accuracy:.3f} on {identifier.n} texts"
    return SteeringTask(
        name,
        positive=[ask(t + said) for t in texts[:n_train]],
        negative=[ask(t) for t in texts[:n_train]],
        selection=[ask(t) for t in texts[n_train : n_train + n_selection]],
        test=[ask(t) for t in texts[n_train + n_selection :]],
        scorer=scorer,
        in_context=lambda chat: ask(chat[1]["content"] + said),
        max_new_tokens=TOKENS_OF_A_SENTENCE if one_sentence else TOKENS,
        scorer_note=note,
    )
