"""The stages of the demo, as specs. Each becomes an ordinary run that can be opened, changed and run again."""

from __future__ import annotations

from dataclasses import dataclass

from probes.spec import ProbeSpec
from workbench.lens.spec import LensSpec
from workbench.patching.specs.sweep import PatchSpec
from workbench.specs import ModelSpec, Spec
from workbench.steering.specs.labelled import SteerSpec

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


@dataclass(frozen=True)
class Stage:
    """One part of the demo: a spec, and what a reader should look at in its figures."""

    name: str
    heading: str
    text: str
    spec: Spec


def stages(model: ModelSpec, n_layers: int = 30, seed: int = 0) -> list[Stage]:
    """Lens, probes, patching and steering on one model of so many layers; steered is just behind its middle."""
    return [
        Stage(
            "lens",
            "When does the answer appear?",
            "Every layer is decoded with the model's own readout. The prompt asks who is given the drink; the right "
            "name appears only in the last layers, and wins late. Random tokens rank in the middle of the "
            "vocabulary at every depth: that is the control.",
            LensSpec(model=model, seed=seed, prompt=CLEAN, target=" Mary"),
        ),
        Stage(
            "probe",
            "Where can true be told from false?",
            "A linear probe per layer reads, at the last token, whether a statement about a capital is true. "
            "Each city stands once truly and once falsely, and countries that exchange their cities are never on "
            "both sides of a split, so knowing names helps nothing. The dashed control is the same probe on "
            "shuffled labels; a layer is worth something by how far it stands above it.",
            ProbeSpec(
                model=model,
                seed=seed,
                dataset="capitals",
                filter={"negated": False, "template": "capital-of"},
                kinds=["logistic", "mass_mean"],
            ),
        ),
        Stage(
            "patch",
            "Which activations carry the answer?",
            "The activations of the clean prompt are put, one cell at a time, into a run where the other name "
            "is repeated. 1 restores the whole logit difference. Early layers matter at the name that was "
            "changed, late layers at the last token: in between, attention has moved the answer. The control "
            "puts in the activation of a wrong position: what it achieves as well comes from taking the other "
            "name away, not from putting the right one in.",
            PatchSpec(
                model=model,
                seed=seed,
                clean=CLEAN,
                corrupt=CORRUPT,
                answer=" Mary",
                wrong=" John",
                site="resid_pre",
            ),
        ),
        Stage(
            "steer",
            "Can the stream be pushed?",
            "The difference between the means of positive and negative reviews is added to the stream while the "
            "model reads other prompts. The score is logit(' good') − logit(' bad'). Random directions of the "
            "same norm are the control: a direction means something only where it moves the score and they do not.",
            SteerSpec(
                model=model,
                seed=seed,
                site=f"blocks.{16 * n_layers // 30}.hook_resid_post",
                strengths=[-40, -20, -10, 10, 20, 40],
            ),
        ),
    ]
