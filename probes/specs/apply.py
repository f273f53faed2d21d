"""Spec of a saved probe applied to new texts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from probes.specs.prompts import PromptFields, Rule, about, same
from workbench.errors import DataError, SiteError
from workbench.progress import Progress

if TYPE_CHECKING:
    from probes.fitted import FittedProbe
    from workbench.activations import Activations
    from workbench.datasets import PromptSet
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class ApplySpec(PromptFields):
    """A saved probe (`probes.fitted.FittedProbe`) on texts, or on the prompts of a data set.

    `position` is that of the probe's training rows by default. `site`, if given, must be the probe's own. With a data
    set that has what the probe reads (its rule, `training["reads"]`, or else the field `label` with the probe's
    classes) the result says how many of the answers agree, beside the majority.

    Example:
        >>> ApplySpec(probe="truth.safetensors", texts=["The capital of France is Paris."]).run(model, Silent())
    """

    kind: ClassVar[str] = "probe_apply"
    unused: ClassVar[tuple[str, ...]] = ("positive",)

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
        idle = [name for name in ("labels", "filter", "limit", "group_by") if getattr(self, name)]
        if idle and self.texts:
            raise ValueError(
                f"{idle[0]} chooses prompts of a data set and has no effect on texts: leave it out"
            )
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
        texts, labels, groups, note = self._texts(fitted)
        at = self.position if self.position is not None else _position(fitted)
        acts = collect(model, texts, sites=fitted.site, positions=at, progress=progress)
        result = applied(fitted, acts, texts, labels, groups=groups, force=self.force)
        result.data.attrs.update(note | {"position": at})
        result.summary.update(note)
        result.provenance.seconds["apply"] = round(time.perf_counter() - started, 4)
        return result

    def _texts(
        self, fitted: FittedProbe
    ) -> tuple[list[str], list[str] | None, list[Any] | None, dict[str, Any]]:
        """Texts, labels, groups, and what the result says of them.

        Labels are what the probe reads: its rule on the field it was fitted to, else the field `label`. Where the data
        set lacks that field, or its labels are not the probe's classes, the probe is not judged; classes that are
        asked for by name (`labels`) and that it does not know are an error.
        """
        if self.texts:
            return self.texts, None, None, {}
        from workbench.datasets import load

        rule = Rule.model_validate(fitted.training["reads"]) if "reads" in fitted.training else None
        every = load(self.dataset)
        named = every.kind == "statements" and fitted.classes and rule is None
        named = named and (self.labels is not None or set(fitted.classes) <= set(every.labels))
        prompts, note = self._chosen(fitted, bool(named))
        labels = prompts.labels if named else self._ruled(prompts, rule, fitted)
        if self.labels is not None and named:
            _known(labels or [], fitted)
        note |= {"dataset": about(prompts)["name"]}
        if labels is None and fitted.classes:
            what = f"{rule}" if rule is not None else f"label, of {', '.join(fitted.classes)}"
            note["not_judged"] = f"{about(prompts)['name']} does not hold what the probe reads ({what})"
        trained = (fitted.provenance.get("settings", {}).get("dataset") or {}).get("name")
        if labels and trained == note["dataset"]:
            note["training_rows"] = (
                f"the probe was fitted to prompts of {trained} itself: those among these texts are no new ones, and "
                "the accuracy is too high by them"
            )
        return prompts.texts, labels, self.grouping(prompts), note

    def _chosen(self, fitted: FittedProbe, named: bool) -> tuple[PromptSet, dict[str, Any]]:
        """The prompts; where their label is what the probe tells apart, those of its classes."""
        if named and self.labels is None:
            return self.model_copy(update={"labels": list(fitted.classes)}).chosen()
        return self.chosen(labelled=named)

    @staticmethod
    def _ruled(prompts: PromptSet, rule: Rule | None, fitted: FittedProbe) -> list[str] | None:
        """The labels by the probe's rule, in the names of its classes; None where the set lacks them."""
        if rule is None or rule.field not in prompts.field_names:
            return None
        values = prompts.column(rule.field)
        if any(value is None for value in values):
            return None
        given = [
            str(one) for one in (values if rule.value is None else [same(v, rule.value) for v in values])
        ]
        return given if set(given) <= set(fitted.classes) else None


def _known(labels: list[str], fitted: FittedProbe) -> None:
    odd = sorted(set(map(str, labels)) - set(fitted.classes))
    if odd:
        raise DataError(
            f"Label {odd[0]!r} is none of the probe's classes ({', '.join(fitted.classes)}): choose labels it knows "
            "(--labels)."
        )


def applied(
    fitted: FittedProbe,
    acts: Activations,
    texts: list[str],
    labels: list[str] | None,
    *,
    groups: list[Any] | None = None,
    force: bool = False,
) -> Result:
    """What a probe says of each text.

    The 95 % interval of the accuracy is Wilson's (1927), for as many texts as groups leave (`_interval`).

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
        _known(labels, fitted)
        counts = np.unique(known, return_counts=True)[1]
        low, high = _interval(answer == known, groups)
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


def _interval(right: np.ndarray, groups: list[Any] | None) -> tuple[float, float]:
    """95 % interval of the share p of right answers: Wilson's, with as many texts as they are worth.

    Texts of one group are not independent. With right answers h_g of m_g in group g of G, the variance of p is
    G / (G − 1) Σ (h_g − p m_g)² / n², that of p (1 − p) over n of independent texts: their number in Wilson's interval
    is the ratio (Korn and Graubard 1998), at most n, and G where p is 0 or 1.
    """
    from scipy.stats import norm

    from probes.trust.labels import group_codes

    n, p = len(right), float(right.mean())
    units = group_codes(groups, n)
    worth = float(n)
    if units is not None:
        size, hits = np.bincount(units), np.bincount(units, weights=right.astype(np.float64))
        k = len(size)
        variance = k / max(k - 1, 1) * float(((hits - p * size) ** 2).sum()) / n**2
        worth = min(worth, p * (1 - p) / variance) if 0 < p < 1 and variance > 0 else float(k)
    z2 = float(norm.ppf(0.975)) ** 2 / worth
    half = float(np.sqrt(z2 * p * (1 - p) + z2**2 / 4))
    ends = (p + z2 / 2 - half) / (1 + z2), (p + z2 / 2 + half) / (1 + z2)
    return round(max(ends[0], 0.0), 4), round(min(ends[1], 1.0), 4)


def _position(fitted: FittedProbe) -> int:
    """The position rule of the training rows, where it is one number."""
    try:
        return int(fitted.position)
    except ValueError:
        said = f"{fitted.position!r}" if fitted.position else "unknown"
        raise DataError(
            f"The positions this probe was fitted at are {said}: say which token is read, for instance position=-1."
        ) from None
