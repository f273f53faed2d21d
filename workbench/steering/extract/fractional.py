"""Fractional reasoning: the same question under two instructions.

    x_i = negative instruction + q_i        y_i = positive instruction + q_i
    D_i = concat_l [ h_l(y_i)[-1] - h_l(x_i)[-1] ]          vector = P · sign(P · D̄) + D̄, layer by layer

the in-context vector of these pairs, its sign tied to the mean difference (the paper does so here too). It is applied
to the MLP output at the *last* token of each step only, norm preserving and without the similarity factor:

    m ← ‖m‖ · unit( m / ‖m‖ + α r(t) v )          r(t) = max( ½ (1 + cos(π min(t, T) / T)), ½ ),  T = 50 steps

so a fraction α of the instruction is given; the paper draws α from U(0, 0.15) for each of several trials and takes a
majority vote. Liu et al. 2025, 2506.15882 (256 questions; direct answers against step-by-step reasoning). How it is to
be applied stands in `settings["application"]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError
from workbench.steering.extract.contrast import contrast, whole_layers
from workbench.steering.extract.in_context_vector import ApplyAt, Parts, vectors_of
from workbench.steering.rules import From, rule_settings

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.progress import Progress

POSITIVE = "Solve the problem with step-by-step detailed reasoning. "
NEGATIVE = "Solve the problem with direct answering. "
STEPS = 50
FLOOR = 0.5
HIGHEST = 0.15


def fractional(
    model: LanguageModel,
    questions: Sequence[str],
    *,
    positive: str = POSITIVE,
    negative: str = NEGATIVE,
    layers: Sequence[int] | None = None,
    parts: Parts = "pca+mean",
    apply_at: ApplyAt = "mlp_out",
    chat: bool = False,
    shuffles: int = 20,
    seed: int = 0,
    name: str = "fractional reasoning",
    progress: Progress | None = None,
) -> DirectionSet:
    """A direction at every layer, from an instruction towards another.

    Args:
        model: the language model.
        questions: at least two; the same under both instructions.
        positive, negative: what stands before each question.
        layers, parts, apply_at, shuffles, seed, name, progress: as in `in_context_vector`.
        chat: put instruction and question into the model's chat template, as one message of the user.

    Returns:
        As `in_context_vector`; `settings["application"]` says where, when and how strongly the paper adds it.

    Raises:
        DataError: no questions or one; two instructions that are the same.
        SiteError, PromptError: as in `collect`.

    Example:
        >>> deeper = fractional(model, ["What is 12 times 7?", "How many days have three weeks?"])
        >>> deeper.settings["application"]["positions"]
        {'from': -1}
    """
    asked = [questions] if isinstance(questions, str) else list(questions)
    if not asked:
        raise DataError("No questions were given: fractional reasoning needs at least 2.")
    if positive == negative:
        raise DataError(f"Both instructions are {positive!r}: give two that differ.")
    if apply_at not in ("mlp_out", "resid_post"):
        raise DataError(f"apply_at={apply_at!r}: give 'mlp_out' or 'resid_post'.")
    what = "A fractional-reasoning vector"
    chosen = range(model.n_layers) if layers is None else whole_layers(layers)
    sites = [f"blocks.{layer}.hook_resid_post" for layer in chosen]
    targets = [site.name for site in model.resolve([f"blocks.{layer}.hook_{apply_at}" for layer in chosen])]

    def prompt(instruction: str, question: str) -> str | list[dict[str, str]]:
        text = instruction + question
        return [{"role": "user", "content": text}] if chat else text

    rows = contrast(
        model,
        [prompt(positive, q) for q in asked],
        [prompt(negative, q) for q in asked],
        sites,
        paired=True,
        what=what,
        progress=progress,
    )
    application = {
        "site": apply_at,
        "positions": rule_settings(From(index=-1)),
        "edit": "norm preserving, without a similarity factor",
        "strength_range": [0.0, HIGHEST],
        "schedule": f"max((1 + cos(pi min(t, {STEPS}) / {STEPS})) / 2, {FLOOR})",
    }
    settings = {
        "positive": positive,
        "negative": negative,
        "chat": chat,
        "apply_at": apply_at,
        "application": application,
    }
    return vectors_of(
        rows, targets, parts=parts, shuffles=shuffles, seed=seed, name=name, source="fractional", what=what,
        settings=settings,
    )  # fmt: skip


def rampdown(step: int) -> float:
    """r(t): 1 at the first generated token, falling along a cosine, never below ½."""
    if step < 0:
        raise DataError(f"Steps are counted from 0, not {step}.")
    return max(0.5 * (1 + math.cos(math.pi * min(step, STEPS) / STEPS)), FLOOR)


def trial_strengths(n: int, seed: int, highest: float = HIGHEST) -> list[float]:
    """α of each of `n` trials, drawn from U(0, highest)."""
    if n < 1 or not highest > 0:
        raise DataError(f"{n} trials up to a strength of {highest}: both must be above 0.")
    return np.random.default_rng(seed).uniform(0, highest, n).tolist()


def last_token_edit(
    direction: Direction, strength: float, step: int = 0
) -> Callable[[Float[Tensor, "batch position d"]], Float[Tensor, "batch position d"]]:
    """The paper's edit of one forward pass: the last column of the batch, at generation step `step`.

    Prompts are padded on the left, so the last column is each row's last token. With a KV cache each token is edited
    once, when it is the last; the same in `generate`, with and without cache, is `op=Operation("in_context",
    similarity=0)`, `where=From(index=-1)`, `schedule=CosineDown(50, 0.5)`.
    """
    factor = strength * rampdown(step)

    def edit(activation: Tensor) -> Tensor:
        m = activation[:, -1].to(torch.promote_types(activation.dtype, torch.float32))
        norm = m.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        turned = m / norm + factor * direction.vector.to(m)
        new = norm * turned / turned.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return torch.cat([activation[:, :-1], new[:, None].to(activation.dtype)], dim=1)

    return edit
