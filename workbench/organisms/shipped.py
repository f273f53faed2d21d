"""Trained organisms on disk: an ordinary model folder, its card for people and its card for machines.

NAME/
    config.json, model.safetensors, tokenizer.json, tokenizer_config.json
    README.md         model card
    card.json         task, data, seed, figures, sizes, machine
    training.json     loss of the first steps, figures at each evaluation
    snapshots/        weights kept on the way, where the organism asks for them
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.datasets.paths import models_folder
from workbench.errors import ModelError
from workbench.files import publish_folder

if TYPE_CHECKING:
    from workbench.organisms.organism import Organism
    from workbench.organisms.training import Trained

CARD = "card.json"
TRAINING = "training.json"
SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Card:
    """What is stated about a trained organism."""

    name: str
    summary: str
    task: str
    seed: int
    steps: int
    figures: Mapping[str, float]
    """On all held-out data, from the weights as they are stored."""
    goals: tuple[Mapping[str, Any], ...]
    n_parameters: int
    n_layers: int
    architecture: str
    dtype: str
    bytes: int
    """Of model.safetensors."""
    minutes: float
    machine: str
    torch: str
    licence: str = "Apache-2.0"
    variant_of: str | None = None


def folder(name: str) -> Path:
    """The folder of a shipped model.

    Raises:
        ModelError: it is not there.
    """
    found = models_folder() / name
    if not (found / "config.json").is_file():
        raise ModelError(
            f"The model {name!r} did not come with this installation: train it with `workbench models train {name}`."
        )
    return found


def cards() -> list[Card]:
    """The cards of all shipped models, in the order of the registry."""
    from workbench.organisms.registry import names

    there = [name for name in names() if (models_folder() / name / CARD).is_file()]
    return [card(name) for name in there]


def card(name: str) -> Card:
    """The card of a shipped model.

    Example:
        >>> card("addition").figures["accuracy"]
    """
    given = json.loads((folder(name) / CARD).read_text(encoding="utf-8"))
    return Card(**{**given, "goals": tuple(given["goals"])})


def training(name: str) -> dict[str, Any]:
    """The training curve of a shipped model: `early_losses`, `points`, `minutes`."""
    return json.loads((folder(name) / TRAINING).read_text(encoding="utf-8"))


def write(
    organism: Organism,
    trained: Trained,
    *,
    seed: int,
    target: Path,
    snapshots: Path | None = None,
    machine: str | None = None,
) -> Card:
    """Write a trained organism as a model folder. The figures on its card are measured from the weights as stored.

    Args:
        organism: what was trained.
        trained: the outcome of `train`.
        seed: it was trained with.
        target: the folder to make; an existing one of a trained organism is replaced in one step.
        snapshots: a folder of weights kept on the way; those of the steps made go along.
        machine: what to state; default: this one.

    Raises:
        ModelError: `target` holds something else than a trained organism.
    """
    import torch

    from workbench.model.quiet import quiet_transformers
    from workbench.organisms.model_card import readme
    from workbench.organisms.tokenizer import word_tokenizer
    from workbench.organisms.training import snapshot_name

    refuse_foreign(target, CARD, "a trained model")
    organism.trained_with = seed
    model = trained.model.to("cpu")
    measured = _as_stored(organism, model)
    figures = organism.evaluate(measured, full=True)
    described = model.config.to_dict()
    with publish_folder(target, replace=True) as temporary:
        with quiet_transformers():
            model.to(organism.stored_as).save_pretrained(temporary)
        tokenizer = word_tokenizer(organism.words(), symbols=organism.symbols, start=organism.start)
        tokenizer.save_pretrained(temporary)
        (temporary / "generation_config.json").unlink(missing_ok=True)
        card = Card(
            name=organism.name,
            summary=organism.summary,
            task=organism.data,
            seed=seed,
            steps=trained.step,
            figures=figures,
            goals=tuple(asdict(goal) for goal in organism.goals),
            n_parameters=sum(p.numel() for p in model.parameters()),
            n_layers=described.get("num_hidden_layers") or described["n_layer"],
            architecture=type(model).__name__,
            dtype=str(organism.stored_as).removeprefix("torch."),
            bytes=(temporary / "model.safetensors").stat().st_size,
            minutes=round(trained.curve.minutes, 1),
            machine=machine or f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
            torch=torch.__version__,
            variant_of=organism.variant_of,
        )
        (temporary / CARD).write_text(_pretty(asdict(card)), encoding="utf-8")
        (temporary / TRAINING).write_text(_pretty(_rounded(asdict(trained.curve))), encoding="utf-8")
        (temporary / "model.safetensors").chmod(0o644)  # the library makes it readable for its owner only
        # Others in that folder are of an earlier training that came further.
        names = [snapshot_name(step) for step in organism.snapshots if step <= trained.step]
        kept = [snapshots / name for name in names if snapshots is not None and (snapshots / name).is_file()]
        for path in kept:
            (temporary / SNAPSHOTS).mkdir(exist_ok=True)
            shutil.copy2(path, temporary / SNAPSHOTS)
        (temporary / "README.md").write_text(readme(organism, card, trained.curve), encoding="utf-8")
    return card


def refuse_foreign(folder: Path, mark: str, what: str) -> None:
    """Writing replaces a whole folder: refuse one that holds anything but what it would replace.

    Raises:
        ModelError: `folder` is a file, or has something in it but not the file `mark`.
    """
    if not folder.exists() or (folder / mark).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        there = "holds other things" if folder.is_dir() else "is a file"
        raise ModelError(
            f"{folder} {there} and would be replaced by the folder of {what}: name one that is empty, does not exist "
            f"yet or has a {mark}."
        )


def _as_stored(organism: Organism, model: Any) -> Any:
    """A copy whose weights went through the stored data type and back."""
    import copy

    return copy.deepcopy(model).to(organism.stored_as).float().eval()


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    """Seven significant digits: a float32 has no more."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
