"""Spec of causal mediation: which component carries the result from the prompt to the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from workbench.patching.specs.pairs import PairFields, noted
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class MediationSpec(PairFields, Spec):
    """Causal mediation; fields as in `workbench.patching.mediation`, prompts as in `PairFields`.

    The clean prompt is p with its result as `answer`, the corrupt one p' with its result as `wrong`. `same_result` are
    prompts with other operands and p's result, one for each pair; without them the control is a wrong-source patch.
    """

    kind: ClassVar[str] = "mediation"
    metrics: ClassVar[tuple[str, ...]] = ("logit_difference",)
    why_not: ClassVar[str] = "is not what mediation measures (log-probabilities of both results)"

    same_result: list[str] | None = None
    components: tuple[Literal["mlp_out", "attn_out"], ...] = ("mlp_out", "attn_out")
    layers: list[int] | None = None
    positions: list[int] | Literal["all"] = "all"
    candidates: list[str] | None = None
    control: bool = True

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.mediation import mediation
        from workbench.patching.metrics import LogitDifference

        pairs = self.pairs(model)
        both = [m for m in pairs.metrics if isinstance(m, LogitDifference)]
        result = mediation(
            model,
            pairs.clean,
            pairs.corrupt,
            [m.answer for m in both],
            [m.wrong for m in both],
            same_result=self.same_result,
            components=self.components,
            layers=self.layers,
            positions=self.positions,
            candidates=self.candidates,
            control=self.control,
            seed=self.seed,
            progress=progress,
        )
        return noted(result, pairs.note)
