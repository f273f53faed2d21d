"""Spec of one direction at work: which, how it is applied, and what is looked at.

    kind: steer_direction
    direction: truth            a name of the library, or a file; or positive + negative (+ site): a mean difference
    look_at: texts              continuations beside strength 0 and a random direction of the same norm
           | dose_response      score and KL against strength, beside random directions

The result of either carries the direction itself (`workbench.directions.carried`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from workbench.errors import DataError
from workbench.progress import Progress
from workbench.specs import Spec
from workbench.steering.specs.rule import Rule

if TYPE_CHECKING:
    from workbench.directions import Direction, DirectionSet
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result

NORMS = ("add", "add_keeping_norm")
"""Operations whose strength is the norm of what is added: for these it can be given in natural units."""


class SteerDirectionSpec(Spec):
    """One direction, applied to prompts at several strengths.

    Attributes:
        look_at: `texts` or `dose_response`.
        direction: name in the library of directions, or a file; empty where the direction is made here.
        positive, negative: prompts of the mean difference that is made here, at `site`.
        force: accept a direction that was made on another model.
        prompts: what is continued.
        strengths: 0 is always among them.
        units: `activation` (norm of what is added) or `natural` (times the direction's scale).
        op, parameters: the operation and its parameters (`workbench.steering.OPERATIONS`).
        where: position rule: a name, `{"from": 3}` or `{"from_text": "Mary"}`.
        max_new_tokens: length of a continuation; for a dose-response 0 measures no texts.
        temperature: 0 is greedy.
        answer, wrong: of a dose-response, the score is the logit of `answer` minus that of `wrong`.
        n_random: random directions of the dose-response's control.
    """

    kind: ClassVar[str] = "steer_direction"

    look_at: Literal["texts", "dose_response"] = "texts"
    direction: str = ""
    positive: list[str] = Field(default_factory=list)
    negative: list[str] = Field(default_factory=list)
    site: str = ""
    force: bool = False
    prompts: list[str] = Field(min_length=1)
    strengths: list[float] = Field(min_length=1)
    units: Literal["activation", "natural"] = "activation"
    op: str = "add"
    parameters: dict[str, float] = Field(default_factory=dict)
    where: Rule = "all"
    max_new_tokens: int = Field(default=30, ge=0)
    temperature: float = Field(default=0.0, ge=0)
    answer: str = " good"
    wrong: str = " bad"
    n_random: int = Field(default=5, ge=1)

    @field_validator("prompts")
    @classmethod
    def _no_empty_prompt(cls, prompts: list[str]) -> list[str]:
        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("a prompt is empty: give a text for the model to continue")
        return prompts

    @field_validator("strengths")
    @classmethod
    def _finite(cls, strengths: list[float]) -> list[float]:
        if not all(math.isfinite(s) for s in strengths):
            raise ValueError(f"the strengths {strengths} are not all finite: give numbers such as -8 and 8")
        return strengths

    @model_validator(mode="after")
    def _one_source(self) -> SteerDirectionSpec:
        made = bool(self.positive or self.negative)
        if made == bool(self.direction):
            raise ValueError(
                "give either a direction (its name in the library, or a file), or positive and negative prompts"
            )
        if made and not (self.positive and self.negative and self.site):
            raise ValueError(
                "a mean difference needs positive prompts, negative prompts and a site; "
                f"there are {len(self.positive)} and {len(self.negative)} at {self.site!r}"
            )
        if self.units == "natural" and self.op not in NORMS:
            raise ValueError(
                f"the strength of {self.op!r} is not a norm, so it cannot be given in units of the direction's "
                "scale: use activation units"
            )
        if self.look_at == "dose_response" and (self.op != "add" or self.temperature):
            raise ValueError(
                "a dose-response measures op 'add' with greedy continuations: choose these, or look at texts"
            )
        if self.look_at == "texts" and not self.max_new_tokens:
            raise ValueError("texts need at least 1 new token")
        return self

    def title(self) -> str:
        what = self.direction or f"mean difference at {self.site}"
        return f"{what}: {'texts' if self.look_at == 'texts' else 'dose–response'}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.directions.carried import with_direction
        from workbench.steering.texts import steered_texts

        direction = self.made(model, progress)
        strengths = in_activation_units(direction, self.strengths, self.units)
        if self.look_at == "dose_response":
            result = self._dose_response(model, direction, strengths, progress)
        else:
            result = steered_texts(
                model, self.prompts, direction, strengths, op=self.op, parameters=self.parameters, where=self.where,
                max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed, force=self.force,
                progress=progress,
            )  # fmt: skip
        return replace(result, data=with_direction(result.data, direction))

    def made(self, model: LanguageModel, progress: Progress) -> Direction | DirectionSet:
        """The direction: from the library (of a set of one its member), or the mean difference of the prompts.

        Raises what those raise.
        """
        if not self.direction:
            from workbench.steering import mean_difference

            return mean_difference(
                model, self.positive, self.negative, self.site, seed=self.seed, progress=progress
            )
        from workbench.directions import DirectionSet
        from workbench.directions.named import named

        found = named(self.direction)
        if isinstance(found, DirectionSet) and len(found) == 1:
            found = found[0]
        found.fits(model, force=self.force)
        return found

    def _dose_response(
        self,
        model: LanguageModel,
        direction: Direction | DirectionSet,
        strengths: list[float],
        progress: Progress,
    ) -> Result:
        from workbench.directions import DirectionSet
        from workbench.directions.named import one_named
        from workbench.patching.metrics import LogitDifference
        from workbench.steering import dose_response
        from workbench.steering.rules import as_rule

        if isinstance(direction, DirectionSet):
            direction = one_named(self.direction)
        return dose_response(
            model, self.prompts, direction, strengths, LogitDifference(self.answer, self.wrong),
            n_random=self.n_random, where=as_rule(self.where), show_text=self.max_new_tokens, seed=self.seed,
            force=self.force, progress=progress,
        )  # fmt: skip


def in_activation_units(
    direction: Direction | DirectionSet, strengths: list[float], units: str
) -> list[float]:
    """Strengths as norms of what is added: times the scale where they are in natural units.

    Raises:
        DataError: natural units of a set, whose members have a scale each.
    """
    if units != "natural":
        return list(strengths)
    if not hasattr(direction, "strength"):
        raise DataError(
            f"A set of {len(direction)} directions has a scale for each: give strengths in activation units."  # type: ignore[arg-type]
        )
    return [direction.strength(s) for s in strengths]  # type: ignore[union-attr]
