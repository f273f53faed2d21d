"""LEACE for a binary concept: the least change after which no linear probe reads it, closed form from moments.

With mean μ and covariance Σ of all activations, means μ₊, μ₋ of the two classes with shares p, 1 - p,

    Σ_xz  = p (1 - p) (μ₊ - μ₋)                         cross-covariance with the label z in {0, 1}
    r(x)  = x - a (b · (x - μ)) / (b · a),    a = Σ_xz,   b = Σ⁺ Σ_xz

so Cov(r(x), z) = Σ_xz - a (bᵀ Σ_xz) / (b · a) = 0: the class means agree afterwards, and no linear predictor beats a
constant. Among all affine changes that do so it moves x least (Belrose et al. 2023, 2306.03819, theorem 4.3, with one
label: whitening W = (Σ^½)⁺, u = W Σ_xz, gives proj_left = W⁺ u / ‖u‖ ∝ a and proj_right = uᵀ W / ‖u‖ ∝ b). It is an
*oblique* projection: what is read (b) is not what is taken away (a). The orthogonal one, a = b = μ₊ - μ₋, also makes
the means agree, but changes more.

Directions below Σ's rounding count as none (Σ⁺). An `Eraser` also takes the factors of any object that has `proj_left`
and `proj_right` (concept-erasure's `LeaceEraser`, or `probes`' with a trailing underscore).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError
from workbench.model.tokens import Prompt
from workbench.steering.extract.contrast import Position, contrast, negligible, one_site
from workbench.steering.extract.quality import held_out

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.progress import Progress


@dataclass(frozen=True, eq=False)
class Eraser:
    """r(x) = x - left (right (x - mean)), at a site.

    Attributes:
        left: [d, rank] float32, what is taken away.
        right: [rank, d] float32, what is read.
        mean: [d] float32.
        site: where.
        name, source, model_fingerprint, settings, provenance: as of a `Direction`.

    Raises:
        DataError: shapes that do not fit, or values that are not finite.

    Example:
        >>> eraser = leace(model, positive, negative, "blocks.14.hook_resid_post")
        >>> with model.edit({eraser.site: eraser}):
        ...     model.logits("The film was good")
    """

    left: Float[Tensor, "d rank"] = field(repr=False)
    right: Float[Tensor, "rank d"] = field(repr=False)
    mean: Float[Tensor, " d"] = field(repr=False)
    site: str
    name: str = "LEACE"
    source: str = "leace"
    model_fingerprint: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        d = self.mean.shape[0] if self.mean.ndim == 1 else -1
        rank = self.left.shape[-1]
        if self.left.shape != (d, rank) or self.right.shape != (rank, d):
            raise DataError(
                f"An eraser has left [d, rank], right [rank, d] and mean [d]; these are {list(self.left.shape)}, "
                f"{list(self.right.shape)} and {list(self.mean.shape)}."
            )
        for part in ("left", "right", "mean"):
            values = getattr(self, part).detach().to("cpu", torch.float32).contiguous()
            if not bool(values.isfinite().all()):
                raise DataError(f"{part} of the eraser at {self.site!r} holds NaN or infinite values.")
            object.__setattr__(self, part, values)

    @classmethod
    def of(
        cls, other: Any, site: str, *, mean: Any = None, name: str = "LEACE", model_fingerprint: str = ""
    ) -> Eraser:
        """From any object with `proj_left` and `proj_right`, and a mean (`mean_x`, `bias`, `mean`, or given)."""
        found = {}
        for part, names in (("left", ("proj_left", "proj_left_")), ("right", ("proj_right", "proj_right_"))):
            value = next((v for n in names if (v := getattr(other, n, None)) is not None), None)
            if value is None:
                raise DataError(f"A {type(other).__name__} has no {names[0]}: it is no fitted eraser.")
            found[part] = torch.as_tensor(value)
        if mean is None:
            mean = next(
                (
                    v
                    for n in ("mean_", "mean_x", "bias", "mean")
                    if (v := getattr(other, n, None)) is not None
                ),
                None,
            )
        mean = torch.zeros(found["left"].shape[0]) if mean is None else torch.as_tensor(mean)
        return cls(
            **found,
            mean=mean,
            site=site,
            name=name,
            source=type(other).__name__,
            model_fingerprint=model_fingerprint,
        )

    def __call__(self, activation: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Erase, in the activation's own dtype; fit for `model.edit`."""
        if activation.shape[-1] != len(self.mean):
            raise DataError(
                f"This eraser is for activations of width {len(self.mean)}, not {activation.shape[-1]}."
            )
        x = activation.to(torch.promote_types(activation.dtype, torch.float32))
        left, right, mean = (t.to(x.device, x.dtype) for t in (self.left, self.right, self.mean))
        return (x - ((x - mean) @ right.T) @ left.T).to(activation.dtype)

    def directions(self) -> DirectionSet:
        """What is read (`… read`) and what is taken away (`… removed`) as directions; of rank 1.

        The scale of both is the distance of the class means along it, where `leace` made this (`settings["gap"]`).
        """
        if self.left.shape[1] != 1:
            raise DataError(
                f"An eraser of rank {self.left.shape[1]} is not one direction on each side: use left and right."
            )
        gap = self.settings.get("gap")
        made = []
        for part, vector in (("read", self.right[0]), ("removed", self.left[:, 0])):
            unit = vector.double() / vector.double().norm()
            scale = abs(float(torch.tensor(gap, dtype=torch.float64) @ unit)) if gap is not None else None
            made.append(
                Direction.from_vector(
                    vector,
                    site=self.site,
                    scale=scale if scale else None,
                    name=f"{self.name} {part}",
                    source=self.source,
                    model_fingerprint=self.model_fingerprint,
                    settings={k: v for k, v in self.settings.items() if k != "gap"},
                    provenance=self.provenance,
                )
            )
        return DirectionSet(made, name=self.name)


