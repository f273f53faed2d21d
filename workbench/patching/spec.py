"""Spec of a patching sweep, over one pair of prompts or a set of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from workbench.errors import DataError
from workbench.patching.cells import Kind
from workbench.patching.sources import Source
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class PatchSpec(Spec):
    """Patching sweep; fields as in `workbench.patching.sweep`.

    Either `clean`, `corrupt`, `answer` and `wrong` (one pair), or `dataset` (a set of pairs, of which the first
    `limit` that have as many tokens as the first one are used; how many were left out is in the result).
    """

    kind: ClassVar[str] = "patch"

    clean: str | None = None
    corrupt: str | None = None
    answer: str | None = None
    wrong: str | None = None
    dataset: str | None = None
    limit: int = Field(default=8, ge=1)
    site: Kind = "resid_pre"
    direction: Literal["denoising", "noising"] = "denoising"
    source: Source = "run"
    layers: list[int] | None = None
    control: bool = True

    @model_validator(mode="after")
    def _one_pair_or_a_set(self) -> Self:
        pair = [self.clean, self.corrupt, self.answer, self.wrong]
        given = [p is not None for p in pair]
        if self.dataset is None and not all(given):
            raise ValueError("give clean, corrupt, answer and wrong, or a dataset of pairs")
        if self.dataset is not None and any(given):
            raise ValueError("give either one pair or a dataset, not both")
        return self

    def title(self) -> str:
        return self.clean if self.clean is not None else f"{self.dataset} ({self.limit} pairs)"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.metrics import LogitDifference
        from workbench.patching.sweep import sweep

        clean, corrupt, metrics, note = self._pairs(model)
        result = sweep(
            model,
            clean,
            corrupt,
            [LogitDifference(a, w) for a, w in metrics],
            kind=self.site,
            direction=self.direction,
            source=self.source,
            layers=self.layers,
            control=self.control,
            seed=self.seed,
            progress=progress,
        )
        result.data.attrs.update(note)
        result.summary.update(note)
        return result

    def _pairs(
        self, model: LanguageModel
    ) -> tuple[list[str], list[str], list[tuple[str, str]], dict[str, str]]:
        """Clean and corrupt prompts, (answer, wrong) tokens, and a note on what was left out."""
        if self.dataset is None:
            pair = (self.clean, self.corrupt, self.answer, self.wrong)
            clean, corrupt, answer, wrong = (text for text in pair if text is not None)
            return [clean], [corrupt], [(answer, wrong)], {}
        from workbench.datasets import load
        from workbench.datasets.records import Pair

        records = [record for record in load(self.dataset) if isinstance(record, Pair)]
        if not records:
            raise DataError(f"{self.dataset!r} has no pairs: patching needs clean and corrupt prompts.")
        unanswered = [r.id for r in records if not r.answer or not r.wrong_answer]
        if unanswered:
            raise DataError(
                f"{len(unanswered)} pairs of {self.dataset!r} lack an answer or a wrong answer, the first is "
                f"{unanswered[0]!r}: the logit difference needs both."
            )
        length = len(model.encode(records[0].clean))
        fitting = [r for r in records if len(model.encode(r.clean)) == len(model.encode(r.corrupt)) == length]
        used = fitting[: self.limit]
        note = {
            "pairs": f"{len(used)} of {len(records)} in {self.dataset} ({len(fitting)} have {length} tokens)"
        }
        answers = [(str(r.answer), str(r.wrong_answer)) for r in used]
        return [r.clean for r in used], [r.corrupt for r in used], answers, note
