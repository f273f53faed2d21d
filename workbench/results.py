"""What every analysis returns: labelled arrays and where they come from, saved and loaded without loss.

A `Result` is an xarray `Dataset` (named dimensions `layer`, `position`, …, attributes with units and
settings) plus a `Provenance`. The same object feeds scripts, notebooks and the dashboard. On disk it is a
Zarr folder (format 3) whose attributes carry the provenance as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import RunError
from workbench.files import publish_folder
from workbench.provenance import Provenance

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Result:
    """Labelled arrays with provenance.

    Attributes:
        kind: which analysis made it (`logit_lens`, `patching_sweep`, `probe_sweep`, `dose_response`).
        data: the arrays; `data[name].attrs` holds units and meaning, `data.attrs` the settings.
        provenance: model, inputs, seed, versions, times.
        summary: the few numbers to print, JSON-ready.

    Example:
        >>> result = wb.lens.logit_lens(model, "The capital of France is")
        >>> result.data["entropy"].sel(layer=7).values
        >>> result.save("lens.zarr");  wb.Result.load("lens.zarr").data.identical(result.data)
        True
    """

    kind: str
    data: xr.Dataset
    provenance: Provenance
    summary: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{k} {v}" for k, v in self.data.sizes.items())
        lines = [f"Result({self.kind}: {sizes})", *(f"  {k}: {v}" for k, v in self.summary.items())]
        return "\n".join(lines)

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write to a Zarr folder, complete or not at all.

        Raises:
            WorkbenchError: the folder exists (unless `replace`) or cannot be written.
        """
        target = Path(path)
        header = {
            "schema": SCHEMA,
            "kind": self.kind,
            "summary": self.summary,
            "provenance": self.provenance.to_dict(),
        }
        stored = _with_strings(self.data, np.dtypes.StringDType())
        stored = stored.assign_attrs({**self.data.attrs, "workbench": json.loads(json.dumps(header))})
        with publish_folder(target, replace=replace) as folder:
            stored.to_zarr(folder, mode="w", consolidated=False, zarr_format=3)
        return target

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a result that `save` wrote.

        Raises:
            RunError: no such folder, not a result, or damaged.
        """
        folder = Path(path)
        if not (folder / "zarr.json").is_file():
            raise RunError(
                f"{str(folder)!r} holds no result (no zarr.json): give the folder that `save` made."
            )
        try:
            with xr.open_zarr(folder, consolidated=False, chunks=None) as opened:
                data = _with_strings(opened.load(), str)
            header = data.attrs.pop("workbench")
            provenance = Provenance.from_dict(header["provenance"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise RunError(f"The result in {str(folder)!r} is damaged and cannot be read: {error}") from error
        if header.get("schema", 0) > SCHEMA:
            raise RunError(
                f"{str(folder)!r} was written by a newer version (schema {header['schema']}, this one reads "
                f"{SCHEMA}): upgrade latent-workbench."
            )
        return cls(header["kind"], data, provenance, header["summary"])

    def to_dataframe(self) -> Any:
        """All variables that share the widest dimensions, as a pandas table."""
        widest = max((v.dims for v in self.data.data_vars.values()), key=len)
        names = [n for n, v in self.data.data_vars.items() if set(v.dims) == set(widest)]
        return self.data[names].to_dataframe().reset_index()

    def figures(self) -> dict[str, Any]:
        """Plotly figures of this result, by name (needs a plotting package; ours is `dashboards`)."""
        found = [entry.load() for entry in entry_points(group="workbench.figures")]
        return {name: figure for make in found for name, figure in make(self).items()}

    def plot(self) -> Any:
        """The main Plotly figure, for a notebook."""
        figures = self.figures()
        if not figures:
            raise RunError(f"No installed package draws results of kind {self.kind!r}.")
        return next(iter(figures.values()))


def _with_strings(data: xr.Dataset, dtype: Any) -> xr.Dataset:
    """The data set with its text variables in another representation (Zarr 3 has no fixed-width text)."""
    text = [name for name in data.variables if data[name].dtype.kind in "UTO"]
    changed = {}
    for name in text:
        array = data[name]
        values = np.array(array.values.tolist(), dtype=dtype).reshape(array.shape)
        changed[name] = (array.dims, values, array.attrs)
    coordinates = {n: v for n, v in changed.items() if n in data.coords}
    variables = {n: v for n, v in changed.items() if n not in data.coords}
    result = data.assign(variables).assign_coords(coordinates)
    for name in result.variables:
        result[name].encoding = {}
    return result


def array(
    dims: tuple[str, ...], values: Any, **attrs: Any
) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
    """A variable for an xarray `Dataset`: dims, numpy values, attributes such as `units` and `long_name`."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy() if values.is_floating_point() else values.cpu().numpy()
    return dims, np.asarray(values), attrs
