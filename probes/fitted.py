"""A fitted probe together with where it belongs: site, position rule, model, labels, training and scores.

A weight vector alone does not say at which site of which model it means something. `FittedProbe` does, and refuses
activations of another site or of another model:

    fitted = FittedProbe.of(LogisticProbe().fit(acts.rows(site), labels), acts, site=site, classes=["false", "true"])
    fitted.predict(other_acts)          # SiteError / DataError where they do not fit
    fitted.direction()                  # workbench.Direction, for linear kinds
    fitted.save("truth.safetensors")    # probes.saving
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from probes.kinds.pairs import PairProbe
from probes.kinds.weights import deviations, direction_of, listed, weight_vectors
from probes.source import one_site
from workbench.activations import Activations
from workbench.directions import Direction
from workbench.errors import DataError, SiteError, did_you_mean

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A fitted estimator and where it belongs.

    Attributes:
        estimator: a fitted probe (any kind of `probes.estimators` and `probes.kinds`).
        site: TransformerLens name of the site whose activations it reads.
        position: the position rule of its training rows, as text (`"-1"`), for people; empty if unknown.
        model_fingerprint: of the model whose activations it was fitted to; empty if unknown (then not checked).
        model_name: the model's name, for messages and tables.
        classes: what the classes mean, in the order of `estimator.classes_`; as these by default.
        training: the training rows: `n`, `data` (fingerprint of the inputs), counts, groups, …; JSON-ready.
        scores: scores with their controls, e.g. from a sweep; JSON-ready.
        provenance: as `Provenance.to_dict()` gives it.
        name: for tables and legends.

    Raises:
        DataError: the estimator is not fitted, there is no site, as many classes as names are not there, or what should
            be JSON is not.
    """

    estimator: Any
    site: str
    position: str = ""
    model_fingerprint: str = ""
    model_name: str = ""
    classes: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        try:
            check_is_fitted(self.estimator)
        except NotFittedError as error:
            raise DataError(
                f"{type(self.estimator).__name__} is not fitted: call fit before it is given a place."
            ) from error
        if not self.site:
            raise DataError("A probe belongs to a site: give its name, e.g. site='blocks.7.hook_resid_post'.")
        if not hasattr(self.estimator, "n_features_in_"):
            raise DataError(
                f"{type(self.estimator).__name__} does not read one activation (a row of features), so it cannot be "
                "given a site and a position: keep it as it is (probes.save_probe writes it without a place)."
            )
        found = getattr(self.estimator, "classes_", None)
        found = found.tolist() if isinstance(found, np.ndarray) else found
        names = self.classes or (() if found is None else tuple(found))
        object.__setattr__(self, "classes", tuple(str(name) for name in names))
        own = [str(c) for c in found or ()]
        if found is not None and len(self.classes) != len(own):
            raise DataError(
                f"{len(self.classes)} names for the {len(own)} classes ({', '.join(own)}): give one for each, in that "
                "order."
            )
        if set(own) == set(self.classes) and own != list(self.classes):
            raise DataError(
                f"The names {', '.join(self.classes)} are those of the estimator's classes in another order: each "
                f"would be called by another's name. Leave them out, or give them as {', '.join(own)}."
            )
        try:
            json.dumps([self.training, self.scores, self.provenance])
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Training, scores and provenance of a probe must fit in JSON: {error}."
            ) from error

    @classmethod
    def of(
        cls,
        estimator: Any,
        acts: Activations | None = None,
        *,
        site: str | None = None,
        position: str | None = None,
        fingerprint: str | None = None,
        model_name: str | None = None,
        classes: Sequence[Any] = (),
        training: dict[str, Any] | None = None,
        scores: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
        name: str = "",
    ) -> FittedProbe:
        """A fitted estimator with its place, taken from the activations it was fitted to or given by hand.

        Args:
            estimator: fitted probe.
            acts: the activations it was fitted to: give site (where they hold one), position rule, model, number and
                fingerprint of the rows, and, for a linear kind, the standard deviation along its direction.
            site: name of the site; needed where `acts` holds several or is not given.
            position, fingerprint, model_name, provenance: instead of what `acts` says.
            classes: meaning of the classes, in the order of `estimator.classes_` (`["false", "true"]`).
            training: more to keep about the training rows; wins over what `acts` says.
            scores: scores with controls, e.g. `sweep.summary["best"]`.
            name: for tables.

        Raises:
            DataError, SiteError: no site, a pattern that stands for several, or one that `acts` lacks or whose width
                is another; see the class.
        """
        known: dict[str, Any] = {}
        if acts is not None:
            site = _only_site(acts, site)
            _width_fits(estimator, acts.rows(site).shape[1:].numel(), site)
            made, rows = acts.provenance, acts.rows(site).flatten(1).double().numpy()
            known = {"n": len(rows), "n_prompts": acts.n_prompts, "data": str(made.inputs.get("sha256", ""))}
            known |= {"deviations": deviations(weight_vectors(estimator) or {}, rows)}
            fingerprint = str(made.model.get("fingerprint", "")) if fingerprint is None else fingerprint
            model_name = str(made.model.get("name", "")) if model_name is None else model_name
            position = str(made.settings.get("positions", "")) if position is None else position
            provenance = made.to_dict() if provenance is None else provenance
        return cls(
            estimator=estimator,
            site=site or "",
            position=position or "",
            model_fingerprint=fingerprint or "",
            model_name=model_name or "",
            classes=tuple(str(c) for c in classes),
            training=known | (training or {}),
            scores=scores or {},
            provenance=provenance or {},
            name=name,
        )

    @property
    def width(self) -> int:
        """Components of an activation it reads."""
        return int(self.estimator.n_features_in_)

    def decision_function(self, acts: Any, *, force: bool = False) -> np.ndarray:
        """The estimator's scores, [*rows] or [*rows, class].

        Args:
            acts: `Activations` that hold the site (sites of several dimensions are flattened), or a tensor or array
                [..., d]. Probes on contrast pairs take a tuple of two.
            force: use it on activations of a model with another fingerprint.

        Raises:
            SiteError: these activations do not hold the site.
            DataError: they are of another model, or of another width.
        """
        return self._apply("decision_function", acts, force)

    def predict(self, acts: Any, *, force: bool = False) -> np.ndarray:
        """[*rows] predicted classes as the estimator names them (or numbers); arguments as `decision_function`."""
        return self._apply("predict", acts, force)

    def predict_proba(self, acts: Any, *, force: bool = False) -> np.ndarray:
        """[*rows, class] probabilities; arguments as `decision_function`."""
        return self._apply("predict_proba", acts, force)

    def direction(self, of: Any = None) -> Direction:
        """The weight as a unit vector at the site, for a linear kind.

        Args:
            of: with more than two classes the class (its weight minus the mean of the others'), by its name here or in
                the estimator; with several outputs of a regression the output's number. With two classes the vector
                points to the second.

        Its scale is the standard deviation of the training rows along it where `of(acts)` made this probe, else the
        length that changes the score by 1 (`settings["scale_is"]` says which).

        Raises:
            DataError: not a linear kind, a weight of zero, or no (such) class or output was named.

        Example:
            >>> fitted.direction().fits(model)
        """
        return direction_of(self, of)

    def check(self, target: Activations | LanguageModel, *, force: bool = False) -> None:
        """Refuse activations or a model this probe does not belong to; returns None where it does.

        Args:
            target: activations, or the model whose activations are to be read.
            force: allow another fingerprint (say, a fine-tune). A site or a width that is not there cannot be forced.

        Raises:
            SiteError: these activations do not hold the site.
            DataError: the model lacks the site, has another width there, or another fingerprint.
        """
        if not isinstance(target, Activations):
            stand_in = Direction.from_vector(
                torch.ones(self.width),
                site=self.site,
                name=self._called,
                model_fingerprint=self.model_fingerprint,
            )
            try:
                stand_in.fits(target, force=force)
            except DataError as error:
                raise DataError(str(error).replace("Direction", "Probe", 1)) from error
            return
        if self.site not in target.sites:
            near = did_you_mean(self.site, target.sites)
            raise SiteError(
                f"Probe {self._called!r} belongs to {self.site!r}, these activations hold "
                f"{listed(target.sites)}.{near} Collect sites={self.site!r}, or fit a probe there."
            )
        theirs = str(target.provenance.model.get("fingerprint", ""))
        if theirs and self.model_fingerprint and theirs != self.model_fingerprint and not force:
            model = str(target.provenance.model.get("name", "")) or "another model"
            raise DataError(
                f"Probe {self._called!r} was fitted on {self.model_name or 'a model'} with fingerprint "
                f"{self.model_fingerprint}, these activations are of {model} with {theirs}: other weights "
                "give the site another meaning. Fit a probe on that model, or use force=True if you want that."
            )
        _width_fits(self.estimator, target.rows(self.site).shape[1:].numel(), self.site)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; see `probes.saving.save_probe`."""
        from probes.saving import save_probe

        return save_probe(self, path)

    @classmethod
    def load(cls, path: str | Path) -> FittedProbe:
        """Read what `save` wrote; `DataError` for a file that holds an estimator without a place, or no probe."""
        from probes.saving import load_probe

        found = load_probe(path)
        if not isinstance(found, cls):
            raise DataError(
                f"{str(path)!r} holds a {type(found).__name__} without a site: read it with probes.saving.load_probe."
            )
        return found

    @property
    def _called(self) -> str:
        return self.name or type(self.estimator).__name__

    def _apply(self, method: str, acts: Any, force: bool) -> np.ndarray:
        function = getattr(self.estimator, method, None)
        if function is None:
            kind = type(self.estimator).__name__
            raise DataError(f"{kind} has no {method}: use predict.")
        if isinstance(acts, tuple):
            halves = [self._rows(half, force) for half in acts]
            rows, leading = tuple(half for half, _ in halves), halves[0][1]
        else:
            rows, leading = self._rows(acts, force)
            if isinstance(self.estimator, PairProbe) and leading[-1:] == (2,):
                rows, leading = rows.reshape(-1, 2, self.width), leading[:-1]
        found = np.asarray(function(rows))
        return found.reshape((*leading, *found.shape[1:]))

    def _rows(self, acts: Any, force: bool) -> tuple[np.ndarray, tuple[int, ...]]:
        """[row, d] and the leading dimensions of what came."""
        if isinstance(acts, Activations):
            self.check(acts, force=force)
            acts = acts.rows(self.site).flatten(1)
        values = acts.detach().cpu().double().numpy() if isinstance(acts, Tensor) else np.asarray(acts)
        if values.ndim == 0 or values.shape[-1] != self.width:
            raise DataError(
                f"Activations of shape {list(values.shape)} do not fit probe {self._called!r} of width {self.width} at "
                f"{self.site!r}: the last dimension must be {self.width}."
            )
        return values.reshape(-1, self.width), values.shape[:-1]


def _only_site(acts: Activations, site: str | None) -> str:
    if site is not None:
        return one_site(site, acts.sites)  # a SiteError names the nearest
    if len(acts.sites) != 1:
        raise DataError(
            f"These activations hold {len(acts.sites)} sites: say at which the probe was fitted, "
            f"site={acts.sites[0]!r} or another."
        )
    return acts.sites[0]


def _width_fits(estimator: Any, width: int, site: str) -> None:
    expected = int(estimator.n_features_in_)
    if width != expected:
        raise DataError(
            f"{type(estimator).__name__} was fitted to {expected} features, but {site!r} has {width} here: it belongs "
            "to another site or model."
        )
