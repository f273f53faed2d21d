"""One cell of a sweep on the probes page: its numbers, its direction for the library, and code that gives it again."""

from __future__ import annotations

import shlex
from typing import Any

import dash
import dash_mantine_components as dmc
import numpy as np
from dash import Input, Output, State, html, no_update

from dashboards import following, ids
from dashboards.components import code, forms, notify, reproduce, tables
from dashboards.components.aria import aria
from dashboards.components.job_panel import HIDDEN
from dashboards.figures import figures
from dashboards.figures.theme import number
from dashboards.pages.probes_form import KINDS, PAGE
from dashboards.state import AppState
from workbench.errors import DataError
from workbench.results import Result
from workbench.runs import Run
from workbench.specs import Spec

PARTS: tuple[str, ...] = ("layer", "probe", "label", "position", "class")
"""What chooses a cell (and of several classes a direction), in the order of the callbacks."""
NAME, SAVE, DETAILS = (ids.of(PAGE, name) for name in ("direction-name", "direction-save", "cell"))
CODE = ids.of(PAGE, "cell-code")
SHOWN = (
    ("auc", "AUC"),
    ("control_auc", "AUC on shuffled labels"),
    ("control_auc_high", "the highest of these"),
    ("accuracy", "accuracy"),
    ("control_accuracy", "accuracy on shuffled labels"),
    ("selectivity", "selectivity"),
    ("log_loss", "log-loss (nats)"),
    ("calibration_error", "expected calibration error"),
    ("penalty", "C"),
    ("gradient_norm", "largest gradient norm of a fit"),
    ("scale", "standard deviation along the direction"),
)


def options(result: Result) -> dict[str, list[str]]:
    """The values of each part, as texts; none where the sweep has no such dimension."""
    data, found = result.data, {}
    for part in PARTS:
        name = "site" if part == "layer" and "layer" not in data.dims else part
        found[part] = [str(v) for v in data[name].values] if name in data.dims else []
    return found


def best(result: Result) -> dict[str, str | None]:
    """The best cell, as the choices that stand for it."""
    where, known = result.summary.get("best", {}), options(result)
    found: dict[str, str | None] = {}
    for part in PARTS:
        value = where.get(part, where.get("site") if part == "layer" else None)
        at = str(value) if value is not None else None
        found[part] = at if at in known[part] else (known[part] or [None])[-1 if part == "class" else 0]
    return found


def cell(result: Result, chosen: dict[str, str | None]) -> Any:
    """The data of a cell. Raises `DataError` where it is not there."""
    data, known = result.data, options(result)
    for part in PARTS[:-1]:
        if known[part]:
            if chosen.get(part) not in known[part]:
                raise DataError(f"This sweep has no {part} {chosen.get(part)!r}: choose one of those listed.")
            dim = "site" if part == "layer" and "layer" not in data.dims else part
            data = data.isel({dim: known[part].index(str(chosen[part]))})
    return data


def layout(run: Run) -> list[Any]:
    """The card: choices, numbers, saving, code."""
    result = run.result
    known, chosen = options(result), best(result)
    titles = {"layer": "Layer" if "layer" in result.data.dims else "Site", "class": "Direction of class"}
    choices = [
        dmc.Select(
            id=ids.of(PAGE, f"cell-{part}"),
            label=titles.get(part, part.capitalize()),
            data=[{"value": v, "label": KINDS.get(v, v) if part == "probe" else v} for v in known[part]],
            value=chosen[part],
            allowDeselect=False,
            w=130 if part in ("layer", "position") and "layer" in result.data.dims else 220,
            style=None if known[part] else HIDDEN,
        )
        for part in PARTS
    ]
    keep = dmc.Group(
        [
            dmc.TextInput(
                id=NAME, label="Name in the library", value=suggested(run, chosen), w=260, spellCheck=False
            ),
            dmc.Button("Save direction", id=SAVE, variant="light"),
        ],
        align="end",
        gap="sm",
        mt="sm",
    )
    return [
        dmc.Title("One probe", order=2),
        dmc.Text("Choose it here, or click the figure of the AUC.", size="sm", c="dimmed"),
        dmc.Group(choices, align="end", gap="sm", mt="xs"),
        html.Div(details(result, chosen), id=DETAILS, **aria(live="polite")),
        keep,
        html.Div(code.block(python_of(run, chosen), "Python of this probe"), id=CODE, className="stack"),
    ]


