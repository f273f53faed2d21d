"""A cell of a sweep as something that is kept: a `FittedProbe`, or a `Direction`, of the fit to all rows.

A sweep holds weight and intercept of every linear probe (float32, over raw activations), its scores and controls. That
is all a linear probe is, so nothing is fitted again. Kinds without weights (`mlp`) must be fitted anew.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from probes.fitted import FittedProbe
from probes.sweep_result import ProbeSweep
from workbench.directions import Direction
from workbench.errors import DataError, did_you_mean

SCORES = (
    "auc",
    "auc_low",
    "auc_high",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "log_loss",
    "calibration_error",
    "control_auc",
    "control_auc_high",
    "selectivity",
    "penalty",
)


def best_cell(sweep: ProbeSweep, **wanted: Any) -> dict[str, Any]:
    """The coordinates of the cell with the highest AUC among those that are as wanted.

    Args:
        sweep: the sweep.
        wanted: `layer`, `site`, `position`, `label` or `probe`; None leaves it free.

    Raises:
        DataError: the sweep has no such coordinate or value; the known ones are named.

    Example:
        >>> best_cell(sweep, label="truth")
        {'layer': 14, 'label': 'truth', 'probe': 'logistic', 'site': 'blocks.14.hook_resid_post'}
    """
    data = sweep.data[["auc"]]
    for name, value in wanted.items():
        if value is None:
            continue
        if name not in data.coords:
            raise DataError(
                f"This sweep has no {name} to choose; it runs over {', '.join(map(str, data['auc'].dims))}."
            )
        known = np.atleast_1d(data[name].values).tolist()
        same = [i for i, one in enumerate(known) if str(one) == str(value)]
        if not same:
            near = did_you_mean(str(value), [str(k) for k in known])
            raise DataError(
                f"This sweep has no {name} {value!r}.{near} It has {', '.join(map(str, known[:40]))}."
            )
        if data[name].dims:
            data = data.isel({data[name].dims[0]: same})
    auc = data["auc"]
    place = np.unravel_index(int(np.nanargmax(auc.values)), auc.shape)
    at = data.isel(dict(zip(auc.dims, place, strict=True)))
    found = {str(name): at[name].item() for name in auc.dims}
    return found | ({"site": at["site"].item()} if "site" in at.coords else {})


def cell(sweep: ProbeSweep, where: dict[str, Any]) -> Any:
    """The part of the data at the coordinates that `best_cell` gives."""
    data = sweep.data
    for name in ("layer", "site", "position", "label", "probe"):
        if name in data.dims:
            data = data.isel({name: data[name].values.tolist().index(where[name])})
    return data


def picked_direction(sweep: ProbeSweep, where: dict[str, Any], cls: Any = None) -> Direction:
    """The direction of a cell; of one of several label sets its name says which.

    Args:
        sweep: the sweep.
        where: as `best_cell` gives it.
        cls: the class the direction raises, where there are more than two.

    Raises:
        DataError: no linear probe, or no class named where one is needed.
    """
    from dataclasses import replace

    names = sweep.data["class"].values.tolist() if "class" in sweep.data.dims else []
    if names and str(cls) not in names:
        raise DataError(
            f"Of {len(names)} classes one direction each: say which (--of), of {', '.join(names)}."
        )
    one = sweep.direction(
        kind=where["probe"], site=where["site"], position=where.get("position"), label=where.get("label"),
        cls=str(cls) if names else None,
    )  # fmt: skip
    label = where.get("label") or _label(sweep)
    return replace(one, name=f"{label}: {one.name}") if label else one


def picked_probe(sweep: ProbeSweep, where: dict[str, Any]) -> FittedProbe:
    """The probe of a cell, with its site, model, classes and scores.

    Args:
        sweep: the sweep.
        where: as `best_cell` gives it.

    Returns:
        A `FittedProbe`; its `position` is the rule by which the activations were collected (`-1`), not the coordinate
        of the cell.

    Raises:
        DataError: a kind that is no weight and intercept.
    """
    at, kind = cell(sweep, where), str(where["probe"])
    weight, bias = np.atleast_2d(at["weight"].values).astype(np.float64), np.atleast_1d(at["bias"].values)
    if np.isnan(weight).any():
        raise DataError(
            f"A probe of kind {kind!r} is more than weights, and a sweep keeps nothing else: fit it by itself "
            "(probes.kinds), and save that."
        )
    attrs = sweep.data.attrs
    classes = _classes(at, attrs)
    estimator = _estimator(
        kind, weight, np.asarray(bias, dtype=np.float64), len(classes), float(at["penalty"])
    )
    made, label = sweep.provenance, where.get("label") or _label(sweep)
    scale = np.atleast_1d(at["scale"].values)
    spread = {} if len(classes) > 2 and kind != "logistic" else {  # softmax weights sum to 0: no other direction
        str(i): float(scale[i if len(scale) > 1 else 0]) for i in range(len(classes))
    }  # fmt: skip
    training = {
        "n": int(attrs["n"]),
        "n_groups": int(attrs.get("n_groups", attrs["n"])),
        "control": attrs["control"],
    }
    training |= {"prompts": str(attrs["prompts"])} if "prompts" in attrs else {}
    rule = (attrs.get("reads") or {}).get(label)
    training |= (
        {"reads": str(rule)} if rule else {}
    )  # what the labels were: `workbench probe apply` makes them anew
    training |= {"data": str(made.inputs.get("sha256", "")), "deviations": spread}
    return FittedProbe(
        estimator=estimator,
        site=str(where["site"]),
        position=_position_rule(sweep, where),
        model_fingerprint=str(made.model.get("fingerprint", "")),
        model_name=str(made.model.get("name", "")),
        classes=tuple(classes),
        training=training,
        scores={key: float(at[key]) for key in SCORES if key in at and np.isfinite(at[key]).all()},
        provenance=made.to_dict(),
        name=f"{label}: {kind}" if label else kind,
    )


def _position_rule(sweep: ProbeSweep, where: dict[str, Any]) -> str:
    """The rule by which the cell's token was chosen (`-1`), as text; empty where it is not known.

    The coordinate of a cell is no rule: where prompts differ in length it only counts the positions collected, and
    token 1 is not the second of [-2, -1].
    """
    said = str((sweep.provenance.settings.get("collect") or {}).get("positions", ""))
    if "position" not in where:
        return str(sweep.data.attrs.get("position", said))
    places = np.atleast_1d(sweep.data["position"].values).tolist()
    try:
        rule = ast.literal_eval(said)
    except (ValueError, SyntaxError):
        rule = None
    if isinstance(rule, list | tuple) and len(rule) == len(places) and all(isinstance(p, int) for p in rule):
        return str(rule[places.index(where["position"])])
    counted = said != "all" and places == list(range(len(places)))
    return "" if counted else str(where["position"])


def _label(sweep: ProbeSweep) -> str:
    """The name of the only label set, where it was given one."""
    reads = sweep.data.attrs.get("reads") or {}
    return next(iter(reads)) if len(reads) == 1 else ""


def _classes(at: Any, attrs: dict[str, Any]) -> list[str]:
    if "class" in at.dims:
        return [str(c) for c in at["class"].values]
    held = at.coords if "negative" in at.coords else attrs
    return [
        str(held[key].item() if hasattr(held[key], "item") else held[key]) for key in ("negative", "positive")
    ]


def _estimator(kind: str, weight: np.ndarray, bias: np.ndarray, n_classes: int, penalty: float) -> Any:
    """An estimator that scores with these weights."""
    from probes import estimators
    from probes.kinds import lda, multinomial, unsupervised

    two = {
        "logistic": lambda: estimators.LogisticProbe(C=penalty),
        # a linear classifier like any other once it is fitted: its scores are log-odds here, too
        "ridge": lambda: estimators.LogisticProbe(C=penalty),
        "mass_mean": estimators.MassMeanProbe,
        "mass_mean_whitened": estimators.WhitenedMassMeanProbe,
        "lda": lda.LdaProbe,
        "pca": unsupervised.PcaProbe,
        "kmeans": unsupervised.KMeansProbe,
    }
    many = {"logistic": lambda: multinomial.MultinomialProbe(C=penalty), "lda": lda.LdaProbe}
    known = two if n_classes == 2 else many
    if kind not in known:
        raise DataError(
            f"A probe of kind {kind!r} of a sweep cannot be saved: the kinds are {', '.join(known)}."
        )
    made = known[kind]()
    made.coef_, made.intercept_ = weight, bias
    made.classes_ = np.arange(n_classes)
    made.n_features_in_, made.n_iter_, made.converged_ = weight.shape[1], 1, True
    return made
