"""Spec of a saved probe applied to new texts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from probes.specs.prompts import PromptFields, about
from workbench.errors import DataError, SiteError
from workbench.progress import Progress

if TYPE_CHECKING:
    from probes.fitted import FittedProbe
    from workbench.activations import Activations
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class ApplySpec(PromptFields):
    """A saved probe (`probes.fitted.FittedProbe`) on texts, or on the prompts of a data set.

    `position` is that of the probe's training rows by default. `site`, if given, must be the probe's own. With a data
    set that has labels the result says how many of the answers agree, beside the majority.

    Example:
        >>> ApplySpec(probe="truth.safetensors", texts=["The capital of France is Paris."]).run(model, Silent())
    """

    kind: ClassVar[str] = "probe_apply"

    probe: str
    texts: list[str] = Field(default_factory=list)
    dataset: str = ""
    site: str | None = None
    position: int | None = None
    force: bool = False

    @model_validator(mode="after")
    def _texts_or_set(self) -> ApplySpec:
        if bool(self.texts) == bool(self.dataset):
            raise ValueError("give texts, or a data set")
        return self

    def title(self) -> str:
        return f"{self.probe} on {self.described() if self.dataset else f'{len(self.texts)} texts'}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.fitted import FittedProbe
        from workbench.activations import collect

        started = time.perf_counter()
        fitted = FittedProbe.load(self.probe)
        if self.site is not None and self.site != fitted.site:
            raise SiteError(
                f"The probe in {self.probe!r} belongs to {fitted.site!r}, not to {self.site!r}: leave the site out, or "
                f"fit a probe at {self.site!r}."
            )
        fitted.check(model, force=self.force)
        texts, labels, note = self._texts()
        at = self.position if self.position is not None else _position(fitted)
        acts = collect(model, texts, sites=fitted.site, positions=at, progress=progress)
        result = applied(fitted, acts, texts, labels, force=self.force)
        result.data.attrs.update(note | {"position": at})
        result.summary.update(note)
        result.provenance.seconds["apply"] = round(time.perf_counter() - started, 4)
        return result

    def _texts(self) -> tuple[list[str], list[str] | None, dict[str, Any]]:
        if self.texts:
            return self.texts, None, {}
        from workbench.datasets import load

        labelled = load(self.dataset).kind == "statements"
        prompts, note = self.chosen(labelled=labelled)
        return prompts.texts, prompts.labels if labelled else None, note | {"dataset": about(prompts)["name"]}


def applied(
    fitted: FittedProbe, acts: Activations, texts: list[str], labels: list[str] | None, *, force: bool = False
) -> Result:
    """What a probe says of each text.

    Returns:
        A `Result` of kind `probe_apply` with dims `prompt` and, of a probe with classes, `class`: `probability`
        [prompt, class], `answer` (text), `score` (log-odds; [prompt, class] for more than two classes); of a regression
        `value`. Coordinates: `prompt_text`, `token` (what was read), `label` where labels are known.
    """
    import xarray as xr

    from workbench.results import Result, array

    coords: dict[str, Any] = {
        "prompt": np.arange(len(texts)),
        "prompt_text": ("prompt", np.array(texts, dtype=str)),
        "token": ("prompt", np.array(acts.token, dtype=str)),
    }
    attrs: dict[str, Any] = {
        "probe": fitted.name or type(fitted.estimator).__name__,
        "site": fitted.site,
        "n_prompts": len(texts),
        "control": "the majority of the labels" if labels else "none: new texts have no labels to permute",
        "training": {k: v for k, v in fitted.training.items() if k != "deviations"},
        "training_scores": fitted.scores,
    }
    summary: dict[str, Any] = {"probe": attrs["probe"], "site": fitted.site, "n_prompts": len(texts)}
    if not fitted.classes:
        value = np.asarray(fitted.predict(acts, force=force), dtype=np.float64)
        dims = ("prompt", "output")[: value.ndim]
        variables = {"value": array(dims, value, long_name="what the probe reads")}
        return Result("probe_apply", xr.Dataset(variables, coords, attrs), acts.provenance, summary)
    names = np.array(fitted.classes)
    probability = np.asarray(fitted.predict_proba(acts, force=force))
    score = np.asarray(fitted.decision_function(acts, force=force))
    answer = names[probability.argmax(1)]
    coords["class"] = names
    variables = {
        "probability": array(("prompt", "class"), probability, long_name="probability of the class"),
        "score": array(
            ("prompt", "class")[: score.ndim], score, long_name="score of the probe", units="log-odds"
        ),
        "answer": array(("prompt",), answer, long_name="the most probable class"),
    }
    summary["answers"] = {str(name): int((answer == name).sum()) for name in names}
    if labels is not None:
        known = np.array(labels, dtype=str)
        coords["label"] = ("prompt", known)
        if not set(known) <= set(names.tolist()):
            odd = sorted(set(known) - set(names.tolist()))[0]
            raise DataError(
                f"Label {odd!r} is none of the probe's classes ({', '.join(names)}): choose labels it knows."
            )
        counts = np.unique(known, return_counts=True)[1]
        low, high = _wilson(float((answer == known).mean()), len(known))
        summary |= {
            "accuracy": round(float((answer == known).mean()), 4),
            "accuracy_low": low,
            "accuracy_high": high,
        }
        summary["majority_accuracy"] = round(float(counts.max() / counts.sum()), 4)
        attrs |= {
            key: summary[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "majority_accuracy")
        }
    return Result("probe_apply", xr.Dataset(variables, coords, attrs), acts.provenance, summary)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return round(float(found.low), 4), round(float(found.high), 4)


def _position(fitted: FittedProbe) -> int:
    """The position rule of the training rows, where it is one number."""
    try:
        return int(fitted.position)
    except ValueError:
        said = f"{fitted.position!r}" if fitted.position else "unknown"
        raise DataError(
            f"The positions this probe was fitted at are {said}: say which token is read, for instance position=-1."
        ) from None
