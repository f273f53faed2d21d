"""Spec of making directions: one method, at many sites, and how well each separates texts it has not seen.

    auc[site]             held-out AUC of the direction made from half of the texts
                          (`workbench.steering.extract.quality`), beside that of shuffled labels
    p_value[site]         against the shuffles at this site: for a site that was chosen beforehand
    p_value_best[site]    against the maximum over sites of each shuffle: for the best site (`summary["best"]`)

The result carries the directions themselves (`workbench.directions.carried`), one a site, to be saved into the library.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from workbench.errors import DataError
from workbench.progress import Progress
from workbench.steering.specs.labelled_sets import TwoSides

if TYPE_CHECKING:
    from workbench.directions import DirectionSet
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result

Method = Literal["mean_difference", "pca_of_differences", "in_context_vector"]
PAIRED = ("pca_of_differences", "in_context_vector")
"""Methods of pairs."""
MEASURES = ("auc", "accuracy")


class MakeSpec(TwoSides):
    """Directions from two labels of a data set, by a method of `workbench.steering.extract`.

    Attributes:
        method: `mean_difference`, `pca_of_differences` or `in_context_vector` (the last two need pairs: `pair_by`, or
            two sets of one size in the same order).
        sites: names or globs.
        position: which token of each text.
        shuffles: runs of the label-shuffled control.

    Example:
        >>> MakeSpec(sites=["blocks.*.hook_resid_post"]).run(model, Silent()).data["auc"]
    """

    kind: ClassVar[str] = "direction_make"

    method: Method = "mean_difference"
    sites: list[str] = Field(default_factory=lambda: ["blocks.*.hook_resid_post"], min_length=1)
    position: int = -1
    shuffles: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _where_the_method_reads(self) -> MakeSpec:
        if self.method == "in_context_vector" and any(not s.endswith("hook_resid_post") for s in self.sites):
            raise ValueError("an in-context vector is read at blocks.LAYER.hook_resid_post: give such sites")
        return self

    def title(self) -> str:
        return f"{self.method.replace('_', ' ')}: {self.positive} − {self.negative} ({self.dataset})"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.directions.carried import with_direction
        from workbench.provenance import provenance
        from workbench.results import Result, array

        started = time.perf_counter()
        sides = self.sides()
        made = self._made(model, *sides, progress)
        quality = [d.settings.get("held_out", {}) for d in made]
        if not all(q.get("measured") for q in quality):
            why = next(q.get("why", "") for q in quality if not q.get("measured"))
            raise DataError(f"The quality of the directions cannot be measured: {why}. Give more texts.")
        values = {
            f"{measure}{end}": np.array([q[f"{measure}{end}"] for q in quality])
            for measure in MEASURES
            for end in ("", "_low", "_high")
        }
        values |= {
            key: np.array([q[key] for q in quality])
            for key in ("control_auc", "control_auc_high", "control_accuracy", "p_value", "p_value_best")
        }
        variables: dict[str, Any] = {name: array(("site",), value) for name, value in values.items()}
        for name, what in (
            ("p_value", "of this site by itself"),
            ("p_value_best", "max over sites of each shuffle"),
        ):
            variables[name][2]["long_name"] = f"p, {what}"
        variables["scale"] = array(("site",), [d.scale for d in made], units="activation")
        attrs = {
            "method": self.method,
            "positive": self.positive,
            "negative": self.negative,
            "dataset": self.dataset,
            "control": f"the same with shuffled labels, {self.shuffles} times",
            "n_positive": len(sides[0]),
            "n_negative": len(sides[1]),
            "position": self.position,
        }
        import xarray as xr

        data = xr.Dataset(variables, coords={"site": [d.site for d in made]}, attrs=attrs)
        used = provenance(
            model,
            tokens=[model.encode(text) for side in sides for text in side],
            seed=self.seed,
            seconds={"make": time.perf_counter() - started},
            settings={"method": self.method, "position": self.position, "pair_by": self.pair_by},
        )
        best = int(np.argmax(values["auc"]))
        shown = {
            key: round(float(values[key][best]), 4)
            for key in ("auc", "auc_low", "auc_high", "control_auc", "p_value_best")
        }
        summary = {
            "best": {"site": made[best].site, **shown},
            "p_value_best_is": f"against the max over {len(made)} sites of each of {self.shuffles} shuffles",
            "n": f"{len(sides[0])} + {len(sides[1])} texts",
        }
        return Result("direction_make", with_direction(data, made), used, summary)

    def _made(
        self, model: LanguageModel, positive: list[str], negative: list[str], progress: Progress
    ) -> DirectionSet:
        from workbench.steering import extract

        name = f"{self.positive} − {self.negative}"
        more: dict[str, Any] = {"position": self.position, "shuffles": self.shuffles, "seed": self.seed}
        if self.method in PAIRED and self.pair_by is None and len(positive) != len(negative):
            raise DataError(
                f"{self.method.replace('_', ' ')} needs pairs, here are {len(positive)} and {len(negative)} texts: say "
                "with pair_by which field pairs them."
            )
        if self.method == "mean_difference":
            return extract.mean_differences(
                model,
                positive,
                negative,
                self.sites,
                paired=self.pair_by is not None,
                name=name,
                progress=progress,
                **more,
            )
        if self.method == "pca_of_differences":
            return extract.pca_of_differences_at(
                model, positive, negative, self.sites, name=name, progress=progress, **more
            )
        found = [site.layer for pattern in self.sites for site in model.resolve(pattern)]
        layers = sorted({layer for layer in found if layer is not None})
        return extract.in_context_vector(
            model,
            positive,
            negative,
            layers=layers,
            apply_at="resid_post",
            name=name,
            progress=progress,
            **more,
        )
