"""`Direction`: one type for every vector that means something at a site.

A probe's weight, a difference of class means, a decoder row of a dictionary and a PCA axis are all the same
thing to whoever steers, projects or compares: a *unit vector* `v` at a site, with

    scale          how far activations naturally move along v, in activation units (norm of the mean
                   difference, or the standard deviation of the projection; `source` and `settings` say which)
    coefficient    c = x · v of an activation x, in activation units; c / scale is in natural units
    sign           + is towards the positive class (or whatever `name` names)

A direction knows the model it was made on (fingerprint) and refuses another (`fits`). On disk it is one
safetensors file whose metadata holds the rest as JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.errors import DataError, SiteError
from workbench.files import publish_file

if TYPE_CHECKING:
    from workbench.activations import Activations
    from workbench.model.language_model import LanguageModel
    from workbench.sites.catalog import Site

SCHEMA = 1


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
        >>> d.save("truth.safetensors");  Direction.load("truth.safetensors").cosine(d)
        1.0
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
        object.__setattr__(self, "vector", _checked(self.vector, self.site))
        object.__setattr__(self, "scale", float(self.scale))
        norm = float(self.vector.double().norm())
        if abs(norm - 1) > 1e-4:
            raise DataError(
                f"The vector of a Direction has norm 1, this one has {norm:.6g}: use Direction.from_vector, "
                "which normalises it and keeps the norm as its scale."
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise DataError(f"The scale of a direction is a positive number, not {self.scale}.")
        if not self.site:
            raise DataError("A direction belongs to a site: give its name, e.g. 'blocks.7.hook_resid_post'.")
        self._header()

    @classmethod
    def from_vector(
        cls,
        vector: Tensor,
        *,
        site: str,
        scale: float | None = None,
        name: str = "",
        source: str = "",
        model_fingerprint: str = "",
        settings: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Direction:
        """A direction from a vector of any norm.

        Args:
            vector: [d], of any float type, on any device.
            site: where it belongs.
            scale: natural scale in activation units; the norm of `vector` by default.
            name, source, model_fingerprint, settings, provenance: as the attributes.

        Raises:
            DataError: see the class.

        Example:
            >>> Direction.from_vector(torch.tensor([3.0, 4.0]), site="blocks.0.hook_resid_post").scale
            5.0
        """
        checked = _checked(vector, site, dtype=torch.float64)
        norm = float(checked.norm())
        return cls(
            vector=checked / norm,
            scale=norm if scale is None else scale,
            site=site,
            name=name,
            source=source,
            model_fingerprint=model_fingerprint,
            settings=settings or {},
            provenance=provenance or {},
        )

    @classmethod
    def random(cls, like: Direction, seed: int) -> Direction:
        """A control: drawn uniformly from the sphere, with the site and scale of `like`.

        Its cosine to any fixed direction is about ±1 / √d_model.
        """
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

    def project(self, acts: Float[Tensor, "*rows d"] | Activations) -> Float[Tensor, "*rows"]:
        """Coefficients `x · v`, in activation units (divide by `scale` for natural units).

        Args:
            acts: a tensor [..., d], or `Activations` that hold this direction's site (then one coefficient
                per row; sites of several dimensions are flattened).

        Raises:
            DataError: the last dimension is not `width`.
            SiteError: these activations do not hold the site.
        """
        values = acts if isinstance(acts, Tensor) else acts.rows(self.site).flatten(1)
        if values.ndim == 0 or values.shape[-1] != self.width:
            raise DataError(
                f"Activations of shape {list(values.shape)} do not fit a direction of width {self.width} at "
                f"{self.site!r}: the last dimension must be {self.width}."
            )
        return values.float() @ self.vector.to(values.device)

    def cosine(self, other: Direction) -> float:
        """Cosine of the angle to another direction of the same width (else `DataError`), at any site."""
        if other.width != self.width:
            raise DataError(
                f"There is no angle between a direction of width {self.width} ({self.site}) and one of width "
                f"{other.width} ({other.site}): compare directions of one model."
            )
        product = float(self.vector.double() @ other.vector.double())
        return max(-1.0, min(1.0, product))

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
        width = _width(model, found[0])
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

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, complete or not at all; an existing file is replaced.

        Raises:
            WorkbenchError: the system refuses to write there.
        """
        with publish_file(path) as temporary:
            save_file({"vector": self.vector}, temporary, metadata={"direction": self._header()})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read a direction that `save` wrote; the vector comes back bit for bit.

        Raises:
            DataError: no such file, not a direction, damaged, or written by a newer version.
        """
        file = Path(path)
        try:
            with safe_open(file, framework="pt") as opened:
                header = json.loads((opened.metadata() or {})["direction"])
                vector = opened.get_tensor("vector")
            schema, sha256 = int(header.pop("schema")), header.pop("sha256", "")
        except FileNotFoundError:
            raise DataError(f"There is no direction file {str(path)!r}.") from None
        except KeyError as error:
            raise DataError(
                f"{str(path)!r} is safetensors, but not a direction ({error} is missing)."
            ) from error
        except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"The direction in {str(path)!r} is damaged: {error}") from error
        if schema > SCHEMA:
            raise DataError(
                f"{str(path)!r} was written by a newer version (schema {schema}, this one reads {SCHEMA}): "
                "upgrade latent-workbench."
            )
        try:
            if _sha256(vector) != sha256:
                raise TypeError("its vector is not the one that was saved (SHA-256 differs)")
            return cls(vector=vector, **header)
        except TypeError as error:
            raise DataError(f"The direction in {str(path)!r} is damaged: {error}") from error

    def _header(self) -> str:
        fields = ("scale", "site", "name", "source", "model_fingerprint", "settings", "provenance")
        try:
            known = {"schema": SCHEMA, "sha256": _sha256(self.vector)}
            return json.dumps(known | {name: getattr(self, name) for name in fields})
        except (TypeError, ValueError) as error:
            raise DataError(f"Settings and provenance of a direction must fit in JSON: {error}.") from error


def _checked(vector: Tensor, site: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A private contiguous copy on the CPU of a vector that can be a direction."""
    if vector.ndim != 1 or vector.numel() == 0:
        raise DataError(f"A direction is a 1-D vector; at {site!r} came one of shape {list(vector.shape)}.")
    copy = vector.detach().to("cpu", dtype, copy=True).contiguous()
    bad = int((~torch.isfinite(copy)).sum())
    if bad:
        raise DataError(f"{bad} of {copy.numel()} components of the vector at {site!r} are NaN or infinite.")
    if not bool(copy.any()):
        raise DataError(f"The vector at {site!r} is zero, so it has no direction.")
    return copy


def _sha256(vector: Tensor) -> str:
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


def _width(model: LanguageModel, site: Site) -> int:
    """Components of a site's activation at one position, all trailing dimensions taken together."""
    match site.dims[-1]:
        case "d_head":
            return site.heads * model.d_head
        case "d_vocab":
            return model.vocab_size
        case "key":
            raise DataError(f"{site.name!r} holds attention over positions: no direction fits there.")
        case "d_mlp":  # the weight of an MLP's linear map is d_model by d_mlp, either way round
            return model.module(site.module).get_parameter("weight").numel() // model.d_model
        case _:
            return model.d_model