def suggested(run: Run, chosen: dict[str, str | None]) -> str:
    """A name that a library takes."""
    reads = list(run.result.data.attrs.get("reads") or {})
    of = chosen["label"] or (reads[0] if len(reads) == 1 else getattr(run.spec, "dataset", "") or "probe")
    words = [str(of), chosen["class"], chosen["probe"], f"layer {chosen['layer']}"]
    plain = " ".join(word for word in words if word)
    return "".join(c if c.isalnum() or c in " ._+=,()-" else "-" for c in plain).strip(" .-")[:90] or "probe"


def details(result: Result, chosen: dict[str, str | None]) -> Any:
    """Every number of a cell with its interval."""
    at, attrs = cell(result, chosen), result.data.attrs
    facts: dict[str, str] = {}
    for key, said in SHOWN:
        if key not in at or at[key].ndim or not np.isfinite(float(at[key])):
            continue
        facts[said] = number(float(at[key]), 4)
        if f"{key}_low" in at:
            facts[said] += (
                f" [95 % interval {number(float(at[f'{key}_low']))} to {number(float(at[f'{key}_high']))}]"
            )
    majority = at["majority_accuracy"] if "majority_accuracy" in at.coords else attrs.get("majority_accuracy")
    if majority is not None:
        facts["accuracy of the majority"] = number(float(majority))
    if "converged" in at:
        facts["converged"] = (
            "yes" if bool(at["converged"].all()) else "no: raise the number of steps, or lower C"
        )
    if "site" in at.coords:
        facts["site"] = str(at["site"].item())
    facts["n"] = f"{attrs.get('n', '?')} examples" + (
        f", {attrs['n_groups']} groups" if "n_groups" in attrs else ""
    )
    return tables.facts(facts)


def python_of(run: Run, chosen: dict[str, str | None]) -> str:
    """Python that gives the direction of a cell again, from the run on disk."""
    data, arguments = run.result.data, []
    for part, name in (
        ("layer", "layer"),
        ("probe", "kind"),
        ("position", "position"),
        ("label", "label"),
        ("class", "cls"),
    ):
        if chosen.get(part) is None:
            continue
        is_number = part == "position" or (part == "layer" and "layer" in data.dims)
        name = "site" if part == "layer" and "layer" not in data.dims else name
        arguments.append(f"{name}={chosen[part] if is_number else repr(chosen[part])}")
    return (
        "import probes\nimport workbench as wb\n\n"
        f"sweep = probes.ProbeSweep.of(wb.load_run({str(run.path)!r}).result)\n"
        f"direction = sweep.direction({', '.join(arguments)})\n"
        f"wb.directions.library().save({suggested(run, chosen)!r}, direction, tags=['probe'])\n"
    )


def again(run: Run) -> list[Any]:
    """The whole run from Python, as a command, as YAML."""
    spec = run.spec
    parts = {"Python": reproduce.python(spec), "Command line": command(spec), "Spec": spec.to_yaml()}
    tabs = dmc.Tabs(
        [
            dmc.TabsList([dmc.TabsTab(name, value=name) for name in parts]),
            *(dmc.TabsPanel(code.block(text, name), value=name, pt="xs") for name, text in parts.items()),
        ],
        value="Python",
    )
    return [dmc.Title("The same again", order=2), tabs]


