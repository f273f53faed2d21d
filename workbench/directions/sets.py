"""`DirectionSet`: several directions, at one site or at several ("a direction at each layer").

In-context vectors, control vectors of repeng and llama.cpp, the rows of a dictionary and the classes of a probe are all
sets. A member is known by its name and site together. What can be asked of a set:

    cosines()             cosine of every pair, beside those of random directions            (`cosines`)
    basis(), project()    the span as orthonormal rows, coefficients of activations
    principal_angles()    angles between two spans, beside those of random spans             (`subspaces`)
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.directions import storage
from workbench.directions.algebra import combine, span, without
from workbench.directions.checks import same_model, same_width, together
from workbench.directions.direction import Direction
from workbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from workbench.activations import Activations
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


@dataclass(frozen=True, eq=False)
class DirectionSet:
    """Directions that belong together.

    Attributes:
        directions: at least one; no two with the same name and site.
        name: what the set stands for.
        settings: arguments it was made with, JSON-ready.

    Raises:
        DataError: it is empty, two members have the same name and site, or settings do not fit in JSON.

    Example:
        >>> both = DirectionSet([truth, sentiment])
        >>> both.cosines().summary["largest"]
        >>> both["truth"].scale;  control.at("blocks.7.hook_resid_post")[0]
    """

    directions: tuple[Direction, ...]
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def __init__(
        self, directions: Iterable[Direction], *, name: str = "", settings: dict[str, Any] | None = None
    ) -> None:
        members = tuple(directions)
        if not members:
            raise DataError("A set of directions needs at least one; this one is empty.")
        seen: set[tuple[str, str]] = set()
        for member in members:
            if not isinstance(member, Direction):
                raise DataError(f"A set of directions holds directions, not {type(member).__name__}.")
            key = (member.name, member.site)
            if key in seen:
                raise DataError(
                    f"Two directions of this set are called {member.name!r} at {member.site!r}: "
                    "give each a name of its own (dataclasses.replace(d, name=...))."
                )
            seen.add(key)
        object.__setattr__(self, "directions", members)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "settings", settings or {})
        storage.as_json(self.settings, "Settings of a set of directions")

    def __repr__(self) -> str:
        where = self.sites[0] if len(self.sites) == 1 else f"{len(self.sites)} sites"
        title = f"{self.name!r}, " if self.name else ""
        return f"DirectionSet({title}{len(self)} directions at {where}, width {self.directions[0].width})"

    def __len__(self) -> int:
        return len(self.directions)

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.directions)

    def __getitem__(self, key: SupportsIndex | str) -> Direction:
        """A member by number, by name or by site, where that says which one (else `DataError`)."""
        if not isinstance(key, str):
            try:
                number = operator.index(key)
            except TypeError:
                raise DataError(
                    f"A member of a set is asked for by number, name or site, not by {key!r}; for several take "
                    "`DirectionSet(chosen.directions[0:2])`, `.at(site)` or `.named(name)`."
                ) from None
            if not -len(self) <= number < len(self):
                raise DataError(f"Direction {number} does not exist: this set has {len(self)}.")
            return self.directions[number]
        found = [d for d in self if key in (d.name, d.site)]
        if len(found) != 1:
            known = [*self.names, *self.sites]
            what = f"{len(found)} directions" if found else "no direction"
            hint = " Add the other: `.at(site)`, `.named(name)`." if found else did_you_mean(key, known)
            raise DataError(f"{key!r} stands for {what} of this set, which has {_some(self.names)}.{hint}")
        return found[0]

    @property
    def names(self) -> list[str]:
        """The names, each once, in order."""
        return list(dict.fromkeys(d.name for d in self))

    @property
    def sites(self) -> list[str]:
        """The sites, each once, in order."""
        return list(dict.fromkeys(d.site for d in self))

    def at(self, site: str) -> DirectionSet:
        """The members at one site."""
        found = [d for d in self if d.site == site]
        if not found:
            raise DataError(
                f"No direction of this set is at {site!r}; it has {_some(self.sites)}.{did_you_mean(site, self.sites)}"
            )
        return DirectionSet(found, name=self.name, settings=self.settings)

    def named(self, name: str) -> DirectionSet:
        """The members of one name, at all their sites."""
        found = [d for d in self if d.name == name]
        if not found:
            raise DataError(
                f"No direction of this set is called {name!r}; it has {_some(self.names)}."
                f"{did_you_mean(name, self.names)}"
            )
        return DirectionSet(found, name=self.name, settings=self.settings)

    def fits(self, model: LanguageModel, *, force: bool = False) -> None:
        """Refuse a model that some member was not made for, as `Direction.fits`."""
        for direction in self:
            direction.fits(model, force=force)

    # -- arithmetic, site by site ------------------------------------------------------------------------

    def __neg__(self) -> DirectionSet:
        return self * -1.0

    def __mul__(self, factor: float) -> DirectionSet:
        members = [combine([d], [factor], name=d.name) for d in self]
        return DirectionSet(members, name=f"{factor:g} {self.name}".strip(), settings=self.settings)

    __rmul__ = __mul__

    def __add__(self, other: DirectionSet) -> DirectionSet:
        return _site_by_site(self, other, 1.0) if isinstance(other, DirectionSet) else NotImplemented

    def __sub__(self, other: DirectionSet) -> DirectionSet:
        return _site_by_site(self, other, -1.0) if isinstance(other, DirectionSet) else NotImplemented

    # -- geometry ----------------------------------------------------------------------------------------

    def matrix(self) -> Float[Tensor, "direction d"]:
        """[direction, d] the unit vectors, float32. Raises `DataError` where widths differ."""
        same_width(self.directions, "A matrix of directions")
        return torch.stack([d.vector for d in self])

    def basis(self, *, tolerance: float = 1e-6, force: bool = False) -> Float[Tensor, "rank d"]:
        """[rank, d] orthonormal rows (float64) that span the members; all at one site.

        Args:
            tolerance: members that add less than this share of the largest singular value add no row.
            force: span directions of different models.
        """
        together(self.directions, "A subspace", force=force)
        return span([d.vector for d in self], tolerance)

    def project(
        self, acts: Tensor | Activations, *, natural: bool = False
    ) -> Float[Tensor, "*rows direction"]:
        """[..., direction] coefficients `x · v` of each member; of `Activations` each reads its own site."""
        return torch.stack([d.project(acts, natural=natural) for d in self], dim=-1)

    def project_out(self, acts: Float[Tensor, "*rows d"], *, force: bool = False) -> Float[Tensor, "*rows d"]:
        """Activations without the span of the members (all at one site), in their own dtype."""
        self.directions[0].fits_rows(acts)
        basis = self.basis(force=force).to(acts.device)
        return without(basis, acts.double()).to(acts.dtype)

    def cosines(
        self, *, reference: Tensor | None = None, n_null: int = 1000, seed: int = 0, force: bool = False
    ) -> Result:
        """Cosine of every pair, beside random directions; see `cosines.direction_cosines`."""
        from workbench.directions.cosines import direction_cosines

        return direction_cosines(self, reference=reference, n_null=n_null, seed=seed, force=force)

    def principal_angles(
        self, other: DirectionSet, *, n_null: int = 200, seed: int = 0, force: bool = False
    ) -> Result:
        """Angles between two spans, beside random spans; see `subspaces.principal_angles`."""
        from workbench.directions.subspaces import principal_angles

        return principal_angles(self, other, n_null=n_null, seed=seed, force=force)

    # -- storage -----------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, complete or not at all; an existing file is replaced."""
        return storage.write(path, self.tensors(), {"direction_set": self.header()})

    def header(self) -> str:
        """All but the vectors, as JSON."""
        headers = [storage.header_of(d) for d in self]
        known = {"schema": storage.SCHEMA, "name": self.name, "settings": self.settings}
        return storage.as_json(known | {"directions": headers}, "Settings of a set of directions")

    def tensors(self) -> dict[str, Tensor]:
        """The vectors under the names they have on disk."""
        return {f"vector.{i}": d.vector for i, d in enumerate(self)}

    @classmethod
    def load(cls, path: str | Path) -> DirectionSet:
        """Read a set that `save` wrote, bit for bit; one direction comes back as a set of one.

        Raises:
            DataError: no such file, not directions, damaged, or written by a newer version.
        """
        metadata, tensors = storage.read(path)
        if "direction" in metadata:
            return cls([Direction.load(path)])
        if "direction_set" not in metadata:
            raise DataError(f"{str(path)!r} is safetensors, but holds no set of directions.")
        header = storage.parse(metadata["direction_set"], path)
        try:
            members = [
                Direction(**storage.arguments(one, tensors.get(f"vector.{i}"), path))
                for i, one in enumerate(header["directions"])
            ]
            return cls(members, name=header["name"], settings=header["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise storage.damaged(path, error) from error


def load(path: str | Path) -> Direction | DirectionSet:
    """What `Direction.save` or `DirectionSet.save` wrote. Raises as `Direction.load`."""
    one = "direction" in storage.read_metadata(path)
    return Direction.load(path) if one else DirectionSet.load(path)


def _site_by_site(a: DirectionSet, b: DirectionSet, weight: float) -> DirectionSet:
    """a + weight · b at every site of either; each has at most one direction a site."""
    same_model([*a, *b], "Arithmetic of sets")
    for one in (a, b):
        if len(one.sites) != len(one):
            raise DataError(
                f"Sets are added site by site, so each needs one direction a site: {one!r} has several at one."
            )
    members = []
    for site in dict.fromkeys([*a.sites, *b.sites]):
        here = [(d, w) for group, w in ((a, 1.0), (b, weight)) for d in group if d.site == site]
        members.append(combine([d for d, _ in here], [w for _, w in here]))
    sign = "+" if weight > 0 else "−"
    return DirectionSet(members, name=f"{a.name or 'a'} {sign} {b.name or 'b'}")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
