"""Probes: is a property of the prompts linearly readable, at which layer, more than shuffled labels are?"""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, ctx, html, no_update

from dashboards import following, ids
from dashboards.components import forms, graphs, job_panel, results, tables
from dashboards.figures import control_statement
from dashboards.state import AppState
from workbench import datasets
from workbench.cli.common import result_table
from workbench.errors import DataError
from workbench.results import Result
from workbench.runs import Run
from workbench.specs import Spec, parse_spec

PAGE, KIND, PATH = "probes", "probe", "/probes"
FORM = ["dataset", "labels", "limit", "sites", "position", "kinds", "folds", "controls", "model", "dtype"]
"""Inputs of the form, in the order of `fields`."""
RUN = ids.of(PAGE, "run")
KINDS = {
    "logistic": "logistic regression",
    "mass_mean": "mass mean",
    "mass_mean_whitened": "whitened mass mean",
}
SITES = [
    "blocks.*.hook_resid_post",
    "blocks.*.hook_resid_pre",
    "blocks.*.hook_attn_out",
    "blocks.*.hook_mlp_out",
]
UNDECIDED = "neither"
"""The label of statements that are not of either class; not probed unless chosen."""


def statement_sets() -> list[str]:
    """The shipped sets that have labels."""
    return [name for name, entry in datasets.index().items() if entry["kind"] == "statements"]


def labels_of(dataset: str | None) -> list[str]:
    """The labels of a set, in order; those that can be probed first. Empty without a set."""
    if not dataset:
        return []
    found = sorted(set(datasets.load(dataset).labels))
    return [label for label in found if label != UNDECIDED] + [label for label in found if label == UNDECIDED]


def layout(state: AppState) -> html.Div:
    """Form, progress, and where the result goes."""
    name = {field: ids.of(PAGE, field) for field in FORM}
    sets = statement_sets()
    first = "sentiment" if "sentiment" in sets else sets[0]
    labels = labels_of(first)
    row = [
        dmc.Select(id=name["dataset"], label="Data set", data=sets, value=first, w=160, allowDeselect=False),
        dmc.MultiSelect(
            id=name["labels"],
            label="Two labels to tell apart",
            data=labels,
            value=labels[:2],
            maxValues=2,
            w=250,
            hidePickedOptions=True,
        ),
        dmc.NumberInput(
            id=name["limit"],
            label="Examples",
            value=160,
            min=10,
            step=20,
            w=110,
            allowDecimal=False,
            **forms.KEEP,
        ),
        dmc.MultiSelect(
            id=name["kinds"],
            label="Kinds of probe",
            data=[{"value": v, "label": label} for v, label in KINDS.items()],
            value=["logistic", "mass_mean"],
            w=320,
            **forms.KEEP,
        ),
        dmc.NumberInput(
            id=name["folds"], label="Folds", value=5, min=2, max=20, w=80, allowDecimal=False, **forms.KEEP
        ),
    ]
    second = [
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
        dmc.Switch(
            id=name["controls"], label="Shuffled-label control", checked=True, className="switch-in-row"
        ),
        forms.run_button(PAGE),
    ]
    about = "Fit linear probes to activations of labelled sentences at every layer, beside shuffled labels."
    form = forms.card(
        dmc.Group(row, align="end", gap="sm"),
        dmc.Group(second, align="end", gap="sm", mt="sm"),
        job_panel.layout(PAGE),
    )
    return html.Div([forms.heading("Probes", about), form, results.layout(PAGE)])


def fields(
    dataset: str | None, labels: list[str] | None, limit: int | str | None, sites: str | None,
    position: int | str | None, kinds: list[str] | None, folds: int | str | None, controls: bool,
    model: str | None, dtype: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The spec of the form, as plain data. Raises `DataError` unless two labels and a kind are chosen."""
    if len(labels or []) != 2:
        raise DataError(
            f"A probe tells two labels apart, but {len(labels or [])} are chosen: choose exactly two."
        )
    if not kinds:
        raise DataError(f"No kind of probe is chosen: choose at least one of {', '.join(KINDS)}.")
    return {
        "kind": KIND,
        "model": forms.model_fields(model, dtype),
        "dataset": dataset,
        "labels": labels,
        "limit": limit,
        "sites": (sites or "").strip(),
        "position": position,
        "kinds": kinds,
        "folds": folds,
        "controls": bool(controls),
    }


def form_values(spec: Spec) -> list[Any]:
    """The form that asks for a spec."""
    asked = spec.to_dict()
    labels = asked["labels"] or labels_of(asked["dataset"])[:2]
    sites = asked["sites"] if isinstance(asked["sites"], str) else ", ".join(asked["sites"])
    return [
        asked["dataset"], labels, asked["limit"], sites, asked["position"], asked["kinds"], asked["folds"],
        asked["controls"], spec.model.name, spec.model.dtype,
    ]  # fmt: skip


def best_sentence(result: Result) -> str:
    """The best cell, with its interval and what choosing the best of many gives on shuffled labels."""
    summary, best = result.summary, result.summary["best"]
    where = f"layer {best['layer']}" if "layer" in best else str(best["site"])
    sentence = (
        f"Best: {KINDS.get(best['probe'], best['probe'])} at {where}, AUC {best['auc']:.3f} "
        f"[95 % interval {best['auc_low']:.3f} to {best['auc_high']:.3f}], accuracy {best['accuracy']:.3f} "
        f"(majority {summary['majority_accuracy']:.3f})"
    )
    if "control_auc" in best:
        sentence += f"; shuffled labels there {best['control_auc']:.3f}"
    return f"{sentence}; n = {summary['n']}."


def show(run: Run, scheme: str | None) -> list[Any]:
    """The figures of a run."""
    result = run.result
    columns, rows = result_table(result)
    numbers = tuple(i for i, name in enumerate(columns) if name not in ("probe",))
    listing = tables.table(columns, [list(row) for row in rows], numbers=numbers)
    return [
        results.headline(run, best_sentence(result)),
        dmc.Text(control_statement(result), size="sm", c="dimmed"),
        *(forms.card(figure) for figure in graphs.graphs(result, PAGE, scheme).values()),
        *(
            [forms.card(dmc.Title("Every layer and probe", order=2), html.Div(listing, className="tall"))]
            if rows
            else []
        ),
    ]


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: submit, labels of the chosen set, result."""
    values = [(ids.of(PAGE, f), "checked" if f == "controls" else "value") for f in FORM]
    results.register(
        app, state, PAGE, KIND, PATH, form=[Output(*v) for v in values], form_values=form_values, show=show
    )

    @app.callback(
        Output(ids.SUBMITTED, "data", allow_duplicate=True),
        Input(RUN, "n_clicks"),
        State(ids.LOCATION, "search"),
        *(State(*v) for v in values),
        prevent_initial_call=True,
    )
    def submit(n_clicks, search, *form):
        if not n_clicks:
            return no_update
        return following.submit(state, parse_spec(fields(*form), source="The form"), PAGE, search)

    @app.callback(
        Output(ids.of(PAGE, "labels"), "data"),
        Output(ids.of(PAGE, "labels"), "value", allow_duplicate=True),
        Input(ids.of(PAGE, "dataset"), "value"),
        State(ids.of(PAGE, "labels"), "value"),
        prevent_initial_call=True,
    )
    def choose_dataset(dataset, chosen):
        known = labels_of(dataset)
        keep = ctx.triggered_id is not None and set(chosen or []) <= set(known) and chosen
        return known, no_update if keep else known[:2]
