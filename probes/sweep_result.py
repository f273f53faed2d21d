"""The result of a probe sweep, which also gives its probes as directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.directions import Direction
from workbench.errors import DataError, did_you_mean
from workbench.results import Result


class ProbeSweep(Result):
    """A `Result` of kind `probe_sweep` that also gives its probes as directions.

    Example:
        >>> sweep = probes.ProbeSweep.load("runs/…/result.zarr")
        >>> sweep.data["auc"].sel(probe="logistic").values
        >>> sweep.direction(layer=14, kind="mass_mean").save("truth.safetensors")
    """

    @classmethod
    def of(cls, result: Result) -> ProbeSweep:
        """The same result with these methods; `DataError` for a result of another kind."""
        if result.kind != "probe_sweep":
            raise DataError(f"A result of kind {result.kind!r} is no probe sweep: expected 'probe_sweep'.")
        return cls(result.kind, result.data, result.provenance, result.summary)

    @classmethod
    def load(cls, path: str | Path) -> ProbeSweep:
        """Read a sweep that `save` wrote; `RunError` and `DataError` as `Result.load` and `of`."""
        return cls.of(Result.load(path))

    def direction(
        self,
        layer: int | None = None,
        *,
        kind: str | None = None,
        site: str | None = None,
        position: int | None = None,
        label: str | None = None,
        cls: Any = None,
    ) -> Direction:
        """The weight of one probe, fitted to all rows, as a unit vector towards the positive class.

        Args:
            layer: block number; by default that of the highest AUC among the cells that are asked for (kind,
                position, label).
            kind: kind of probe; by default the first of those that were fitted.
            site: site name, instead of a layer.
            position: needed where the sweep has several.
            label: name of the label set; needed where the sweep has several.
            cls: the class whose score the direction raises; needed where there are more than two.

        Its scale is the standard deviation of the rows along it. Raises `DataError` where there is no such
        cell, or no direction because the site is constant.
        """
        kind = kind if kind is not None else str(self.data["probe"].values[0])
        cell = _pick(self.data, "probe", kind)
        if "position" in self.data.dims:
            cell = _pick(cell, "position", position)
        if "label" in self.data.dims:
            cell = _pick(cell, "label", label)
        if site is None and layer is None:
            site = str(cell["site"].values[int(np.nanargmax(cell["auc"].values))])
        cell = _pick(cell, "layer", layer) if site is None else _pick(cell, "site", site)
        classes = [str(self.data.attrs[key]) for key in ("negative", "positive") if key in self.data.attrs]
        if "label" in self.data.dims:
            classes = [str(cell[key].item()) for key in ("negative", "positive")]
        if "class" in self.data.dims:
            cell = _pick(cell, "class", None if cls is None else str(cls))
            classes = ["the rest", str(cls)]
        where = cell["site"].item()
        scale = float(cell["scale"])
        if np.isnan(scale):
            raise DataError(
                f"A probe of kind {kind!r} is not linear, so it has no direction: take a linear kind."
            )
        if scale == 0:
            raise DataError(f"Nothing varies with the label at {where!r}: the probe there has no direction.")
        found = {key: self.data.attrs[key] for key in ("folds", "n", "grouped", "control")}
        found |= {"negative": classes[0], "positive": classes[1], "penalty": _number(cell["penalty"])}
        settings = {"kind": kind, "position": position, "auc": round(float(cell["auc"]), 4)}
        return Direction.from_vector(
            torch.from_numpy(cell["weight"].values),
            site=where,
            scale=scale,
            name=f"{classes[1]} (vs {classes[0]})",
            source=f"probe:{kind}",
            model_fingerprint=str(self.provenance.model.get("fingerprint", "")),
            settings=settings | found,
            provenance=self.provenance.to_dict(),
        )


def _pick(data: xr.Dataset, name: str, value: Any) -> xr.Dataset:
    """The data where a coordinate has a value; an unknown value is an error that lists the others."""
    known = data[name].values.tolist() if name in data.coords else []
    if value not in known:
        shown = ", ".join(str(k) for k in known[:40]) or "none: give a site"
        near = did_you_mean(str(value), [str(k) for k in known]) if isinstance(value, str) else ""
        raise DataError(f"This sweep has no {name} {value!r}.{near} It has {shown}.")
    return data.isel({data[name].dims[0]: known.index(value)})


def _number(value: Any) -> float | None:
    """A JSON number; None for NaN."""
    return None if np.isnan(value) else float(value)
