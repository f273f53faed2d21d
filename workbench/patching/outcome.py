"""From the raw grids of a sweep to its `Result`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.errors import MetricError
from workbench.model.language_model import LanguageModel
from workbench.patching.pairs import Pairs
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval, paired_permutation, standard_error


@dataclass
class Outcome:
    """What a sweep measured."""

    pairs: Pairs
    layers: Sequence[int]
    axes: tuple[str, ...]
    """Names of the grid's axes behind the layers."""
    settings: dict[str, object]
    """For `attrs`: kind, source, and so on."""
    ends: np.ndarray
    """[pair, 2]: the metric of the run that activations are taken from, and of the run they are put into."""
    raw: np.ndarray
    """[pair, layer, ...]."""
    wrong: np.ndarray | None
    """The same with wrong sources."""
    control: str
    seed: int
    seconds: float

    @property
    def metric(self) -> str:
        return str(self.pairs.metrics[0])

    @property
    def direction(self) -> str:
        return self.pairs.direction

    def result(self, model: LanguageModel) -> Result:
        """Effects, intervals, p-values, provenance and summary."""
        dims = ("layer", *self.axes)
        source, base = self.ends.T
        effect = self._normalised(self.raw)
        low, high = bootstrap_interval(effect, self.seed)
        clean, corrupt = (source, base) if self.direction == "denoising" else (base, source)
        label = f"{self.direction} effect (0 none, 1 full)"
        variables = {
            "metric": array(("pair", *dims), self.raw, long_name=self.metric),
            "effect": array(("pair", *dims), effect, long_name=label),
            "mean_effect": array(dims, effect.mean(0), long_name=f"mean {label}"),
            "effect_se": array(
                dims, standard_error(effect), long_name="standard error of the mean effect over pairs"
            ),
            "effect_low": array(dims, low, long_name="95 % bootstrap interval over pairs, lower end"),
            "effect_high": array(dims, high, long_name="95 % bootstrap interval over pairs, upper end"),
            "clean_metric": array(("pair",), clean, long_name=f"{self.metric}, clean run"),
            "corrupt_metric": array(("pair",), corrupt, long_name=f"{self.metric}, corrupt run"),
        }
        if self.wrong is not None:
            wrong = self._normalised(self.wrong)
            variables["control_effect"] = array(
                ("pair", *dims), wrong, long_name="effect of wrong-source patches"
            )
            p = paired_permutation(effect, wrong, self.seed)
            variables["p_value"] = array(
                dims, p, long_name="permutation p-value: effect against wrong-source patches, over pairs"
            )
        data = xr.Dataset(variables, coords=self._coords(), attrs=self._attrs())
        ids = [batch.ids[0].tolist() for pair in self.pairs.pairs for batch in pair]
        where = provenance(model, tokens=ids, seed=self.seed, seconds={"patch": self.seconds})
        return Result("patching_sweep", data, where, self._summary(data))

    def _normalised(self, grid: np.ndarray) -> np.ndarray:
        source, base = self.ends.T
        span = source - base
        for i, width in enumerate(span):
            if abs(width) < 1e-6:
                raise MetricError(
                    f"Pair {i}: {self.metric} is {source[i]:.4f} in both runs, so there is no effect to normalise by. "
                    "Choose a metric or a corrupt prompt that makes a difference."
                )
        shape = (-1, *[1] * (grid.ndim - 1))
        return (grid - base.reshape(shape)) / span.reshape(shape)

    def _coords(self) -> dict[str, object]:
        coords: dict[str, object] = {"pair": np.arange(len(self.pairs)), "layer": np.array(self.layers)}
        for axis, size in zip(self.axes, self.raw.shape[2:], strict=True):
            coords[axis] = np.arange(size)
        if "position" in self.axes:
            clean, corrupt = self._tokens()
            coords["clean_token"] = ("position", np.array(clean, dtype=str))
            coords["corrupt_token"] = ("position", np.array(corrupt, dtype=str))
        if "span" in self.axes:
            coords["span"] = np.array([name for name, _, _ in self.pairs.groups(0)], dtype=str)
        return coords

    def _tokens(self) -> tuple[list[str], list[str]]:
        """Clean and corrupt token at each position of the first base run; empty where none corresponds."""
        base, source = self.pairs.bases[0].tokens[0], self.pairs.sources[0].tokens[0]
        theirs = [""] * len(base)
        for _, to, come in self.pairs.groups(0):
            for p, q in zip(to, come, strict=True):
                theirs[p] = source[q]
        return (theirs, list(base)) if self.direction == "denoising" else (list(base), theirs)

    def _attrs(self) -> dict[str, object]:
        return {
            **self.settings,
            "direction": self.direction,
            "metric": self.metric,
            "n_pairs": len(self.pairs),
            "control": self.control,
            **self._alignment(),
        }

    def _alignment(self) -> dict[str, object]:
        """How many positions correspond, where that was said; nothing where all do."""
        if self.pairs.alignments is None:
            return {}
        counts = [
            f"{len(self.pairs.aligned(i))} of {base.lengths[0]}" for i, base in enumerate(self.pairs.bases)
        ]
        text = (
            f"{', '.join(dict.fromkeys(counts))} positions of the patched run correspond to one of the other"
        )
        too_many = [len(side) for a in self.pairs.alignments for side in a.left_out]
        return {"alignment": text, "left_out": f"{sum(too_many)} tokens that only one of the prompts has"}

    def _summary(self, data: xr.Dataset) -> dict[str, object]:
        mean = data["mean_effect"].values
        summary: dict[str, object] = {
            "kind": data.attrs["kind"],
            "clean_metric": round(float(data["clean_metric"].mean()), 4),
            "corrupt_metric": round(float(data["corrupt_metric"].mean()), 4),
            "n_pairs": int(data.sizes["pair"]),
            "strongest": None,
        }
        summary |= {name: data.attrs[name] for name in ("alignment", "left_out") if name in data.attrs}
        if not np.isfinite(mean).any():
            summary["note"] = (
                "No position is patched in every pair, so there is no mean over pairs: effects are per pair only. "
                "Patch spans that all pairs have (by='span'), or run the pairs apart."
            )
            return summary
        at = np.unravel_index(int(np.nanargmax(np.abs(mean))), mean.shape)
        strongest: dict[str, object] = {"layer": int(data["layer"][at[0]])}
        strongest |= {axis: data[axis].values[i].item() for axis, i in zip(self.axes, at[1:], strict=True)}
        if "position" in self.axes:
            strongest["token"] = str(data["clean_token"].values[at[-1]])
        strongest["effect"] = round(float(mean[at]), 4)
        summary["strongest"] = strongest
        if "control_effect" in data:
            control = data["control_effect"].mean("pair").values
            strongest["control_effect"] = round(float(control[at]), 4)
            summary["control_largest"] = round(float(np.nanmax(np.abs(control))), 4)
        if data.sizes["pair"] > 1:
            ends = ("effect_low", "effect_high")
            strongest["interval"] = [round(float(data[name].values[at]), 4) for name in ends]
            if "p_value" in data:
                strongest["p_value"] = round(float(data["p_value"].values[at]), 4)
        return summary
