"""PCA of paired differences: the axis along which the two prompts of a pair differ most.

    D_i = h(p_i+) - h(p_i-)
    v   = first eigenvector of  Σ_i D_i D_iᵀ               (default: about zero, so the shared shift counts)
          or of  Σ_i (D_i - D̄)(D_i - D̄)ᵀ  with `centred`   (about the mean, so only what varies from pair to pair does)

An eigenvector has no sign; it is tied to the mean difference: v · D̄ ≥ 0, that is towards the positive set.

Zou et al. 2023 (2310.01405) flip each difference at random before a centred PCA, which about is the PCA about zero.
With `centred` and no spread beyond the shared shift, v says little: `settings["cosine_to_mean"]` tells.

    scale = sqrt(mean_i (D_i · v)²)        how far a pair lies apart along v, in activation units
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError
from workbench.model.tokens import Prompt
from workbench.steering.extract.contrast import (
    Position,
    contrast,
    negligible,
    one_site,
    root_mean_square,
    with_reference,
)
from workbench.steering.extract.quality import held_out

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.progress import Progress


def pca_of_differences(
    model: LanguageModel,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    site: str,
    *,
    position: Position = -1,
    centred: bool = False,
    reference: Any = None,
    shuffles: int = 50,
    seed: int = 0,
    name: str = "PCA of differences",
    progress: Progress | None = None,
) -> Direction:
    """The first principal axis of paired differences at one site.

    Args:
        model: the language model.
        positive, negative: prompts of each kind, pairs in order; at least two pairs.
        site: one site.
        position: which token of each prompt; see `mean_difference`.
        centred: subtract the mean difference first (see the module).
        reference: ordinary text (or activations) whose spread along the direction becomes its scale.
        shuffles: runs of the label-shuffled control; 0 leaves the held-out quality away.
        seed: of halves, control and bootstrap.
        name: shown in tables and figures.
        progress: where to report.

    Returns:
        A `Direction`; `settings` has `explained` (share of the sum of squares along it), `cosine_to_mean` and
        `held_out`.

    Raises:
        DataError: an empty set, unequal sets, one pair only, the same prompts on both sides, differences of zero.
        SiteError, PositionError, PromptError: as in `collect`.

    Example:
        >>> pca_of_differences(model, honest, lying, "blocks.14.hook_resid_post").settings["explained"]
    """
    where = one_site(model, site, "pca_of_differences_at")
    return pca_of_differences_at(
        model, positive, negative, where, position=position, centred=centred, reference=reference, shuffles=shuffles,
        seed=seed, name=name, progress=progress,
    )[0]  # fmt: skip


def pca_of_differences_at(
    model: LanguageModel,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    sites: str | Iterable[str] = "blocks.*.hook_resid_post",
    *,
    position: Position = -1,
    centred: bool = False,
    reference: Any = None,
    shuffles: int = 50,
    seed: int = 0,
    name: str = "PCA of differences",
    progress: Progress | None = None,
) -> DirectionSet:
    """The first principal axis at each of many sites, each by itself; `in_context_vector` takes all layers at once.

    Arguments and errors as `pca_of_differences`.
    """
    rows = contrast(
        model,
        positive,
        negative,
        sites,
        position=position,
        paired=True,
        what="A PCA of differences",
        progress=progress,
    )
    at_least_two(rows.differences, "A PCA of differences")

    def fit(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([first_axis(d, centred=centred) for d in a - b])

    quality = held_out(fit, rows.positive, rows.negative, paired=True, seed=seed, shuffles=shuffles)
    made = []
    for s, differences in enumerate(rows.differences):
        if negligible(differences.abs().max(0).values, rows.positive[s]):
            raise DataError(
                f"All pairs are the same at {rows.sites[s]!r}: there is no direction between them."
            )
        vector, mean = first_axis(differences, centred=centred), differences.mean(0)
        middle = mean if centred else torch.zeros_like(mean)
        found = {
            "centred": centred,
            "explained": float(
                ((differences - middle) @ vector).square().sum() / (differences - middle).square().sum()
            ),
            "cosine_to_mean": float(vector @ mean / mean.norm().clamp(min=1e-300)),
            "held_out": quality[s],
        }
        scale = root_mean_square(differences, vector)
        made.append(rows.direction(s, vector, scale=scale, name=name, source="pca_of_differences", **found))
    return DirectionSet(with_reference(model, made, reference, progress), name=name, settings=rows.settings)


def first_axis(differences: Float64[Tensor, "pair d"], *, centred: bool) -> Float64[Tensor, " d"]:
    """The unit eigenvector of the largest eigenvalue, its sign tied to the mean difference.

    Where the mean is orthogonal to it, the largest component is positive.
    """
    mean = differences.mean(0)
    rows = differences - mean if centred else differences
    if len(rows) < rows.shape[1]:  # through the pair × pair products: the same axis, far smaller
        _, vectors = torch.linalg.eigh(rows @ rows.T)
        axis = rows.T @ vectors[:, -1]
    else:
        axis = torch.linalg.eigh(rows.T @ rows)[1][:, -1]
    norm = axis.norm()
    if not float(norm) > 0:
        return mean / mean.norm().clamp(min=1e-300)  # nothing varies: what is left is the shift
    axis = axis / norm
    along = float(axis @ mean)
    if abs(along) <= 1e-12 * float(mean.norm()):
        along = float(axis[axis.abs().argmax()])
    return axis if along >= 0 else -axis


def at_least_two(differences: Tensor, what: str) -> None:
    """Raise `DataError` for fewer than two pairs."""
    if differences.shape[1] < 2:
        raise DataError(
            f"{what} needs at least 2 pairs, here is {differences.shape[1]}: give more, or use mean_difference."
        )
