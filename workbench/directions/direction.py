"""`Direction`: one type for every vector that means something at a site.

A probe's weight, a difference of class means, a decoder row of a dictionary and a PCA axis are all the same
thing to whoever steers, projects or compares: a *unit vector* `v` at a site, with

    scale          how far activations naturally move along v, in activation units (norm of the mean
                   difference, or the standard deviation of the projection; `source` and `settings` say which)
    coefficient    c = x · v of an activation x, in activation units; c / scale is in natural units
    natural vector w = scale · v, what arithmetic works on (see `algebra`)
    sign           + is towards the positive class (or whatever `name` names)

**Strength** of steering is in activation units everywhere: `strength=8` adds 8 · v, a vector of norm 8, whatever the
scale. `direction.strength(2)` is the strength of two natural units: 2 · scale.

A direction knows the model it was made on (fingerprint) and refuses another (`fits`). On disk it is one
safetensors file whose metadata holds the rest as JSON (`storage`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.directions import storage
from workbench.directions.checks import checked_scale, checked_seed, checked_vector, width_of
from workbench.errors import DataError, SiteError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from workbench.activations import Activations
    from workbench.model.language_model import LanguageModel
    from workbench.store.reader import Store


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit vector at a site, with a scale and a provenance.

    Attributes:
        vector: [d] float32 on the CPU, of norm 1. Sites of several dimensions (`attn.hook_z`) are flattened.
        scale: natural scale along it, in activation units; more than 0.
        site: TransformerLens name of the site.
        name: what it stands for, for tables and legends.
        source: how it was made: `mean_difference`, `probe:logistic`, `random`, …
        model_fingerprint: of the model whose activations made it; empty if unknown.
        settings: arguments it was made with, JSON-ready.
        provenance: as `Provenance.to_dict()` gives it, JSON-ready.

    Raises:
        DataError: the vector is not 1-D, not finite, zero or not of norm 1 (see `from_vector`); the scale is
            not a positive number; settings or provenance do not fit in JSON.

    Example:
        >>> d = Direction.from_vector(mean_true - mean_false, site="blocks.14.hook_resid_post", name="truth")
        >>> d.project(acts["blocks.14.hook_resid_post"])          # [prompt, position] coefficients
        >>> (d - 0.5 * sentiment).orthogonal_to(length).save("truth.safetensors")
    """

    vector: Tensor = field(repr=False)
    scale: float
    site: str
    name: str = ""
    source: str = ""
    model_fingerprint: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", checked_vector(self.vector, self.site))
        object.__setattr__(self, "scale", checked_scale(self.scale))
        norm = float(self.vector.double().norm())
        if abs(norm - 1) > 1e-4:
            raise DataError(
                f"The vector of a Direction has norm 1, this one has {norm:.6g}: use Direction.from_vector, "
                "which normalises it and keeps the norm as its scale."
            )
        if not self.site:
            raise DataError("A direction belongs to a site: give its name, e.g. 'blocks.7.hook_resid_post'.")
        storage.as_json(storage.header_of(self), "Settings and provenance of a direction")

    @classmethod
    def from_vector(
        cls, vector: ArrayLike | Tensor, *, site: str, scale: float | None = None, name: str = "", source: str = "",
        model_fingerprint: str = "", settings: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Direction:  # fmt: skip
        """A direction from a vector of any norm.

        Args:
            vector: [d], a tensor of any float type on any device, an array or a list.
            site: where it belongs.
            scale: natural scale in activation units; the norm of `vector` by default.
            name, source, model_fingerprint, settings, provenance: as the attributes.

        Raises:
            DataError: see the class.

        Example:
            >>> Direction.from_vector(torch.tensor([3.0, 4.0]), site="blocks.0.hook_resid_post").scale
            5.0
        """
        checked = checked_vector(vector, site, dtype=torch.float64)
        norm = float(checked.norm())
        unit, scale = checked / norm, norm if scale is None else scale
        return cls(unit, scale, site, name, source, model_fingerprint, settings or {}, provenance or {})

    @classmethod
    def random(cls, like: Direction, seed: int) -> Direction:
        """A control: drawn uniformly from the sphere, with the site and scale of `like`.

        Its cosine to any fixed direction is about ±1 / √d_model.
        """
        seed = checked_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(like.width, generator=generator, dtype=torch.float64)
        return cls.from_vector(
            drawn,
            site=like.site,
            scale=like.scale,
            name=f"random {seed}",
            source="random",
            model_fingerprint=like.model_fingerprint,
            settings={"seed": seed, "like": like.name or like.source},
            provenance=like.provenance,
        )

    @property
    def width(self) -> int:
        """Number of components."""
        return self.vector.shape[0]

    # -- reading activations ---------------------------------------------------------------------------

    def project(
        self, acts: Float[Tensor, "*rows d"] | Activations, *, natural: bool = False
    ) -> Float[Tensor, "*rows"]:
        """Coefficients `x · v`, in activation units; with `natural` in natural units (divided by `scale`).

        Args:
            acts: a tensor [..., d], or `Activations` that hold this direction's site (then one coefficient
                per row; sites of several dimensions are flattened).
            natural: divide by the scale.

        Raises:
            DataError: the last dimension is not `width`.
            SiteError: these activations do not hold the site.
        """
        values = acts if isinstance(acts, Tensor) else acts.rows(self.site).flatten(1)
        self.fits_rows(values)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        found = values @ self.vector.to(values)
        return found / self.scale if natural else found

    def project_out(self, acts: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Activations without this direction: x - (x · v) v, in their own dtype. Raises as `project`."""
        self.fits_rows(acts)
        unit = self.vector.to(acts.device, torch.promote_types(acts.dtype, torch.float32))
        values = acts.to(unit.dtype)
        return (values - (values @ unit)[..., None] * unit).to(acts.dtype)

    def cosine(self, other: Direction) -> float:
        """Cosine of the angle to another direction of the same width (else `DataError`), at any site."""
        if other.width != self.width:
            raise DataError(
                f"There is no angle between a direction of width {self.width} ({self.site}) and one of width "
                f"{other.width} ({other.site}): compare directions of one model."
            )
        product = float(self.vector.double() @ other.vector.double())
        return max(-1.0, min(1.0, product))

    # -- scale -----------------------------------------------------------------------------------------

    def strength(self, natural_units: float) -> float:
        """The steering strength (activation units) of so many natural units: `natural_units` · scale."""
        return natural_units * self.scale

    def with_scale(self, scale: float) -> Direction:
        """The same direction with another scale."""
        return replace(self, scale=scale)

    def with_scale_from(
        self, acts: Tensor | Activations | Store, *, first_token: bool = False, seed: int = 0
    ) -> Direction:
        """The same direction, its scale the standard deviation of `x · v` over reference activations.

        `settings["scale_from"]` keeps n, the 95 % interval and the scale that a random direction has there. Rows at
        position 0 are left out unless `first_token`. See `scales.natural_scale` for arguments and errors.

        Example:
            >>> text = wb.collect(model, wb.datasets.load("plain-text").texts, d.site, positions="all")
            >>> d = d.with_scale_from(text);  d.strength(2)          # two standard deviations of ordinary text
        """
        from workbench.directions.scales import natural_scale

        found = natural_scale(self, acts, first_token=first_token, seed=seed)
        return replace(self, scale=found["scale"], settings={**self.settings, "scale_from": found})

    def at(self, site: str) -> Direction:
        """The same vector at another site, for one that was read elsewhere than it is used."""
        moved = {"moved_from": [*self.settings.get("moved_from", []), self.site]}
        return replace(self, site=site, settings={**self.settings, **moved})

    # -- arithmetic: see `algebra` -----------------------------------------------------------------------

    def __add__(self, other: Direction) -> Direction:
        return _combine([self, other], [1.0, 1.0]) if isinstance(other, Direction) else NotImplemented

    def __sub__(self, other: Direction) -> Direction:
        return _combine([self, other], [1.0, -1.0]) if isinstance(other, Direction) else NotImplemented

    def __neg__(self) -> Direction:
        return _combine([self], [-1.0])

    def __mul__(self, factor: float) -> Direction:
        return _combine([self], [factor]) if isinstance(factor, (int, float)) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> Direction:
        if factor == 0:
            raise DataError("A direction cannot be divided by 0.")
        return self * (1 / factor)

    def orthogonal_to(self, *others: Direction | Iterable[Direction], force: bool = False) -> Direction:
        """What is left of it outside the span of one or several others; see `algebra.orthogonal_to`."""
        from workbench.directions.algebra import members, orthogonal_to

        return orthogonal_to(self, [d for one in others for d in members(one)], force=force)

    def interpolate(
        self,
        other: Direction,
        t: float,
        *,
        how: Literal["spherical", "linear"] = "spherical",
        force: bool = False,
    ) -> Direction:
        """A direction between this (t = 0) and another (t = 1); see `algebra.interpolate`."""
        from workbench.directions.algebra import interpolate

        return interpolate(self, other, t, how=how, force=force)

    # -- use and storage -------------------------------------------------------------------------------

    def fits(self, model: LanguageModel, *, force: bool = False) -> None:
        """Refuse a model this direction was not made for; returns None where it fits.

        Args:
            model: the model it is to be used on.
            force: use it although it was made on other weights (say, another fine-tune). A site or a width
                the model does not have cannot be forced.

        Raises:
            DataError: the model lacks the site, has another width there, or another fingerprint. The message
                names both sides. A direction without a fingerprint is not checked for that.

        Example:
            >>> Direction.load("truth.safetensors").fits(model)
        """
        what = f"Direction {self.name or self.source or 'without a name'!r}"
        try:
            found = model.resolve(self.site)
        except SiteError as error:
            raise DataError(f"{what} is for {self.site!r}, which {model.name} lacks. {error}") from error
        width = width_of(model, found[0])
        if width != self.width:
            raise DataError(
                f"{what} has width {self.width}, but {self.site!r} of {model.name} has {width}: it was made "
                "on another model."
            )
        if self.model_fingerprint not in ("", model.fingerprint) and not force:
            raise DataError(
                f"{what} was made on a model with fingerprint {self.model_fingerprint}, {model.name} has "
                f"{model.fingerprint}: other weights give the site another meaning. Use force=True if you "
                "want that."
            )

    def fits_rows(self, values: Tensor) -> None:
        """Raise `DataError` unless the last dimension of activations is `width`."""
        if values.ndim == 0 or values.shape[-1] != self.width:
            raise DataError(
                f"Activations of shape {list(values.shape)} do not fit a direction of width {self.width} at "
                f"{self.site!r}: the last dimension must be {self.width}."
            )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, complete or not at all; an existing file is replaced.

        Raises:
            WorkbenchError: the system refuses to write there.
        """
        header = storage.as_json(storage.header_of(self), "Settings and provenance of a direction")
        return storage.write(path, {"vector": self.vector}, {"direction": header})

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read a direction that `save` wrote; the vector comes back bit for bit.

        Raises:
            DataError: no such file, not a direction, damaged, or written by a newer version.
        """
        metadata, tensors = storage.read(path)
        if "direction" not in metadata:
            several = ", but a set of them: use DirectionSet.load" if "direction_set" in metadata else ""
            raise DataError(f"{str(path)!r} is safetensors, but not a direction{several}.")
        header = storage.parse(metadata["direction"], path)
        try:
            return cls(**storage.arguments(header, tensors.get("vector"), path))
        except (TypeError, ValueError) as error:
            raise storage.damaged(path, error) from error


def _combine(directions: list[Direction], weights: list[float]) -> Direction:
    from workbench.directions.algebra import combine

    return combine(directions, weights)
