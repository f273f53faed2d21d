"""One pair of prompts, or a data set of pairs: what sweeps, attribution and path patching start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from workbench.patching.specs.metric import MetricField, metrics_of

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.patching.metrics import Metric


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupt prompts with a metric each.

    Attributes:
        clean, corrupt: the prompts.
        metrics: one a pair.
        note: what was taken of a data set, for the result; empty for one pair.
    """

    clean: list[str]
    corrupt: list[str]
    metrics: list[Metric]
    note: dict[str, str]


class PairFields(MetricField):
    """Either `clean` and `corrupt` (with the answers that the metric needs), or `dataset`: a set of pairs.

    Of a set the first `limit` pairs are used that have as many tokens as the first one (and with
    `log_probability` an answer of as many); how many were left out is in the result.
    """

    clean: str | None = None
    corrupt: str | None = None
    answer: str | None = None
    wrong: str | None = None
    dataset: str | None = None
    limit: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _one_pair_or_a_set(self) -> Self:
        given = [name for name in ("clean", "corrupt", "answer", "wrong") if getattr(self, name) is not None]
        wanted = ("clean", "corrupt", *self.needs)
        if self.dataset is None and not set(wanted) <= set(given):
            listed = f"{', '.join(wanted[:-1])} and {wanted[-1]}"
            raise ValueError(f"give {listed}, or a dataset of pairs")
        if self.dataset is not None and given:
            raise ValueError("give either one pair or a dataset, not both")
        return self

    def title(self) -> str:
        """The clean prompt, or the data set."""
        return self.clean if self.clean is not None else f"{self.dataset} ({self.limit} pairs)"

    def pairs(self, model: LanguageModel) -> Pairs:
        """The pairs, and a note on what was left out.

        Raises:
            DataError: a data set that is not there, holds no pairs, or pairs without the answers needed.
        """
        if self.clean is not None and self.corrupt is not None:
            return Pairs(
                [self.clean], [self.corrupt], metrics_of(self.metric, [self.answer], [self.wrong]), {}
            )
        from workbench.patching.specs.records import pairs_of, positions_correspond

        assert self.dataset is not None
        spoken = self.metric.replace("_", " ")
        records = pairs_of(self.dataset, limit=self.limit, needs=self.needs, what_for=f"the {spoken}")
        alike = self.metric == "log_probability"
        used, note = positions_correspond(model, self.dataset, records, self.limit, answers_alike=alike)
        return Pairs(
            [r.clean for r in used],
            [r.corrupt for r in used],
            metrics_of(self.metric, [r.answer for r in used], [r.wrong_answer for r in used]),
            note,
        )


def noted(result: Any, note: dict[str, str]) -> Any:
    """The result, with a note in its attributes and summary."""
    result.data.attrs.update(note)
    result.summary.update(note)
    return result
