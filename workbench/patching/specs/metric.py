"""The metric of a spec, by name.

| name | is | needs of a pair or prompt |
| --- | --- | --- |
| `logit_difference` | logit of the answer minus logit of the wrong answer | answer, wrong answer (one token each) |
| `log_probability` | ln p(answer), nats; of several tokens where a method can | answer |
| `probability` | p(answer) | answer (one token) |
| `rank` | tokens with a higher logit than the answer | answer (one token) |
| `accuracy` | 1 where the answer is the first choice | answer (one token) |
| `kl` | KL(clean ‖ patched) of the next token, nats | nothing |

See `workbench.patching.metrics` for their definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, model_validator

if TYPE_CHECKING:
    from workbench.patching.metrics import Metric

MetricName = Literal["logit_difference", "log_probability", "probability", "kl", "rank", "accuracy"]
NEEDS: dict[str, tuple[str, ...]] = {
    "logit_difference": ("answer", "wrong"),
    "log_probability": ("answer",),
    "probability": ("answer",),
    "kl": (),
    "rank": ("answer",),
    "accuracy": ("answer",),
}
"""What each metric is made of."""
WITH_GRADIENT = ("logit_difference", "log_probability", "probability", "kl")
"""Those that have a gradient."""
OF_ONE_RUN = ("logit_difference", "log_probability", "probability", "rank", "accuracy")
"""Those that need no second run to compare with."""


class MetricField(BaseModel):
    """Which metric, out of those that the method can use."""

    metrics: ClassVar[tuple[str, ...]] = tuple(NEEDS)
    why_not: ClassVar[str] = ""
    """Why the method cannot use the others."""

    metric: MetricName = "logit_difference"

    @model_validator(mode="after")
    def _metric_suits_the_method(self) -> Self:
        if self.metric not in self.metrics:
            raise ValueError(
                f"metric {self.metric!r} {self.why_not}: give one of {', '.join(map(repr, self.metrics))}"
            )
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """Which of `answer` and `wrong` the metric is made of."""
        return NEEDS[self.metric]


def metrics_of(name: str, answers: Sequence[str | None], wrong: Sequence[str | None]) -> list[Metric]:
    """One metric for each answer (and wrong answer)."""
    from workbench.patching import metrics

    match name:
        case "logit_difference":
            return [metrics.LogitDifference(str(a), str(w)) for a, w in zip(answers, wrong, strict=True)]
        case "kl":
            return [metrics.KLDivergence() for _ in answers]
    made = {
        "log_probability": metrics.LogProbability,
        "probability": metrics.Probability,
        "rank": metrics.Rank,
        "accuracy": metrics.Accuracy,
    }[name]
    return [made(str(a)) for a in answers]
