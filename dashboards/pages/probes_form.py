"""The form of the probes page: what can be chosen, and how it becomes a spec and back."""

from __future__ import annotations

import re
from typing import Any, get_args

import dash_mantine_components as dmc

from dashboards import ids
from dashboards.components import forms
from dashboards.state import AppState
from probes.specs.prompts import OTHER, Kind, same
from workbench import datasets
from workbench.errors import DataError
from workbench.specs import Spec

PAGE, KIND = "probes", "probe"
FORM = [
    "dataset", "labels", "also", "where", "group_by", "limit", "kinds", "penalty", "folds", "sites", "position",
    "controls", "model", "dtype",
]  # fmt: skip
"""Inputs of the form, in the order of `fields`."""
SAID = {
    "logistic": "logistic regression",
    "mass_mean": "mass mean",
    "mass_mean_whitened": "whitened mass mean",
    "ridge": "ridge",
    "lda": "LDA",
    "mlp": "MLP (one hidden layer)",
    "pca": "first principal component",
    "kmeans": "k-means, two clusters",
}
KINDS = {kind: SAID[kind] for kind in (*SAID, *get_args(Kind)) if kind in get_args(Kind)}
"""Kinds of probe, and what they are called here."""
SITES = [
    "blocks.*.hook_resid_post",
    "blocks.*.hook_resid_pre",
    "blocks.*.hook_attn_out",
    "blocks.*.hook_mlp_out",
]
PATH = "0.0001, 0.001, 0.01, 0.1, 1, 10"
PENALTIES = ["1", PATH, "0.001", "0.1", "10"]
MOST_VALUES = 12
"""Fields with more values than that are not offered as labels: they are names."""
NOT_LABELS = ("id", "text", "label", "group")


def statement_sets() -> list[str]:
    """The shipped sets that have labels."""
    return [name for name, entry in datasets.index().items() if entry["kind"] == "statements"]


def labels_of(dataset: str | None) -> list[str]:
    """The labels of a set, in order; those that can be probed first. Empty without a set."""
    if not dataset:
        return []
    found = sorted(set(datasets.load(dataset).labels))
    return [label for label in found if label != OTHER] + [label for label in found if label == OTHER]


def values_of(dataset: str | None) -> dict[str, list[Any]]:
    """Fields of a set with few values, and these; None is no value."""
    if not dataset:
        return {}
    prompts, found = datasets.load(dataset), {}
    for name in prompts.field_names:
        column = prompts.column(name)
        if name in NOT_LABELS or any(isinstance(v, (list, dict)) for v in column):
            continue
        values = [v for v in dict.fromkeys(column) if v is not None]
        if 2 <= len(values) <= MOST_VALUES:
            found[name] = sorted(values, key=str)
    return found


def also_of(dataset: str | None) -> list[str]:
    """What else can be read from a set: fields of two values, and values of fields of several."""
    found = []
    for name, values in values_of(dataset).items():
        found += [name] if len(values) == 2 else [f"{name}={value}" for value in values]
    return found


def where_of(dataset: str | None) -> list[str]:
    """What records can be kept by."""
    return [f"{name}={value}" for name, values in values_of(dataset).items() for value in values]


def groups_of(dataset: str | None) -> list[str]:
    """Fields that may keep records together: texts that occur more than once."""
    if not dataset:
        return []
    prompts, found = datasets.load(dataset), []
    for name in prompts.field_names:
        column = prompts.column(name)
        if name in ("id", "text") or not all(isinstance(v, str) for v in column):
            continue
        if 2 <= len(set(column)) < len(column):
            found.append(name)
    return found


def inputs(state: AppState) -> list[Any]:
    """The rows of the form."""
    name = {field: ids.of(PAGE, field) for field in FORM}
    sets = statement_sets()
    first = "sentiment" if "sentiment" in sets else sets[0]
    labels = labels_of(first)
    what = [
        dmc.Select(id=name["dataset"], label="Data set", data=sets, value=first, w=140, allowDeselect=False),
        dmc.MultiSelect(
            id=name["labels"],
            label="Labels to tell apart",
            data=labels,
            value=labels[:2],
            w=250,
            hidePickedOptions=True,
        ),
        dmc.MultiSelect(
            id=name["also"],
            label="Read as well (each a label of its own)",
            data=also_of(first),
            value=[],
            w=300,
            searchable=True,
            clearable=True,
            placeholder="nothing else",
        ),
        dmc.MultiSelect(
            id=name["where"],
            label="Only examples with",
            data=where_of(first),
            value=[],
            w=230,
            searchable=True,
            clearable=True,
            placeholder="all",
        ),
        dmc.NumberInput(
            id=name["limit"],
            label="Examples",
            value=160,
            placeholder="all",
            min=10,
            step=20,
            w=100,
            allowDecimal=False,
            **forms.KEEP,
        ),
    ]
    how = [
        dmc.MultiSelect(
            id=name["kinds"],
            label="Kinds of probe",
            data=[{"value": v, "label": label} for v, label in KINDS.items()],
            value=["logistic", "mass_mean"],
            w=330,
            **forms.KEEP,
        ),
        dmc.Autocomplete(
            id=name["penalty"],
            label="C (several: the best is taken)",
            data=PENALTIES,
            value="1",
            w=220,
            **forms.KEEP,
        ),
        dmc.NumberInput(
            id=name["folds"], label="Folds", value=5, min=2, max=20, w=80, allowDecimal=False, **forms.KEEP
        ),
        dmc.Select(
            id=name["group_by"],
            label="Kept together in a fold",
            data=groups_of(first),
            value=None,
            clearable=True,
            placeholder="the set's groups",
            w=180,
        ),
        dmc.Switch(
            id=name["controls"], label="Shuffled-label control", checked=True, className="switch-in-row"
        ),
    ]
    where = [
        dmc.Autocomplete(
            id=name["sites"],
            label="Sites (* for every layer)",
            data=SITES,
            value=SITES[0],
            w=250,
            **forms.KEEP,
        ),
        dmc.NumberInput(
            id=name["position"],
            label="Position (−1: last)",
            value=-1,
            w=140,
            allowDecimal=False,
            **forms.KEEP,
        ),
        *forms.model_inputs(state, PAGE),
        forms.run_button(PAGE),
    ]
    return [dmc.Group(row, align="end", gap="sm", mt=i and "sm") for i, row in enumerate((what, how, where))]


