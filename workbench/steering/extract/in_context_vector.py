"""In-context vectors: one axis through all layers at once, from demonstration pairs (x_i, y_i).

    D_i  = concat_l [ h_l(y_i)[t] - h_l(x_i)[t] ]    residual stream after each block, stacked
    P    = first principal axis of the centred D_i, of norm 1 over all layers together, P · D̄ ≥ 0
    icv  = P + D̄                                     reshaped to [layer, d]: a direction at each layer

Liu et al. 2023, 2311.06668. Their code signs P by its largest component, which has nothing to do with the
demonstrations; here it is tied to the mean difference. P has norm 1 over all layers while D̄ has the size of
activations, so the sum is nearly D̄ wherever ‖D̄‖ is far above 1 (`settings["mean_norm"]`); `parts="pca"` takes P
alone, `parts="mean"` D̄ alone. The stream before block 0 is left out, as in their code.

The vectors are read from the residual stream but meant for the output of the MLP (their code) or the stream:
`apply_at` says which site the directions get. What is added there is theirs up to a factor: each layer's vector at norm
1. `norm_preserving` is their edit as a plain function of one activation:

    s = 1 + max(0, cos(m, -v));   m ← ‖m‖ · unit( m / ‖m‖ + λ s v )

    scale of each direction = sqrt(mean_i (D_i,l · v_l)²)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError
from workbench.model.tokens import Prompt
from workbench.steering.extract.contrast import (
    Contrast,
    Position,
    contrast,
    negligible,
    root_mean_square,
    whole_layers,
)
from workbench.steering.extract.pca_of_differences import at_least_two, first_axis
from workbench.steering.extract.quality import held_out

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.progress import Progress

Parts = Literal["pca+mean", "pca", "mean"]
ApplyAt = Literal["resid_post", "mlp_out"]


def in_context_vector(
    model: LanguageModel,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    *,
    layers: Sequence[int] | None = None,
    position: Position = -1,
    parts: Parts = "pca+mean",
    apply_at: ApplyAt = "mlp_out",
    shuffles: int = 20,
    seed: int = 0,
    name: str = "in-context vector",
    progress: Progress | None = None,
) -> DirectionSet:
    """A direction at every layer, from pairs of demonstrations.

    Args:
        model: the language model.
        positive: the wanted side y of each pair (the rewritten text), in the order of
        negative: the given side x.
        layers: blocks to take together; all by default.
        position: which token of each prompt; the last by default, as in the paper.
        parts: `pca+mean` (default, their code), `pca` or `mean`.
        apply_at: site of the directions: `mlp_out` (default, their code) or `resid_post`, where they were read.
        shuffles: runs of the label-shuffled control; 0 leaves the held-out quality away.
        seed: of halves, control and bootstrap.
        name: of the set and of each direction.
        progress: where to report.

    Returns:
        A `DirectionSet` with one direction a layer. Its settings have `explained`, `cosine_to_mean`, `mean_norm` of the
        stacked axis and `held_out` of all layers together (the sum of the layers' scores, that is the stacked
        product); each direction's settings have `held_out` of its own layer, read in the residual stream, and
        `read_at`.

    Raises:
        DataError: an empty set, unequal sets, one pair only, the same prompts on both sides.
        SiteError, PositionError, PromptError: as in `collect`.

    Example:
        >>> icv = in_context_vector(model, formal, casual, apply_at="resid_post")
        >>> icv["blocks.7.hook_resid_post"].settings["held_out"]["auc"]
    """
    if parts not in ("pca+mean", "pca", "mean") or apply_at not in ("resid_post", "mlp_out"):
        raise DataError(
            f"parts={parts!r}, apply_at={apply_at!r}: give parts 'pca+mean', 'pca' or 'mean', and apply_at "
            "'mlp_out' or 'resid_post'."
        )
    what = "An in-context vector"
    chosen = range(model.n_layers) if layers is None else whole_layers(layers)
    sites = [f"blocks.{layer}.hook_resid_post" for layer in chosen]
    targets = [site.name for site in model.resolve([f"blocks.{layer}.hook_{apply_at}" for layer in chosen])]
    rows = contrast(
        model, positive, negative, sites, position=position, paired=True, what=what, progress=progress
    )
    return vectors_of(
        rows, targets, parts=parts, shuffles=shuffles, seed=seed, name=name, source="in_context_vector", what=what,
        settings={"apply_at": apply_at},
    )  # fmt: skip


def vectors_of(
    rows: Contrast,
    targets: Sequence[str],
    *,
    parts: Parts,
    shuffles: int,
    seed: int,
    name: str,
    source: str,
    what: str,
    settings: dict[str, Any],
) -> DirectionSet:
    """The set of directions from rows that were read; each gets the site that `targets` names for its layer."""
    at_least_two(rows.differences, what)
    if negligible(rows.differences.abs().amax((0, 1)), rows.positive[-1]):
        raise DataError("All pairs are the same at every layer: there is no direction between them.")

    def fit(a: Tensor, b: Tensor) -> Tensor:
        return stacked_vector(a - b, parts)

    each = held_out(fit, rows.positive, rows.negative, paired=True, seed=seed, shuffles=shuffles)
    flat = [x.transpose(0, 1).flatten(1)[None] for x in (rows.positive, rows.negative)]
    shape = rows.differences.shape

    def fit_flat(a: Tensor, b: Tensor) -> Tensor:
        return fit(*(x[0].unflatten(1, (shape[0], shape[2])).transpose(0, 1) for x in (a, b))).flatten()[None]

    (together,) = held_out(fit_flat, *flat, paired=True, seed=seed, shuffles=shuffles)
    stacked = rows.differences.transpose(0, 1).flatten(1)
    axis, mean = first_axis(stacked, centred=True), stacked.mean(0)
    rest = (stacked - mean).square().sum()
    known = {
        **settings,
        "parts": parts,
        "explained": float(((stacked - mean) @ axis).square().sum() / rest) if float(rest) > 0 else None,
        "cosine_to_mean": float(axis @ mean / mean.norm().clamp(min=1e-300)),
        "mean_norm": float(mean.norm()),
    }
    made: list[Direction] = []
    for s, vector in enumerate(stacked_vector(rows.differences, parts)):
        norm = float(vector.norm())
        one = rows.direction(
            s, vector, scale=root_mean_square(rows.differences[s], vector), name=name, source=source,
            read_at=rows.sites[s], norm=norm, held_out=each[s], **known,
        )  # fmt: skip
        made.append(one if targets[s] == rows.sites[s] else one.at(targets[s]))
    return DirectionSet(made, name=name, settings={**rows.settings, **known, "held_out": together})


def stacked_vector(differences: Float64[Tensor, "layer pair d"], parts: Parts) -> Float64[Tensor, "layer d"]:
    """P + D̄ (or one of them) of the stacked differences, layer by layer."""
    n_layers, _, d = differences.shape
    stacked = differences.transpose(0, 1).flatten(1)
    mean = stacked.mean(0)
    vector = torch.zeros_like(mean)
    if "pca" in parts:
        vector = vector + first_axis(stacked, centred=True)
    if "mean" in parts:
        vector = vector + mean
    return vector.view(n_layers, d)


def norm_preserving(
    direction: Direction, strength: float
) -> Callable[[Float[Tensor, "*rows d"]], Float[Tensor, "*rows d"]]:
    """The paper's edit: turn an activation towards a direction without changing its norm.

    Args:
        direction: v.
        strength: λ, relative to the activation's norm (their parser's default is 0.8, their example's 0.1).

    Returns:
        A function for `model.edit`.

    Example:
        >>> with model.edit({d.site: norm_preserving(d, 0.1) for d in icv}):
        ...     model.logits(prompt)
    """
    unit = direction.vector

    def edit(activation: Tensor) -> Tensor:
        m = activation.to(torch.promote_types(activation.dtype, torch.float32))
        v = unit.to(m)
        norm = m.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        similar = 1 + torch.relu(-(m / norm) @ v)[..., None]
        turned = m / norm + strength * similar * v
        return (norm * turned / turned.norm(dim=-1, keepdim=True).clamp(min=1e-12)).to(activation.dtype)

    return edit
