"""Spec of a circuit: edges ranked by attribution, and curves of how much the strongest of them carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workbench.patching.specs.metric import WITH_GRADIENT
from workbench.patching.specs.pairs import PairFields, noted
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class CircuitSpec(PairFields, Spec):
    """Circuit curves; fields as in `workbench.patching.circuit_curves` and `edges`, prompts as in `PairFields`.

    With two pairs or more the edges are ranked on the first half and the circuits run on the second, since a circuit
    fits the pairs that chose it too well; with one pair both are done on it, and the result says so.
    """

    kind: ClassVar[str] = "circuit"
    metrics: ClassVar[tuple[str, ...]] = WITH_GRADIENT
    why_not: ClassVar[str] = "has no gradient, by which edges are ranked"

    limit: int = Field(default=16, ge=1)
    heads: bool = True
    integrate: int = Field(default=5, ge=0)
    sizes: list[int] | None = None
    by: Literal["abs", "signed"] = "abs"
    n_random: int = Field(default=5, ge=0)
    null: Literal["uniform", "layers"] = "uniform"
    ablate: Literal["run", "mean", "zero"] = "run"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.circuit_run import circuit_curves
        from workbench.patching.edge_attribution import edges

        pairs = self.pairs(model)
        n = len(pairs.clean)
        first, rest = (slice(0, n // 2), slice(n // 2, n)) if n > 1 else (slice(0, 1), slice(0, 1))
        ranking = edges(
            model,
            pairs.clean[first],
            pairs.corrupt[first],
            pairs.metrics[first],
            heads=self.heads,
            integrate=self.integrate,
            control=False,
            seed=self.seed,
            progress=progress,
        )
        result = circuit_curves(
            model,
            pairs.clean[rest],
            pairs.corrupt[rest],
            pairs.metrics[rest],
            ranking,
            sizes=self.sizes,
            by=self.by,
            n_random=self.n_random,
            null=self.null,
            ablate=self.ablate,
            seed=self.seed,
            progress=progress,
        )
        ranked = f"on {n // 2} other pairs" if n > 1 else "on the same pair: the circuit fits it too well"
        return noted(result, {"ranked": ranked, **pairs.note})
