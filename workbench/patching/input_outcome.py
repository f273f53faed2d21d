"""From what each prompt got to the `Result` of an input attribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from workbench.model.language_model import LanguageModel
from workbench.model.tokens import from_ids
from workbench.patching.input_baselines import Baselines
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval, paired_permutation, standard_error


@dataclass(frozen=True)
class One:
    """What a prompt got.

    Attributes:
        values: [1 + draw, position] attributions, those of the metric itself first.
        error: [position] their standard errors over samples; NaN where there were none.
        ends: metric of the prompt, and its mean over baselines.
        steps: how many steps, samples or parts.
    """

    values: np.ndarray
    error: np.ndarray
    ends: tuple[float, float]
    steps: int


@dataclass
class Outcome:
    """What was asked, and what every prompt got."""

    rows: Sequence[Sequence[int]]
    """Token ids of the prompts."""
    metric: str
    baselines: Baselines
    draws: int
    """Number of controls."""
    settings: Mapping[str, object]
    """For `attrs`."""
    tolerance: float
    seed: int
    found: dict[int, One] = field(default_factory=dict)

    def put(self, number: int, one: One) -> None:
        """What prompt `number` got."""
        self.found[number] = one

    def result(self, model: LanguageModel, seconds: float) -> Result:
        """All prompts side by side, padded with NaN, with provenance and summary."""
        variables = self._prompts() | self._over_prompts() | self._baseline_ids()
        data = xr.Dataset(variables, coords=self._coords(model), attrs=self._attrs())
        where = provenance(
            model,
            tokens=[list(row) for row in self.rows],
            seed=self.seed,
            seconds={"attribute": seconds},
        )
        return Result("input_attribution", data, where, summary_of(data))

    @property
    def _longest(self) -> int:
        return max(map(len, self.rows))

    def _values(self) -> np.ndarray:
        """[prompt, 1 + draw, position]."""
        made = np.full((len(self.rows), 1 + self.draws, self._longest), np.nan)
        for i, row in enumerate(self.rows):
            made[i, :, : len(row)] = self.found[i].values[:, : len(row)]
        return made

    def _prompts(self) -> dict[str, object]:
        dims, values = ("prompt", "position"), self._values()
        each = [self.found[i] for i in range(len(self.rows))]
        own, base = np.array([one.ends for one in each]).T
        gap = np.nansum(values[:, 0], -1) - (own - base)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(own == base, np.nan, np.abs(gap / (own - base)))
        close = relative <= self.tolerance
        wide = "|completeness_error| over |metric - baseline_metric|"
        made: dict[str, object] = {
            "attribution": array(dims, values[:, 0], long_name=f"attribution to the token, {self.metric}"),
            "metric": array(dims[:1], own, long_name=f"{self.metric}, prompt"),
            "baseline_metric": array(dims[:1], base, long_name=f"{self.metric}, mean over baselines"),
            "completeness_error": array(
                dims[:1], gap, long_name="Σ attribution - (metric - baseline_metric)"
            ),
            "relative_error": array(dims[:1], relative, long_name=wide),
            "converged": array(dims[:1], close, long_name=f"relative_error <= {self.tolerance:g}"),
            "steps": array(dims[:1], [one.steps for one in each], long_name="steps, samples or parts"),
        }
        if any(np.isfinite(one.error).any() for one in each):
            error = np.full(values[:, 0].shape, np.nan)
            for i, row in enumerate(self.rows):
                error[i, : len(row)] = each[i].error[: len(row)]
            made["attribution_se"] = array(
                dims, error, long_name="standard error of the attribution over samples"
            )
        if self.draws:
            label = f"attribution with random tokens in the answer's place, {self.metric}"
            made["control_attribution"] = array(
                ("prompt", "draw", "position"), values[:, 1:], long_name=label
            )
        return made

    def _over_prompts(self) -> dict[str, object]:
        """Means over prompts, where their positions correspond."""
        if len(self.rows) < 2 or len(set(map(len, self.rows))) > 1:
            return {}
        own, control = np.split(self._values(), [1], axis=1)
        low, high = bootstrap_interval(own[:, 0], self.seed)
        means = {
            "mean_attribution": (own[:, 0].mean(0), "attribution, mean over prompts"),
            "mean_attribution_se": (standard_error(own[:, 0]), "standard error of the mean over prompts"),
            "attribution_low": (low, "95 % bootstrap interval over prompts, lower end"),
            "attribution_high": (high, "95 % bootstrap interval over prompts, upper end"),
        }
        if self.draws:
            p = paired_permutation(own[:, 0], control.mean(1), self.seed)
            means["p_value"] = (
                p,
                "permutation p-value: attribution against the mean of its controls, over prompts",
            )
        return {
            name: array(("position",), values, long_name=label) for name, (values, label) in means.items()
        }

    def _baseline_ids(self) -> dict[str, object]:
        if self.baselines.ids is None:
            return {}
        ids = np.full((len(self.rows), len(self.baselines.ids[0]), self._longest), -1, np.int32)
        for i, some in enumerate(self.baselines.ids):
            ids[i, :, : len(self.rows[i])] = some
        label = "token ids of the baselines, -1 behind the end"
        return {"baseline_id": array(("prompt", "baseline", "position"), ids, long_name=label)}

    def _coords(self, model: LanguageModel) -> dict[str, object]:
        shape, dims = (len(self.rows), self._longest), ("prompt", "position")
        token, ids, moved = np.full(shape, "", object), np.full(shape, -1, np.int32), np.zeros(shape, bool)
        for i, row in enumerate(self.rows):
            token[i, : len(row)] = from_ids(model, [row]).tokens[0]
            ids[i, : len(row)], moved[i, : len(row)] = row, self.baselines.moved[i]
        coords: dict[str, object] = {
            "prompt": np.arange(len(self.rows)),
            "position": np.arange(self._longest),
            **({"draw": np.arange(self.draws)} if self.draws else {}),
            "length": ("prompt", [len(row) for row in self.rows]),
            "token": (dims, token.astype(str)),
            "token_id": (dims, ids),
            "moved": (dims, moved),
        }
        if self.baselines.ids is not None and len(self.baselines.ids[0]) == 1:
            other = np.full(shape, "", object)
            for i, (one,) in enumerate(self.baselines.ids):
                other[i, : len(one)] = from_ids(model, [one]).tokens[0]
            coords["baseline_token"] = (dims, other.astype(str))
        return coords

    def _attrs(self) -> dict[str, object]:
        return {
            **self.settings,
            "metric": self.metric,
            "baseline": self.baselines.name,
            "vector": self.baselines.vector or "none",
            "tolerance": self.tolerance,
            "control": f"{self.draws} random answers" if self.draws else "not run",
            "n_prompts": len(self.rows),
        }


def summary_of(data: xr.Dataset) -> dict[str, object]:
    """The numbers to print."""
    values, error = data["attribution"].values, data["relative_error"].values
    at = np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)
    strongest: dict[str, object] = {
        "prompt": int(at[0]),
        "position": int(at[1]),
        "token": str(data["token"].values[at]),
        "attribution": round(float(values[at]), 4),
    }
    used, n = data["steps"].values, data.sizes["prompt"]
    summary: dict[str, object] = {
        "method": data.attrs["method"],
        "baseline": data.attrs["baseline"],
        "metric": round(float(data["metric"].mean()), 4),
        "baseline_metric": round(float(data["baseline_metric"].mean()), 4),
        "n_prompts": n,
        "steps": int(used[0]) if len(set(used.tolist())) == 1 else f"{used.min()} to {used.max()}",
        "converged": f"{int(data['converged'].sum())} of {n} within {data.attrs['tolerance']:g} relative error",
        "largest_error": round(float(np.abs(data["completeness_error"]).max()), 4),
        "largest_relative_error": round(float(np.nanmax(error)), 4) if np.isfinite(error).any() else None,
        "strongest": strongest,
    }
    if "control_attribution" in data:
        control = data["control_attribution"].values
        strongest["control_rms"] = round(float(np.sqrt((control[at[0], :, at[1]] ** 2).mean())), 4)
        summary["control_largest"] = round(float(np.nanmax(np.abs(control))), 4)
    if "mean_attribution" in data:
        mean = data["mean_attribution"].values
        best = int(np.abs(mean).argmax())
        over: dict[str, object] = {"position": best, "attribution": round(float(mean[best]), 4)}
        over["interval"] = [
            round(float(data[name][best]), 4) for name in ("attribution_low", "attribution_high")
        ]
        if "p_value" in data:
            over["p_value"] = round(float(data["p_value"][best]), 4)
        summary["strongest_on_average"] = over
    return summary
