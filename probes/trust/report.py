"""One call that says what a probe is worth: its score at every layer beside every control, on the same folds.

| control | what is probed | what it rules out |
| --- | --- | --- |
| `shuffled labels` | the same activations, labels permuted (`control_tasks`) | overfitting, leaks between folds |
| `random token` | the same activations, a random label for every token type | a probe that memorises words |
| `untrained model` | the twin with random weights (`untrained`), true labels | the architecture and the input alone |
| `untrained, trained embedding` | the same with the trained embedding | word vectors without computation |
| `random position` | a random other token of each prompt (only if asked for) | labels readable anywhere |
| `majority`, `bag of words`, … | the text (`text_baselines`) | what needs no model |

`difference` = AUC of the probe − AUC of the control, `selectivity` = the same of accuracies; intervals come from the
same draws of groups on both sides, so they are paired. A probe says something about the *trained* model where the lower
ends of all differences are above zero; but one layer of many was picked, so `summary["best"]` has the nested AUC too
(the layer chosen without the fold it is scored on, see `probes.scores`).

`random token` is scored on folds over which the rows of every type are dealt out, as Hewitt and Liang's task must be
(see `control_tasks`); all others on the folds of the probe, which keep groups together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.folds import assign_folds
from probes.scores import nested_auc
from probes.trust.control_tasks import (
    exchange,
    last_varying_tokens,
    random_positions,
    random_token_labels,
    shuffled_labels,
    type_folds,
)
from probes.trust.fitting import Scorer, check_kind, held_out, interval, rows_at, whole_settings
from probes.trust.labels import group_codes, site_axis, two_classes, values_of
from probes.trust.text_baselines import BASELINES, MEANING, text_scores
from probes.trust.untrained import collect_untrained
from workbench.activations import Activations, collect
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.results import Result, array

if TYPE_CHECKING:
    from workbench.datasets import PromptSet
    from workbench.model.language_model import LanguageModel

NAMES = {
    **MEANING,
    "difference": "AUC of the probe minus this AUC",
    "difference_low": "difference, lower end of the 95 % interval",
    "difference_high": "difference, upper end of the 95 % interval",
    "selectivity": "accuracy of the probe minus this accuracy",
    "selectivity_low": "selectivity, lower end of the 95 % interval",
    "selectivity_high": "selectivity, upper end of the 95 % interval",
}


@dataclass(frozen=True, eq=False)
class _Scored:
    """Scores of one cell under one or several label vectors; the cell's AUC and accuracy are their means."""

    scores: np.ndarray
    labels: np.ndarray
    scorer: Scorer

    @cached_property
    def draws(self) -> tuple[np.ndarray, np.ndarray]:
        """AUC and accuracy of every bootstrap draw."""
        both = list(zip(self.scores, self.labels, strict=True))
        auc = np.mean([self.scorer.auc_draws(s, y) for s, y in both], axis=0)
        return auc, np.mean([self.scorer.accuracy_draws(s, y) for s, y in both], axis=0)

    @cached_property
    def values(self) -> tuple[float, float]:
        """AUC and accuracy."""
        both = list(zip(self.scores, self.labels, strict=True))
        auc = np.mean([self.scorer.auc(s, y) for s, y in both])
        return float(auc), float(np.mean([self.scorer.accuracy(s, y) for s, y in both]))


