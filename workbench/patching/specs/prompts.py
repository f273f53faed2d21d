"""Prompts with answers, or a data set of them: what ablation, knock-out and back-patching start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from workbench.errors import DataError
from workbench.patching.specs.metric import MetricField, metrics_of

if TYPE_CHECKING:
    from workbench.datasets.records import Pair
    from workbench.model.language_model import LanguageModel
    from workbench.patching.metrics import Metric

Texts = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]
"""One text, or several."""


@dataclass(frozen=True)
class Prompts:
    """Prompts, and what belongs to each.

    Attributes:
        texts: the prompts.
        answers, wrong: right and wrong answer of each; None where there is none.
        spans: named stretches of characters of each.
        note: what was taken of a data set, for the result; empty for prompts given as such.
    """

    texts: list[str]
    answers: list[str | None]
    wrong: list[str | None]
    spans: list[Mapping[str, tuple[int, int]]]
    note: dict[str, str]


class PromptFields(BaseModel):
    """Either `prompts` with `answers` (and `wrong` answers), or `dataset`: the clean prompts of a set of pairs.

    An answer stands for all prompts, or there is one for each. Of a set the first `limit` pairs are used, out of its
    part `split` and of those whose fields are as `where` says (`{"template": "plus"}`); where the method needs prompts
    of one length, those that have as many tokens as the first one. How many were left out is in the result.
    """

    prompts: Texts | None = None
    answers: Texts | None = None
    wrong: Texts | None = None
    dataset: str | None = None
    split: Literal["train", "test"] | None = None
    where: dict[str, str | bool | int] | None = None
    limit: int = Field(default=8, ge=1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Which of `answer` and `wrong` the method needs."""
        return ("answer",)

    @property
    def one_length(self) -> bool:
        """Whether prompts of a data set must have as many tokens."""
        return False

    @model_validator(mode="after")
    def _prompts_or_a_set(self) -> Self:
        given = [name for name in ("prompts", "answers", "wrong") if getattr(self, name)]
        if self.dataset is not None:
            if given:
                raise ValueError("give either prompts or a dataset, not both")
            return self
        wanted = ["prompts", *({"answer": "answers", "wrong": "wrong"}[need] for need in self.needs)]
        if not set(wanted) <= set(given):
            listed = wanted[0] if len(wanted) == 1 else f"{', '.join(wanted[:-1])} and {wanted[-1]}"
            raise ValueError(f"give {listed}, or a dataset of pairs")
        if self.split is not None or self.where is not None:
            raise ValueError("split and where choose from a dataset: give one, or leave them out")
        n = len(self.prompts or ())
        for name in ("answers", "wrong"):
            several = getattr(self, name)
            if several is not None and len(several) not in (1, n):
                raise ValueError(f"{len(several)} {name} for {n} prompts: give one for all, or one for each")
        return self

    def title(self) -> str:
        """The first prompt, or the data set."""
        if self.prompts is None:
            return f"{self.dataset} ({self.limit} prompts)"
        return self.prompts[0] + (f" (and {len(self.prompts) - 1} more)" if len(self.prompts) > 1 else "")

    def chosen(self, model: LanguageModel) -> Prompts:
        """The prompts, and a note on what was left out.

        Raises:
            DataError: a data set that is not there, holds no pairs, or pairs without the answers needed.
        """
        if self.prompts is not None:
            n = len(self.prompts)
            return Prompts(self.prompts, _each(self.answers, n), _each(self.wrong, n), [{}] * n, {})
        from workbench.patching.specs.records import like_the_first, pairs_of

        assert self.dataset is not None
        records = pairs_of(
            self.dataset, limit=self.limit, needs=self.needs, what_for="this method", split=self.split,
            where=self.where,
        )  # fmt: skip

        def shape(record: Pair) -> int:
            return len(model.encode(record.clean)) if self.one_length else 0

        used, n_fitting, length = like_the_first(records, shape, self.limit)
        fitting = f" ({n_fitting} have {length} tokens)" if self.one_length else ""
        which = " ".join([self.dataset, *(f"{name}={value}" for name, value in (self.where or {}).items())])
        return Prompts(
            [r.clean for r in used],
            [r.answer for r in used],
            [r.wrong_answer for r in used],
            [r.spans for r in used],
            {"prompts": f"{len(used)} of {len(records)} in {which}{fitting}"},
        )


def _each(given: list[str] | None, n: int) -> list[str | None]:
    """One for each of `n` prompts."""
    if not given:
        return [None] * n
    return list(given * n if len(given) == 1 else given)


class MeasuredPrompts(MetricField, PromptFields):
    """Prompts with a metric; answers are those the metric needs."""

    def measured(self, model: LanguageModel) -> tuple[Prompts, list[Metric]]:
        """The prompts and one metric each. Raises as `chosen`, and `MetricError` for an answer of several tokens."""
        found = self.chosen(model)
        if (
            self.metric == "log_probability"
        ):  # the prompts are not continued here, so only one token can be measured
            for answer in dict.fromkeys(found.answers):
                model.token_id(str(answer))
        return found, metrics_of(self.metric, found.answers, found.wrong)


class ReferenceFields(BaseModel):
    """Prompts that means come from: `reference` (texts), or `reference_dataset`, of which `reference_limit` are drawn.

    Of a set the texts are taken (of pairs the clean prompts), out of its part `reference_split`; of the set that
    the prompts come from, those with the same `where`. None of both: the prompts themselves.
    """

    reference: Texts | None = None
    reference_dataset: str | None = None
    reference_split: Literal["train", "test"] | None = None
    reference_limit: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if self.reference and self.reference_dataset is not None:
            raise ValueError("give either reference or reference_dataset, not both")
        if self.reference_split is not None and self.reference_dataset is None:
            raise ValueError("reference_split is a part of a reference_dataset: give one, or leave it out")
        return self

    def references(
        self, model: LanguageModel, seed: int, like: str | None = None, where: Mapping[str, Any] | None = None
    ) -> tuple[list[str] | None, dict[str, str]]:
        """The reference prompts and a note on them; None for the prompts themselves.

        Args:
            model: the language model.
            seed: of the draw.
            like: keep only those of a set that have as many tokens as this prompt; None keeps all.
            where: values that fields of a set's records must have.

        Raises:
            DataError: a data set that is not there, or of which nothing is left.
        """
        if self.reference_dataset is None:
            return self.reference or None, {}
        from workbench.datasets import generated, load

        name, made = self.reference_dataset, self.reference_dataset in generated()
        found = load(
            name, split=self.reference_split, limit=self.reference_limit if made else None, seed=seed
        )
        if where:
            found = found.filter(**where)
        if len(found) > self.reference_limit:
            found = found.sample(self.reference_limit, seed=seed)
        texts = found.texts
        if like is not None:
            length = len(model.encode(like))
            texts = [text for text in texts if len(model.encode(text)) == length]
            if not texts:
                raise DataError(
                    f"None of the {len(found)} reference prompts of {name!r} has {length} tokens, as the prompts have: "
                    "give another reference, or a method that takes any length."
                )
        return texts, {"reference": f"{len(texts)} of {len(found)} in {name}"}