def leace(
    model: LanguageModel,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    site: str,
    *,
    position: Position = -1,
    shuffles: int = 50,
    seed: int = 0,
    name: str = "LEACE",
    progress: Progress | None = None,
) -> Eraser:
    """Erase what tells two sets of prompts apart, at one site.

    Args:
        model: the language model.
        positive, negative: prompts of each kind, several each.
        site: one site.
        position: which token of each prompt; see `mean_difference`.
        shuffles: runs of the label-shuffled control; 0 leaves the held-out quality away.
        seed: of halves, control and bootstrap.
        name: for tables.
        progress: where to report.

    Returns:
        An `Eraser` of rank 1. `settings["held_out"]`: how well what it reads (b) separates held-out prompts;
        `settings["erased_held_out"]`: the AUC, on each half, of the difference of means of the *other* half after
        erasing by that other half's moments, beside nothing erased and a random direction projected out.

    Raises:
        DataError: an empty set, fewer than three prompts together, sets with the same mean.
        SiteError, PositionError, PromptError: as in `collect`.
    """
    what = "An eraser"
    where = one_site(model, site, "leace")
    rows = contrast(model, positive, negative, where, position=position, what=what, progress=progress)
    a, b = rows.positive[0], rows.negative[0]
    if negligible(a.mean(0) - b.mean(0), a):
        raise DataError(f"Both sets have the same mean at {where!r}: there is nothing to erase.")

    def fit(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([factors(*moments(p, q))[1] for p, q in zip(x, y, strict=True)])

    quality = held_out(fit, rows.positive, rows.negative, paired=False, seed=seed, shuffles=shuffles)[0]
    mean, cov, cross = moments(a, b)
    left, right = factors(mean, cov, cross)
    settings = {**rows.settings, "held_out": quality, "gap": (a.mean(0) - b.mean(0)).tolist()}
    if quality["measured"]:
        settings["erased_held_out"] = _erased(a, b, seed)
    return Eraser(
        left=left[:, None], right=right[None], mean=mean, site=where, name=name,
        model_fingerprint=rows.fingerprint, settings=settings, provenance=rows.provenance,
    )  # fmt: skip


def moments(
    positive: Float64[Tensor, "n d"], negative: Float64[Tensor, "m d"]
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"], Float64[Tensor, " d"]]:
    """Mean, covariance and cross-covariance with the label (1 for positive, 0 for negative), divided by n + m."""
    both = torch.cat([positive, negative])
    mean = both.mean(0)
    centred = both - mean
    p = len(positive) / len(both)
    return mean, centred.T @ centred / len(both), p * (1 - p) * (positive.mean(0) - negative.mean(0))


def factors(
    mean: Float64[Tensor, " d"], cov: Float64[Tensor, "d d"], cross: Float64[Tensor, " d"]
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """left a and right b / (b · a), so that right · left = 1.

    Raises:
        DataError: the covariance is not symmetric or not finite, or the label does not vary with the activations.
    """
    if not (bool(cov.isfinite().all()) and bool(cross.isfinite().all()) and bool(mean.isfinite().all())):
        raise DataError("The moments hold NaN or infinite values: collect the activations again.")
    if float((cov - cov.T).abs().max()) > 1e-8 * max(float(cov.abs().max()), 1e-300):
        raise DataError("The covariance is not symmetric: give Σ (x - μ)(x - μ)ᵀ / n.")
    variance, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    kept = variance > np.finfo(np.float64).eps * len(cov) * float(variance[-1])
    along = (vectors[:, kept].T @ cross) / variance[kept]
    right = vectors[:, kept] @ along
    product = float(right @ cross)
    if not product > 0:
        raise DataError("The label does not vary with the activations: there is nothing to erase.")
    return vectors[:, kept] @ (vectors[:, kept].T @ cross), right / product


def _erased(a: Tensor, b: Tensor, seed: int) -> dict[str, float | int]:
    """AUC of the difference of means on the half it was not made from, after each way of erasing; mean of halves."""
    random = np.random.default_rng(seed)
    first = [np.isin(np.arange(len(x)), random.permutation(len(x))[: len(x) // 2]) for x in (a, b)]
    found: dict[str, list[float]] = {"nothing": [], "leace": [], "random_direction": []}
    for half in (False, True):
        train = [x[torch.from_numpy(f != half)] for x, f in zip((a, b), first, strict=True)]
        test = [x[torch.from_numpy(f == half)] for x, f in zip((a, b), first, strict=True)]
        left, right = factors(*moments(*train))
        drawn = torch.from_numpy(random.standard_normal(a.shape[1]))
        drawn = drawn / drawn.norm()
        edits: dict[str, Callable[[Tensor], Tensor]] = {
            "nothing": lambda x: x,
            "leace": lambda x, m=torch.cat(train).mean(0), r=right, u=left: x - ((x - m) @ r)[:, None] * u,
            "random_direction": lambda x, u=drawn: x - (x @ u)[:, None] * u,
        }
        axis = train[0].mean(0) - train[1].mean(0)
        for name, edit in edits.items():
            up, down = (edit(x) @ axis for x in test)
            gap = up[:, None] - down[None]
            found[name].append(float(((gap > 0).double() + 0.5 * (gap == 0).double()).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()} | {"n": len(a) + len(b)}
