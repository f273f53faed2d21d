"""Spec of a causal check: does moving along a probe's direction change what the model answers?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from probes.specs.prompts import LinearKind, PromptFields, about
from workbench.errors import DataError
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.datasets import PromptSet
    from workbench.directions import Direction
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result

FOLDS = 5
"""Of the cross-validation that says how well the direction reads."""


class CausalSpec(PromptFields):
    """Fit a probe to part of a data set and check its direction on the rest (`probes.causal.move.causal_check`).

    The statements are split by group: `train_share` of them give the direction, up to `n_prompts` of the others are
    checked, each put into `template` at `{text}` and answered with one token: `answer` for the positive class, `wrong`
    for the negative. The edit goes to the last token of the statement (`edit="text"`), of the prompt (`last`), or to
    all tokens (`all`).

    With `direction` (a file, or a name in the library) nothing is fitted and all prompts are checked, at the
    direction's own site: those of `prompts`, or of the data set. Fields that would then have no effect (`probe`,
    `site`, …; with prompts `template`, `labels`, …) are refused.

    Example:
        >>> CausalSpec(dataset="capitals", filter={"negated": False, "template": "capital-of"}).run(model, Silent())
    """

    kind: ClassVar[str] = "probe_causal"

    dataset: str = ""
    prompts: list[str] = Field(default_factory=list)
    direction: str | None = None
    probe: LinearKind = "mass_mean"
    penalty: float = Field(default=1.0, gt=0)
    site: str = "blocks.14.hook_resid_post"
    position: int = -1
    template: str = "{text} This statement is"
    answer: str = " true"
    wrong: str = " false"
    edit: Literal["text", "last", "all"] = "text"
    strengths: list[float] = Field(default=[-4.0, -2.0, -1.0, 1.0, 2.0, 4.0], min_length=1)
    control: Literal["random", "natural"] = "random"
    n_random: int = Field(default=10, ge=2)
    ablate: Literal["zero", "mean"] = "zero"
    train_share: float = Field(default=0.7, gt=0, lt=1)
    n_prompts: int = Field(default=40, ge=1)
    force: bool = False

    @model_validator(mode="after")
    def _something_to_check(self) -> CausalSpec:
        if bool(self.dataset) == bool(self.prompts):
            raise ValueError("give a data set, or prompts (not both)")
        if self.prompts and self.direction is None:
            raise ValueError(
                "prompts alone give no direction: name one (direction), or give a data set to fit it on"
            )
        if self.labels is not None and len(self.labels) != 2:
            raise ValueError(
                f"a direction leads from one class to another: give two labels, not {len(self.labels)}"
            )
        idle = self._without_effect()
        if idle:
            raise ValueError(
                f"{idle[0]} has no effect where {'prompts are' if self.prompts else 'a direction is'} given: leave it "
                "out"
            )
        if self.template.count("{text}") != 1:
            raise ValueError("the template says once where the statement goes: '{text} This statement is'")
        return self

    def _without_effect(self) -> list[str]:
        """Fields that were set to something else than their default and that this run would not look at."""
        fitting = ["probe", "penalty", "site", "position", "positive", "train_share"]
        choosing = ["labels", "filter", "limit", "group_by", "template"]
        idle = [*(fitting if self.direction is not None else []), *(choosing if self.prompts else [])]
        fields = type(self).model_fields
        return [n for n in idle if getattr(self, n) != fields[n].get_default(call_default_factory=True)]

    def title(self) -> str:
        what = self.direction or f"{self.probe} of {self.described()} at {self.site}"
        return f"{what}: {self.answer!r} against {self.wrong!r}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.causal.move import causal_check
        from workbench.patching.metrics import LogitDifference

        note: dict[str, Any] = {}
        source: dict[str, Any] = {}
        groups: list[Any] | None = None
        if self.direction is not None:
            direction = _direction(self.direction)
            texts = self.prompts
            if not texts:
                used, note = self.chosen()
                texts, source, groups = used.texts, about(used), self.grouping(used)
        else:
            used, note = self.chosen()
            train, test = self._halves(used)
            direction, fitted = self._fit(model, train, progress)
            texts, source, groups = test.texts, about(used), self.grouping(test)
            note |= fitted | {"trained_on": f"{len(train)} of {len(used)} prompts"}
        n = len(texts)
        if n > self.n_prompts:
            from random import Random

            kept = Random(self.seed).sample(range(n), self.n_prompts)
            texts = [texts[i] for i in kept]
            groups = None if groups is None else [groups[i] for i in kept]
        note["checked_on"] = f"{len(texts)} of {n} prompts" + (
            "" if self.direction else " that it was not trained on"
        )
        shown = texts if self.prompts else [self.template.replace("{text}", text) for text in texts]
        result = causal_check(
            model,
            shown,
            direction,
            LogitDifference(self.answer, self.wrong),
            groups=groups,
            position=-1 if self.prompts and self.edit == "text" else self._places(model, texts, shown),
            strengths=self.strengths,
            control=self.control,
            n_random=self.n_random,
            ablate=self.ablate,
            seed=self.seed,
            force=self.force,
            progress=progress,
        )
        result.provenance.settings["dataset"] = source
        result.data.attrs.update(note | {"edit": self.edit, "position": self.edit})
        result.summary.update(note)
        result.summary.update({key: short(value) for key, value in result.summary.items()})
        return result

    def _halves(self, used: PromptSet) -> tuple[PromptSet, PromptSet]:
        by = self.group_by or ("group" if "group" in used.field_names else "id")
        return used.split(self.train_share, seed=self.seed, by=by)

    def _fit(
        self, model: LanguageModel, train: PromptSet, progress: Progress
    ) -> tuple[Direction, dict[str, Any]]:
        from probes.sweep import sweep
        from workbench.activations import collect

        sites = model.resolve(self.site)
        if len(sites) != 1:
            raise DataError(
                f"{self.site!r} stands for {len(sites)} sites: a direction belongs to one, give its name."
            )
        acts = collect(model, train.texts, sites=self.site, positions=self.position, progress=progress)
        self._enough(train)
        found = sweep(
            acts,
            train.labels,
            kinds=[self.probe],
            penalty=self.penalty,
            groups=self.grouping(train),
            positive=self.positive,
            folds=FOLDS,
            seed=self.seed,
            n_bootstrap=200,
            progress=progress,
        )
        best = found.summary["best"]
        said = {f"probe_{k}": best[k] for k in ("auc", "auc_low", "auc_high", "control_auc")}
        return found.direction(site=acts.sites[0], kind=self.probe), said

    def _enough(self, train: PromptSet) -> None:
        """The direction is cross-validated in five folds: each class needs as many groups (or prompts)."""
        units = self.grouping(train) or range(len(train))
        for label in sorted(set(train.labels)):
            n = len({str(u) for u, given in zip(units, train.labels, strict=True) if given == label})
            if n < FOLDS:
                raise DataError(
                    f"{len(train)} prompts fit the direction, and {label!r} stands in {n} groups of them: {FOLDS} or "
                    "more are needed to say how well it reads. Give more prompts (a larger --limit)."
                )

    def _places(self, model: LanguageModel, texts: list[str], shown: list[str]) -> Any:
        """Where the edit goes; for `text` the last token of each statement in its prompt."""
        if self.edit != "text":
            return -1 if self.edit == "last" else "all"
        found = []
        before = self.template.partition("{text}")[0]
        for text, prompt in zip(texts, shown, strict=True):
            part, whole = model.encode(before + text), model.encode(prompt)
            if whole[: len(part)] != part:
                raise DataError(
                    f"In {prompt!r} the statement has other tokens than by itself, so its last token cannot be found: "
                    "change the template, or edit='last'."
                )
            found.append([len(part) - 1])
        return found


def short(value: Any) -> Any:
    """Numbers to four digits, for the summary (the data keep all)."""
    if isinstance(value, dict):
        return {key: short(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _direction(name: str) -> Direction:
    """A direction from a file, or by its name in the library; of a saved probe its direction.

    Raises:
        DataError: no such file or name, or a file that holds neither.
    """
    from workbench.directions.named import named, one_named

    file = Path(name).expanduser()
    if file.is_file():
        if _is_probe(file):
            from probes.fitted import FittedProbe

            return FittedProbe.load(file).direction()
        try:
            named(name)
        except DataError as error:
            raise DataError(f"{name!r} holds no direction and no probe. {error}") from error
    return one_named(name)


def _is_probe(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return "probe" in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False
