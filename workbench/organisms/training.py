"""Training an organism: reproducible, with progress, and resumed where it was interrupted.

The working folder holds the latest state: weights and optimiser as safetensors, the step and the curve as
JSON. It is replaced in one piece, so a kill at any moment costs at most the steps since the last save, and
the resumed training makes the same steps: batches depend on seed and step only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.errors import ModelError
from workbench.files import publish_file, publish_folder
from workbench.organisms.organism import IGNORE, Batch, Organism, Plan
from workbench.organisms.shipped import refuse_foreign
from workbench.organisms.weight_statistics import weight_statistics
from workbench.progress import Progress, Silent

STATE = "state.json"
_WEIGHTS = "weights.safetensors"
_OPTIMISER = "optimiser.safetensors"


@dataclass
class Curve:
    """What happened during a training."""

    early_losses: list[float] = field(default_factory=list)
    """Loss (nats) of each of the first steps."""
    points: list[dict[str, float]] = field(default_factory=list)
    """One dictionary per evaluation: step, mean loss since the last one, and the held-out figures."""
    minutes: float = 0.0
    """Wall-clock time spent training, over all sessions."""


@dataclass
class Trained:
    """A finished (or stopped) training."""

    model: Any
    step: int
    curve: Curve


def train(
    organism: Organism,
    *,
    seed: int = 0,
    steps: int | None = None,
    folder: Path | None = None,
    save_every: float = 60.0,
    device: str = "cpu",
    progress: Progress | None = None,
    on_evaluation: Callable[[Any, dict[str, float]], None] | None = None,
) -> Trained:
    """Train `organism` from its seed, or go on where `folder` says it stopped.

    Args:
        organism: what to train.
        seed: of the weights and of every batch.
        steps: stop after so many in all; default: the organism's plan. The schedule is always the plan's.
        folder: working folder for resuming. Without one nothing is written and nothing resumed.
        save_every: seconds between two saves of the working folder.
        device: where to compute, for instance `cuda`.
        progress: bars, or a cancel (`Cancelled` is raised after the state was saved; so it is at other interruptions,
            unless they fall into the moment between two states).
        on_evaluation: called with the model and the new point of the curve after each evaluation.

    Raises:
        ModelError: `folder` belongs to another organism, seed or plan, or holds something else; the loss is not finite.

    Example:
        >>> train(organisms.get("two-hop"), seed=0, folder=Path("work/two-hop"))
    """
    if folder is not None:
        refuse_foreign(folder, STATE, "a training")
    plan, progress = organism.plan, progress or Silent()
    organism.trained_with = seed
    steps = plan.steps if steps is None else min(steps, plan.steps)
    model = organism.build(seed).to(device).train()
    optimiser = _optimiser(model, plan)
    identity = _identity(organism, seed)
    step, curve, recent = 0, Curve(), []
    if folder is not None and (folder / STATE).is_file():
        step, curve, recent = _load(folder, identity, model, optimiser)
    progress.stage(f"train {organism.name}", steps)
    progress.advance(min(step, steps))
    began, saved = time.monotonic(), time.monotonic()
    if folder is not None and step == 0 and 0 in organism.snapshots:
        keep_snapshot(model, snapshots_of(folder), 0)
    minutes = curve.minutes
    whole = True  # whether weights, step and curve belong together, so that they may be saved
    try:
        while step < steps:
            loss = _gradients(organism, model, optimiser, organism.batch(seed, step), step, device)
            whole = False
            optimiser.step()
            if step < plan.early_steps:
                curve.early_losses.append(loss)
            recent.append(loss)
            step += 1
            if step % plan.evaluate_every == 0 or step == plan.steps:
                model.eval()
                point = {"step": step, "loss": sum(recent) / len(recent), **organism.evaluate(model)}
                if organism.weight_statistics:
                    point |= {f"weights_{k}": v for k, v in weight_statistics(model).items()}
                model.train()
                curve.points.append(point)
                recent = []
                if on_evaluation is not None:
                    on_evaluation(model, point)
            if folder is not None and step in organism.snapshots:
                keep_snapshot(model, snapshots_of(folder), step)
            whole = True
            curve.minutes = minutes + (time.monotonic() - began) / 60
            if folder is not None and (time.monotonic() - saved > save_every or step == steps):
                _save(folder, identity, model, optimiser, step, curve, recent)
                saved = time.monotonic()
            progress.advance()
    except BaseException:
        if folder is not None and step > 0 and whole:
            _save(folder, identity, model, optimiser, step, curve, recent)
        raise
    return Trained(model.eval(), step, curve)


def snapshots_of(folder: Path) -> Path:
    """Where the weights kept on the way lie, for a working folder."""
    return folder.with_name(folder.name + "-snapshots")


def snapshot_name(step: int) -> str:
    """The file of the weights after so many steps."""
    return f"step-{step:05d}.safetensors"


def keep_snapshot(model: Any, folder: Path, step: int) -> None:
    """Write the weights as they are to `folder/step-00000.safetensors`."""
    from safetensors.torch import save_file

    weights = {name: p.detach().cpu().clone().contiguous() for name, p in model.named_parameters()}
    with publish_file(folder / snapshot_name(step)) as temporary:
        save_file(weights, temporary)
        temporary.chmod(0o644)


def loss_of(organism: Organism, model: Any, batch: Batch, step: int | None = None) -> Tensor:
    """Mean cross-entropy (nats) over the positions of a batch at which something is learnt."""
    logits = organism.forward(model, batch.ids, step).float()
    wanted = batch.targets != IGNORE
    if batch.likely is not None:
        return -(batch.likely[wanted] * F.log_softmax(logits[wanted], -1)).sum(-1).mean()
    return F.cross_entropy(logits[wanted], batch.targets[wanted])


def _gradients(
    organism: Organism, model: Any, optimiser: torch.optim.Optimizer, batch: Batch, step: int, device: str
) -> float:
    """All of a step but the change of the weights: the loss; gradients and learning rate are set."""
    plan = organism.plan
    batch = Batch(
        batch.ids.to(device),
        batch.targets.to(device),
        None if batch.likely is None else batch.likely.to(device),
    )
    for group in optimiser.param_groups:
        group["lr"] = plan.rate(step)
    low = plan.precision == "bfloat16"
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if low else nullcontext():
        loss = loss_of(organism, model, batch, step)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
    value = float(loss.detach())
    if value != value or value == float("inf"):
        raise ModelError(f"{organism.name}: the loss of step {step} is {value}; lower the learning rate.")
    return value


def _optimiser(model: Any, plan: Any) -> torch.optim.AdamW:
    # Weight decay pulls on matrices only: norms and biases have no business near zero.
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, eps=plan.epsilon, fused=True)


def _identity(organism: Organism, seed: int) -> dict[str, Any]:
    return {"organism": organism.name, "seed": seed, "plan": json.loads(json.dumps(asdict(organism.plan)))}


def _save(
    folder: Path,
    identity: dict[str, Any],
    model: Any,
    optimiser: torch.optim.Optimizer,
    step: int,
    curve: Curve,
    recent: list[float],
) -> None:
    from safetensors.torch import save_file

    moments = {
        f"{index}.{name}": value.detach().clone().contiguous()
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }
    weights = {name: p.detach().clone().contiguous() for name, p in model.named_parameters()}
    with publish_folder(folder, replace=True) as temporary:
        save_file(weights, temporary / _WEIGHTS)
        save_file(moments, temporary / _OPTIMISER)
        state = {**identity, "step": step, "curve": asdict(curve), "recent": recent}
        (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")


def _load(
    folder: Path, identity: dict[str, Any], model: Any, optimiser: torch.optim.Optimizer
) -> tuple[int, Curve, list[float]]:
    from safetensors.torch import load_file

    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    # A field that plans did not have yet had its default.
    state["plan"] = {**asdict(Plan(steps=0)), **state["plan"]}
    state["plan"]["betas"] = list(state["plan"]["betas"])
    other = [name for name, value in identity.items() if state.get(name) != value]
    if other:
        raise ModelError(
            f"{folder} holds a training with another {other[0]} ({state.get(other[0])!r}, not "
            f"{identity[other[0]]!r}): take another folder, or delete it to begin anew."
        )
    with torch.no_grad():
        weights = load_file(folder / _WEIGHTS)
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    described = optimiser.state_dict()
    described["state"] = {}
    for key, value in load_file(folder / _OPTIMISER).items():
        index, name = key.split(".", 1)
        described["state"].setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(described)
    return state["step"], Curve(**state["curve"]), state["recent"]