def trust_report(
    model: LanguageModel,
    prompts: PromptSet | Sequence[str],
    labels: Any = None,
    *,
    groups: Any = None,
    types: Sequence[Any] | None = None,
    sites: str | Iterable[str] = "blocks.*.hook_resid_post",
    position: int = -1,
    kind: str = "logistic",
    positive: Any = None,
    random_position: bool = False,
    folds: int = 5,
    penalty: float = 1.0,
    n_control: int = 3,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Probe every layer of a model, with all controls.

    Args:
        model: the language model.
        prompts: a `PromptSet` of statements (labels and groups are then its own), or texts.
        labels: two classes, one per text; needed with texts.
        groups: one per text: what must not be on both sides of a split.
        types: one per text, what random-token labels are fixed for; by default the token nearest to the end at which
            prompts differ (at least as many of them as there are folds from the rest, see `last_varying_tokens`).
        sites: one site per block, or any sites.
        position: of the token that is probed; negative counts from each prompt's end.
        kind: kind of probe, see `fitting.FIT_KINDS`; `mass_mean` and `ridge` are the quick ones.
        positive: the positive class; by default the one that sorts last.
        random_position: also probe a random other token of each prompt (a second collection).
        folds, penalty, n_bootstrap: as in `probes.sweep`.
        n_control: permutations of the labels, and draws of random-token labels; their mean is shown.
        seed: of everything random: folds, permutations, tasks, the untrained model, draws.
        progress: stages "collect" and "probe".

    Returns:
        A `Result` of kind `probe_trust` with dims (layer | site, control); the first control is `probe`. Variables in
        `NAMES`, and `n`. Text baselines are the same at every layer. Summary: `best` (layer, AUC, nested AUC),
        `margins` (difference to every control there), `strongest` (the control with the highest AUC there), `n`.

    Raises:
        DataError: prompts without labels, or that do not match them, and all that `probes.sweep` refuses.

    Example:
        >>> statements = wb.datasets.load("capitals").filter(label=["true", "false"], negated=False)
        >>> report = trust_report(model, statements, kind="mass_mean")
        >>> table(report);  report.plot()
    """
    progress, started = progress or Silent(), time.perf_counter()
    check_kind(kind)
    folds, n_control, n_bootstrap, seed = whole_settings(
        penalty, folds=folds, n_control=n_control, n_bootstrap=n_bootstrap, seed=seed
    )
    if n_bootstrap < 1 or n_control < 1:
        raise DataError("n_bootstrap and n_control at least 1.")
    if not isinstance(position, int | np.integer):
        raise DataError(
            f"A trust report reads one token of each prompt, position=-1 or alike, not {position!r}."
        )
    texts, labels, groups, about = _inputs(prompts, labels, groups)
    up, classes = two_classes(labels, len(texts), positive)
    codes = group_codes(groups, len(texts))
    fold = assign_folds(up, codes, n=folds, seed=seed)
    ids = [model.encode(text) for text in texts]
    given = (
        last_varying_tokens(ids, least=folds)
        if types is None
        else np.array([str(t) for t in values_of(types, "types")])
    )
    if len(given) != len(texts):
        raise DataError(f"{len(given)} types for {len(texts)} texts: give one for each.")
    by_row = type_folds(given, n=folds, seed=seed)
    task = random_token_labels(given, n=n_control, seed=seed + 3, fold=by_row)
    shuffled = shuffled_labels(up, fold, codes, n=n_control, seed=seed + 1)

    acts = collect(model, texts, sites, position, progress=progress)
    scorer = Scorer(fold, codes, n=n_bootstrap, seed=seed + 2)
    row_scorer = Scorer(by_row, np.arange(len(up)) if codes is None else codes, n=n_bootstrap, seed=seed + 2)
    others = {
        "untrained model": collect_untrained(model, texts, sites, position, seed=seed, progress=progress),
        "untrained, trained embedding": collect_untrained(
            model, texts, sites, position, seed=seed, keep_embedding=True, progress=progress
        ),
    }
    if random_position:
        places = random_positions([len(row) for row in ids], exclude=position, seed=seed)
        others["random position"] = collect(model, texts, sites, places, progress=progress)
    from_text = {
        name: _Scored(text_scores(texts, up, fold, name, token_ids=ids)[None], up[None], scorer)
        for name in BASELINES
    }
    progress.stage("probe", len(acts.sites))
    layers, probe_scores = [], []
    for site in acts.sites:
        x = rows_at(acts, site)
        own = held_out(x, np.concatenate([up[None], shuffled]), fold, kind, penalty=penalty)
        probe_scores.append(own[0])
        cells = {
            "probe": _Scored(own[:1], up[None], scorer),
            "shuffled labels": _Scored(own[1:], shuffled, scorer),
            "random token": _Scored(
                held_out(x, task.labels, by_row, kind, penalty=penalty), task.labels, row_scorer
            ),
        }
        for name, other in others.items():
            z = rows_at(other, site)
            cells[name] = _Scored(held_out(z, up[None], fold, kind, penalty=penalty), up[None], scorer)
        layers.append(_numbers({**cells, **from_text}))
        progress.advance()

    attrs = {
        "n": len(texts),
        "n_positive": int(up.sum()),
        "positive": str(classes[1]),
        "negative": str(classes[0]),
        "folds": folds,
        "grouped": codes is not None,
        "n_groups": len(texts) if codes is None else int(codes.max()) + 1,
        "probe": kind,
        "penalty": penalty,
        "position": position,
        "n_types": task.n_types,
        "repeated_types": round(task.repeated, 4),
        "control": (
            f"labels permuted over {exchange(up, fold, codes).level}, random labels for {task.n_types} tokens "
            f"({n_control} times each), untrained model, text alone"
        ),
        **about,
    }
    data = _dataset(layers, acts, attrs)
    made = replace(
        acts.provenance,
        seed=seed,
        seconds={**acts.provenance.seconds, "trust": round(time.perf_counter() - started, 4)},
        settings={
            "collect": acts.provenance.settings,
            "untrained": {name: other.provenance.model.get("fingerprint") for name, other in others.items()},
        },
    )
    return Result("probe_trust", data, made, _summary(data, probe_scores, up, fold))


def _inputs(prompts: Any, labels: Any, groups: Any) -> tuple[list[str], Any, Any, dict[str, Any]]:
    kind = getattr(prompts, "kind", None)
    about: dict[str, Any] = {}
    if kind is not None and hasattr(prompts, "records"):
        if kind != "statements":
            raise DataError(f"{prompts.name!r} holds {kind}: a probe needs statements (text and label).")
        labels = prompts.labels if labels is None else labels
        if groups is None and "group" in prompts.field_names:
            groups = prompts.groups
        about = {"dataset": "; ".join([prompts.name, *prompts.selection])}
        prompts = prompts.texts
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(
            "A trust report needs texts (its text baselines read them): a list of strings, or statements."
        )
    if labels is None:
        raise DataError(f"{len(texts)} texts without labels: give one label for each.")
    return texts, labels, groups, about


def _numbers(cells: dict[str, _Scored]) -> dict[str, list[float]]:
    """Every number of one layer, a list with one entry per control for each name."""
    auc_0, accuracy_0 = cells["probe"].values
    draws_0 = cells["probe"].draws
    out: dict[str, list[float]] = {name: [] for name in NAMES}
    for cell in cells.values():
        auc, accuracy = cell.values
        draws = cell.draws
        rows = {
            "auc": (auc, *interval(draws[0])),
            "accuracy": (accuracy, *interval(draws[1])),
            "difference": (auc_0 - auc, *interval(draws_0[0] - draws[0])),
            "selectivity": (accuracy_0 - accuracy, *interval(draws_0[1] - draws[1])),
        }
        for name, (value, low, high) in rows.items():
            for suffix, number in (("", value), ("_low", low), ("_high", high)):
                out[name + suffix].append(number)
    out["controls"] = list(cells)  # type: ignore[assignment]
    return out


def _dataset(layers: list[dict[str, list[Any]]], acts: Activations, attrs: dict[str, Any]) -> xr.Dataset:
    first, coords = site_axis(acts.sites)
    dims = (first, "control")
    values = {name: np.array([layer[name] for layer in layers]) for name in NAMES}
    variables = {name: array(dims, values[name], long_name=text) for name, text in NAMES.items()}
    variables["n"] = array(dims, np.full(values["auc"].shape, attrs["n"]), long_name="rows")
    coords["control"] = layers[0]["controls"]
    return xr.Dataset(variables, coords, attrs)


def _summary(data: xr.Dataset, scores: list[np.ndarray], up: np.ndarray, fold: np.ndarray) -> dict[str, Any]:
    first = data["auc"].dims[0]
    place = int(np.argmax(data["auc"].sel(control="probe").values))
    at = data.isel({first: place})
    best = {str(first): at[first].item(), "site": at["site"].item()}
    best |= {
        k: round(float(at[k].sel(control="probe")), 4) for k in ("auc", "auc_low", "auc_high", "accuracy")
    }
    best["nested_auc"] = round(nested_auc(scores, up, fold), 4)
    controls = [str(c) for c in data["control"].values if c != "probe"]
    margins = {
        name: [
            round(float(at[key].sel(control=name)), 4)
            for key in ("difference", "difference_low", "difference_high")
        ]
        for name in controls
    }
    strongest = max(controls, key=lambda name: float(at["auc"].sel(control=name)))
    said = {"name": strongest, "auc": round(float(at["auc"].sel(control=strongest)), 4)}
    return {"best": best, "strongest": said, "margins": margins, "n": data.attrs["n"]}


def table(result: Result, layer: int | str | None = None) -> Any:
    """A pandas table of one layer (by default the probe's best): every control with its numbers and intervals.

    Example:
        >>> print(table(trust_report(model, statements)).to_string(index=False))
    """
    if result.kind != "probe_trust":
        raise DataError(f"A result of kind {result.kind!r} is no trust report: expected 'probe_trust'.")
    first = str(result.data["auc"].dims[0])
    known = result.data[first].values.tolist()
    layer = result.summary["best"][first] if layer is None else layer
    if layer not in known:
        raise DataError(f"This report has no {first} {layer!r}; it has {', '.join(map(str, known))}.")
    at = result.data.isel({first: known.index(layer)})
    frame = at[[*NAMES, "n"]].to_dataframe().reset_index()
    return frame[["control", *NAMES, "n"]]
