"""True, false or neither: three multiple-instance probes, stacked, that may abstain.

For each site, with K folds that keep groups together, fold k is held out, fold k + 1 calibrates, the others train:

1. A `SawmilProbe` of each class against the rest, on the training bags; C by inner folds.
2. Multinomial logistic regression from the three bag scores to the classes, fitted to the probes' *inner out-of-fold*
   scores of the training bags: scores of the bags a probe was fitted to are too good to learn from.
3. Conformal sets (`probes.conformal`) from the calibration bags' probabilities; an answer where one class is left.
4. Fold k is scored. Every bag is held out once.

    MCC        Matthews' correlation for K classes (Gorodkin 2004) of the most probable class, over all bags: 1 is
               perfect, 0 what any constant gives
    coverage   share of bags whose set holds the right class, 1 − α expected; `abstention`, share without an answer
    interval   95 % percentile bootstrap over groups (bags without groups) of the held-out outcomes
    control    all of it with labels shuffled within folds: MCC about 0, coverage still 1 − α, abstention high

After "The Trilemma of Truth" (Savcisens and Eliassi-Rad 2025, arXiv:2506.23921), where one split trains, calibrates and
tests. Classes may be any three or more (or two) labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from probes.conformal import smallest_calibration
from probes.folds import assign_folds, permute_labels
from probes.mil.bags import make_bags
from probes.mil.labels import encode, group_codes, resamples
from probes.mil.sawmil import PENALTIES
from probes.mil.stacking import cross_predict, final_probes, score_site
from workbench.activations import Activations
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import Provenance, provenance
from workbench.results import Result, array
from workbench.sites.names import expand
from workbench.store.reader import Store

MEANING = {
    "mcc": "Matthews' correlation, held out",
    "mcc_low": "MCC, lower end of the 95 % interval",
    "mcc_high": "MCC, upper end of the 95 % interval",
    "accuracy": "accuracy, held out",
    "task_auc": "AUC of the class against the rest, held out, mean of the folds with bags of both",
    "confusion": "bags of a class by most probable class",
    "answers": "bags of a class by answer; the last column: abstained",
    "coverage": "share of sets that hold the right class",
    "coverage_low": "coverage, lower end of the 95 % interval",
    "coverage_high": "coverage, upper end of the 95 % interval",
    "abstention": "share of bags without an answer",
    "abstention_low": "abstention, lower end of the 95 % interval",
    "abstention_high": "abstention, upper end of the 95 % interval",
    "set_size": "classes in a set, mean",
    "accuracy_answered": "share of answers that are right",
    "carried_by_known": "share of the class's bags whose highest token is among those assumed positive",
    "carried_by_chance": "that share if every token were as likely",
    "penalty": "C of each probe, geometric mean of folds",
    "control_mcc": "MCC on shuffled labels, mean",
    "control_mcc_high": "MCC on shuffled labels, highest",
    "control_coverage": "coverage on shuffled labels, mean",
    "control_abstention": "abstention on shuffled labels, mean",
    "weight": "weight of the probe fitted to all bags, over raw activations",
    "bias": "its intercept",
}


def three_way(
    acts: Activations | Store,
    labels: Any,
    *,
    sites: str | Iterable[str] | None = None,
    classes: Sequence[Any] | None = ("true", "false", "neither"),
    groups: Any = None,
    max_tokens: int = 10,
    known_positive: int = 2,
    skip: int = 1,
    eta: float | None = None,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 5,
    inner_folds: int = 3,
    alpha: float = 0.1,
    per_class: bool = False,
    n_control: int = 1,
    seed: int = 0,
    n_bootstrap: int = 1000,
    progress: Progress | None = None,
) -> Result:
    """Stacked multiple-instance probes with conformal sets at each site, held out, beside shuffled labels.

    Args:
        acts: activations or a store with all (or the last) tokens of each prompt.
        labels: one per prompt.
        sites: names or globs; by default all of `acts`.
        classes: the labels in order; None: those that occur, sorted.
        groups: one per prompt, kept together.
        max_tokens, known_positive, skip: as of `make_bags`.
        eta, penalties, inner_folds: as of `SawmilProbe`.
        folds: 3 or more: one is held out, one calibrates, the rest train.
        alpha, per_class: as of `ConformalSets`.
        n_control: times that labels are shuffled; 0 for none, and then an MCC says little.
        seed: of folds, shuffles and resampling; the same for every site.
        n_bootstrap: draws for the intervals.
        progress: stage "sawmil", one item per site, label vector and fold.

    Returns:
        `Result` of kind `probe_mil`, dims `layer` (or `site`, where sites are not one per block), `class`, `predicted`,
        `answer`; variables: those in `MEANING`. `attrs` has n, groups, classes, `majority_accuracy` and all settings.

    Raises:
        DataError: labels or groups that do not match, a label that is none of the classes, too few groups of a class
            for the folds, too few calibration bags for alpha, an empty bag, alpha outside (0, 1), NaN.

    Example:
        >>> statements = wb.datasets.load("capitals").filter(negated=False)
        >>> acts = wb.collect(model, statements.texts, sites="blocks.20.hook_resid_post", positions="all")
        >>> three_way(acts, statements.labels, groups=statements.groups).summary
    """
    progress, started = progress or Silent(), time.perf_counter()
    if n_bootstrap < 1 or n_control < 0 or folds < 3:
        raise DataError(f"folds must be 3 or more (train, calibrate, test), n_bootstrap 1, n_control 0; given {folds}, "
                        f"{n_bootstrap} and {n_control}.")  # fmt: skip
    smallest_calibration(alpha)
    names = _names(acts, sites)
    bags = make_bags(acts, names[0], max_tokens=max_tokens, known_positive=known_positive, skip=skip)
    known, codes = encode(labels, classes, n=len(bags), of="prompts")
    if (missing := [c for i, c in enumerate(known) if not (codes == i).any()]) != []:
        raise DataError(f"No prompt has the label {missing[0]!r}: give some, or leave it out of classes.")
    units = group_codes(groups, len(bags))
    fold = assign_folds(codes, units, n=folds, seed=seed, names=[str(c) for c in known])
    shuffled, level = permute_labels(codes, fold, units, n=n_control, seed=seed + 1)
    targets = [codes, *shuffled]
    weights = resamples(units, len(bags), n=n_bootstrap, seed=seed + 1000)
    settings = {
        "eta": eta,
        "penalties": tuple(float(c) for c in penalties),
        "inner_folds": inner_folds,
        "seed": seed,
    }

    progress.stage("sawmil", len(names) * len(targets) * folds)
    cells = []
    for name in names:
        bags = make_bags(acts, name, max_tokens=max_tokens, known_positive=known_positive, skip=skip)
        runs = [
            cross_predict(
                bags,
                t,
                fold,
                units,
                known,
                alpha=alpha,
                per_class=per_class,
                progress=progress,
                **settings,
            )
            for t in targets
        ]
        cells.append(
            score_site(bags, runs, fold, weights, known) | final_probes(bags, codes, units, known, settings)
        )
    share = np.bincount(codes) / len(codes)
    attrs = {
        "n": len(bags),
        "n_groups": len(bags) if units is None else int(units.max()) + 1,
        "n_class": np.bincount(codes).tolist(),
        "grouped": units is not None,
        "majority_accuracy": float(share.max()),
        "alpha": alpha,
        "per_class": per_class,
        "folds": folds,
        "calibration": f"one fold of {folds}, {int(np.bincount(fold).min())} bags or more",
        "tokens_per_bag": float(bags.sizes.mean()),
        "max_tokens": max_tokens,
        "known_positive": known_positive,
        "skip": skip,
        "control": f"labels shuffled over {level} within folds, {n_control} times" if n_control else "none",
        "n_bootstrap": n_bootstrap,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in settings.items() if v is not None},
    }
    data = _dataset(cells, names, [str(c) for c in known], attrs)
    seconds = {"sawmil": time.perf_counter() - started}
    made = provenance(None, seed=seed, seconds=seconds)
    origin = acts.provenance if isinstance(acts, Activations) else _origin(acts)
    made = replace(made, model=origin.model, inputs=origin.inputs)
    return Result("probe_mil", data, made, _summary(data))


def _origin(store: Store) -> Provenance:
    manifest = store.manifest
    return Provenance(model={"name": manifest.model, "fingerprint": manifest.model_fingerprint})


def _names(acts: Activations | Store, sites: str | Iterable[str] | None) -> list[str]:
    known = acts.sites
    layers = [int(s.split(".")[1]) for s in known if s.startswith("blocks.")]
    names = (
        known
        if sites is None
        else expand(sites, known, n_layers=max(layers, default=-1) + 1, model_name="This set")
    )
    shape = (
        (lambda s: acts.rows(s).shape[1:]) if isinstance(acts, Activations) else (lambda s: acts[s].shape[1:])
    )
    if len({int(np.prod(shape(name))) for name in names}) > 1:
        raise DataError("One call needs sites of one width, these differ: probe them one by one.")
    return list(names)


def _dataset(
    cells: list[dict[str, Any]], names: list[str], classes: list[str], attrs: dict[str, Any]
) -> xr.Dataset:
    parts = [name.split(".", 2) for name in names]
    per_block = all(len(p) == 3 and p[0] == "blocks" for p in parts) and len({p[-1] for p in parts}) == 1
    first = "layer" if per_block else "site"
    coords: dict[str, Any] = {
        "site": (first, np.array(names, dtype=str)),
        "class": classes,
        "predicted": classes,
        "answer": [*classes, "abstained"],
        "of": ["all", *classes],
    }
    if per_block:
        coords["layer"] = [int(p[1]) for p in parts]
    tails = {
        "confusion": ("class", "predicted"),
        "answers": ("class", "answer"),
        "weight": ("class", "d_model"),
    }
    variables = {}
    for key, text in MEANING.items():
        if key in cells[0]:
            values = np.stack([np.asarray(cell[key]) for cell in cells])
            tail = (
                tails.get(key)
                or ((), ("of" if values.shape[-1] == len(classes) + 1 else "class",))[values.ndim - 1]
            )
            variables[key] = array((first, *tail), values, long_name=text)
    return xr.Dataset(variables, coords, attrs)


def _summary(data: xr.Dataset) -> dict[str, Any]:
    """The site with the highest MCC, in numbers."""
    first = str(data["mcc"].dims[0])
    one: xr.Dataset = data.isel({first: int(np.argmax(data["mcc"].values))})
    best: dict[str, Any] = {first: one[first].item(), "site": one["site"].item()}
    for key in ("mcc", "mcc_low", "mcc_high", "control_mcc", "control_mcc_high", "accuracy"):
        if key in one:
            best[key] = round(float(one[key]), 4)
    for key in ("coverage", "abstention", "accuracy_answered"):
        best[key] = round(float(one[key].sel(of="all")), 4)
    said = ("n", "n_groups", "majority_accuracy", "alpha", "control")
    rest = {key: data.attrs[key] for key in said}
    rest["majority_accuracy"] = round(rest["majority_accuracy"], 4)
    return {"best": best, "n_sites": int(data["mcc"].size), **rest}