def fields(
    dataset: str | None, labels: list[str] | None, also: list[str] | None, where: list[str] | None,
    group_by: str | None, limit: int | str | None, kinds: list[str] | None, penalty: str | None,
    folds: int | str | None, sites: str | None, position: int | str | None, controls: bool,
    model: str | None, dtype: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The spec of the form, as plain data.

    Raises:
        DataError: fewer than two labels and nothing else to read, three labels beside others, no kind, a C that is no
            number.
    """
    labels, also = labels or [], also or []
    if len(labels) == 1 or not (labels or also):
        raise DataError(
            f"A probe tells two labels or more apart, but {len(labels)} are chosen: choose at least two (or none, and "
            "something else to read)."
        )
    if len(labels) > 2 and also:
        raise DataError(
            f"{len(labels)} labels make one probe of {len(labels)} classes, which has a sweep to itself: choose two "
            "labels, or nothing else to read."
        )
    if not kinds:
        raise DataError(f"No kind of probe is chosen: choose at least one of {', '.join(KINDS)}.")
    sets = {"label": "label"} if labels and also else {}
    return {
        "kind": KIND,
        "model": forms.model_fields(model, dtype),
        "dataset": dataset,
        "labels": labels or None,
        "label_sets": sets | {rule: rule for rule in also},
        "filter": _filter(where or []),
        "group_by": group_by or None,
        "limit": None if limit == "" else limit,
        "kinds": kinds,
        "penalty": _penalty(penalty or ""),
        "folds": folds,
        "sites": _sites(sites or ""),
        "position": position,
        "controls": bool(controls),
    }


def form_values(spec: Spec) -> list[Any]:
    """The form that asks for a spec. A data set that is not here any more has no options; its runs are shown all the
    same."""
    asked = spec.to_dict()
    dataset, rules = asked["dataset"], asked["label_sets"]
    try:
        every, known = labels_of(dataset), values_of(dataset)
    except DataError:
        every, known = [], {}
    labels = asked["labels"] or ([] if rules else every[:2])
    also = [
        rule["field"] if rule["value"] is None else f"{rule['field']}={rule['value']}"
        for rule in rules.values()
        if rule["field"] != "label"
    ]
    sites = asked["sites"] if isinstance(asked["sites"], str) else ", ".join(asked["sites"])
    penalty = asked["penalty"] if isinstance(asked["penalty"], list) else [asked["penalty"]]
    return [
        dataset, labels, also, _where(known, asked["filter"]), asked["group_by"], asked["limit"], asked["kinds"],
        ", ".join(f"{c:g}" for c in penalty), asked["folds"], sites, asked["position"], asked["controls"],
        spec.model.name, spec.model.dtype,
    ]  # fmt: skip


def _sites(text: str) -> str | list[str]:
    """One site, or several with commas between them; those in braces (`blocks.{0,-1}.…`) belong to a site."""
    found = [one.strip() for one in re.split(r",(?![^{}]*\})", text) if one.strip()]
    return found if len(found) > 1 else "".join(found)


def _penalty(text: str) -> float | list[float]:
    try:
        found = [float(one) for one in text.split(",") if one.strip()]
    except ValueError:
        found = []
    if not found or not all(0 < c < float("inf") for c in found):
        raise DataError(f"C is {text!r}, expected a number above 0, or several with commas: {PATH}.")
    return found[0] if len(found) == 1 else found


def _filter(where: list[str]) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    for condition in where:
        name, _, value = condition.partition("=")
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _where(known: dict[str, list[Any]], conditions: dict[str, Any]) -> list[str]:
    """The options of the form that stand for a filter."""
    found = []
    for name, wanted in conditions.items():
        for one in wanted if isinstance(wanted, list) else [wanted]:
            held = next((v for v in known.get(name, []) if same(v, one)), one)
            found.append(f"{name}={held}")
    return found