def command(spec: Spec) -> str:
    """`workbench probe …` that asks for the same; what has no option of its own is run from YAML."""
    asked, rest = reproduce.changed(spec), ["workbench", "probe"]
    if asked.get("store"):
        rest += ["--store", asked.pop("store")]
    elif asked.get("dataset"):
        rest.append(asked.pop("dataset"))
    model = asked.pop("model", {})
    for name, rule in asked.pop("label_sets", {}).items():
        text = rule["field"] + ("" if rule.get("value") is None else f"={rule['value']}")
        rest += ["--label", f"{name}={text}"]
    for name, wanted in asked.pop("filter", {}).items():
        for one in wanted if isinstance(wanted, list) else [wanted]:
            rest += ["--where", f"{name}={str(one).lower() if isinstance(one, bool) else one}"]
    if not asked.pop("controls", True):
        rest.append("--no-controls")
    for name in ("labels", "kinds", "penalty"):
        if name in asked:
            given = asked.pop(name)
            rest += [f"--{name}", ",".join(map(str, given)) if isinstance(given, list) else str(given)]
    sites = asked.pop("sites", [])
    for site in [sites] if isinstance(sites, str) else sites:
        rest += ["--sites", site]
    for name in ("positive", "group_by", "limit", "position", "folds", "seed"):
        if name in asked:
            rest += [f"--{name.replace('_', '-')}", str(asked.pop(name))]
    for name in ("name", "device", "dtype"):
        if name in model:
            rest += ["--model" if name == "name" else f"--{name}", model.pop(name)]
    if asked or model:
        return reproduce.shell(spec)
    return shlex.join(rest) + "\n"


def clicked(click: dict[str, Any] | None, result: Result) -> tuple[str, str | None] | None:
    """Layer (or site) and label of a click on the figure of the AUC."""
    if not click or not click.get("points"):
        return None
    point = click["points"][0]
    trace: Any = figures(result)["auc"].data[point["curveNumber"]]
    # Of one layer alone the lines stand side by side, a little off their layer.
    layer = point["x"] if isinstance(point["x"], str) else str(round(point["x"]))
    return layer, (trace.meta or {}).get("label")


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: the chosen cell, a click, saving."""
    chosen = [ids.of(PAGE, f"cell-{part}") for part in PARTS]
    query = State(ids.query(PAGE), "data")

    def run_of(query: dict[str, Any] | None) -> Run | None:
        run_id = following.run_of((query or {}).get("search"))
        return state.run(run_id) if run_id is not None else None

    @app.callback(
        Output(DETAILS, "children"),
        Output(CODE, "children"),
        Output(NAME, "value"),
        *(Input(i, "value") for i in chosen),
        query,
        prevent_initial_call=True,
        optional=True,  # there is no cell before the first result
    )
    def show_cell(*given):
        *values, query = given
        run = run_of(query)
        if run is None:
            return no_update, no_update, no_update
        where = dict(zip(PARTS, values, strict=True))
        block = code.block(python_of(run, where), "Python of this probe")
        return details(run.result, where), block, suggested(run, where)

    @app.callback(
        Output(chosen[0], "value"),
        Output(chosen[2], "value"),
        Input(ids.figure(PAGE, "auc"), "clickData"),
        query,
        prevent_initial_call=True,
        optional=True,
    )
    def click(data, query):
        run = run_of(query)
        if run is None or (at := clicked(data, run.result)) is None:
            return no_update, no_update
        return at[0], at[1] if at[1] is not None else no_update

    @app.callback(
        Input(SAVE, "n_clicks"),
        State(NAME, "value"),
        *(State(i, "value") for i in chosen),
        query,
        prevent_initial_call=True,
        optional=True,
    )
    def save(n_clicks, name, *given):
        *values, query = given
        run = run_of(query)
        if not n_clicks or run is None:
            return
        path = save_direction(run, dict(zip(PARTS, values, strict=True)), name or "")
        notify.show(
            notify.info(f"In {path.parent}; `workbench directions show` says more.", title=f"Saved {name}")
        )


def save_direction(run: Run, chosen: dict[str, str | None], name: str) -> Any:
    """Put the direction of a cell into the library; returns the file.

    Raises:
        DataError: no name or one that is taken, or a probe without a direction.
    """
    if not name.strip():
        raise DataError("The direction needs a name: type one.")
    from probes.picked import best_cell, picked_direction
    from probes.sweep_result import ProbeSweep
    from workbench.directions import library

    sweep = ProbeSweep.of(run.result)
    first = "layer" if "layer" in sweep.data.dims else "site"
    wanted = {
        first: chosen["layer"],
        "probe": chosen["probe"],
        "label": chosen["label"],
        "position": chosen["position"],
    }
    where = best_cell(sweep, **wanted)
    return library().save(name.strip(), picked_direction(sweep, where, chosen["class"]), tags=["probe"])


def card(run: Run) -> Any:
    """The cell in a box."""
    return forms.card(*layout(run))
