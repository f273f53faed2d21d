"""Measuring steering: what a direction does to text and to the model, and comparing directions fairly.

- `rows`        every prompt under every dose, as rows of one batch
- `kl`          how far the next-token distribution moved
- `texts`       perplexity under the unsteered model, repetition, distinct n-grams, length
- `scorers`     text -> number: the user's own function, target log-probability
- `classifier`  a grouped logistic classifier of texts · `language` which language a text is in
- `instructions` was it answered in upper case, in one sentence
- `breaking`    the strength at which quality breaks
- `iso_kl`      the strength at which a direction costs a given KL
- `methods`, `tasks`, `compare`   methods of making a direction, compared at equal KL on held-out prompts
"""

from workbench.steering.measure.classifier import TextClassifier
from workbench.steering.measure.compare import compare_methods
from workbench.steering.measure.instructions import OneSentence, SentenceCount, UpperCase
from workbench.steering.measure.iso_kl import Calibration, iso_kl
from workbench.steering.measure.kl import kl_of_doses
from workbench.steering.measure.language import LanguageIdentifier
from workbench.steering.measure.rows import Dose
from workbench.steering.measure.scorers import TextScorer, as_scorer, target_log_probability
from workbench.steering.measure.tasks import SteeringTask
from workbench.steering.measure.texts import cross_entropy, distinct, measure_texts, repetition

__all__ = [
    "Calibration",
    "Dose",
    "LanguageIdentifier",
    "OneSentence",
    "SentenceCount",
    "SteeringTask",
    "TextClassifier",
    "TextScorer",
    "UpperCase",
    "as_scorer",
    "compare_methods",
    "cross_entropy",
    "distinct",
    "iso_kl",
    "kl_of_doses",
    "measure_texts",
    "repetition",
    "target_log_probability",
]
