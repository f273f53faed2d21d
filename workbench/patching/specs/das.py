"""Spec of distributed alignment search: a subspace that holds a variable, trained and scored on held-out pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from workbench.patching.specs.pairs import noted
from workbench.patching.specs.places import Places, Spans, one_place
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class DasSpec(Spec):
    """Distributed alignment search; fields as in `workbench.patching.das`, without `targets` (a tensor has no YAML).

    Either `base`, `source` and `answers`, or `dataset`: a set of pairs whose clean prompts are the base, corrupt ones
    the source, and wrong answers (those of the corrupt prompts) what the model should then say. Of a set the first
    `limit` pairs are used that have as many tokens as the first one.

    `positions` is one index or word for all pairs (`last`, `-1`, `span:s2`; of several tokens the last one), or a list
    with one list of a single index for each pair.
    """

    kind: ClassVar[str] = "das"

    base: list[str] | None = None
    source: list[str] | None = None
    answers: list[str] | None = None
    dataset: str | None = None
    limit: int = Field(default=64, ge=2)
    site: str
    positions: Places = "last"
    rank: int = Field(default=1, ge=1)
    steps: int = Field(default=200, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    batch_size: int = Field(default=32, ge=1)
    train_share: float = Field(default=0.7, gt=0, lt=1)
    n_random: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _pairs_or_a_set(self) -> Self:
        given = [bool(some) for some in (self.base, self.source, self.answers)]
        if self.dataset is None and not all(given):
            raise ValueError("give base, source and answers, or a dataset of pairs")
        if self.dataset is not None and any(given):
            raise ValueError("give either pairs or a dataset, not both")
        return self

    def title(self) -> str:
        """Where, and on what."""
        return f"{self.site}, {self.dataset or f'{len(self.base or ())} pairs'}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.subspace import das

        base, source, answers, note, spans = self._pairs(model)
        result = das(
            model,
            base,
            source,
            answers,
            site=self.site,
            positions=one_place(model, base, spans, self.positions, "positions"),
            rank=self.rank,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            train_share=self.train_share,
            n_random=self.n_random,
            seed=self.seed,
            progress=progress,
        )
        return noted(result, {"positions": str(self.positions), **note})

    def _pairs(
        self, model: LanguageModel
    ) -> tuple[list[str], list[str], list[str], dict[str, str], list[Spans]]:
        """Base, source, counterfactual answers, a note on what was left out, and spans of the base prompts."""
        if self.dataset is None:
            base = self.base or []
            return base, self.source or [], self.answers or [], {}, [{}] * len(base)
        from workbench.patching.specs.records import pairs_of, positions_correspond

        what_for = "the counterfactual answer"
        records = pairs_of(self.dataset, limit=self.limit, needs=("wrong",), what_for=what_for)
        used, note = positions_correspond(model, self.dataset, records, self.limit)
        wrong = [str(r.wrong_answer) for r in used]
        return [r.clean for r in used], [r.corrupt for r in used], wrong, note, [r.spans for r in used]
