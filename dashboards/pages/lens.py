"""Prompt & Lens: what each layer would say next, at every position of one prompt.

Form -> `LensSpec` -> worker -> run; the address `?run=<id>` brings back the form and the figures of a run.
A click on a cell of the grid lists that cell's tokens.
"""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, html, no_update

from dashboards import following, ids
from dashboards.components import forms, graphs, job_panel, results, tables, tokens
from dashboards.components.aria import aria
from dashboards.components.clicks import clicked
from dashboards.state import AppState
from workbench.errors import PromptError
from workbench.results import Result
from workbench.runs import Run
from workbench.specs import Spec, parse_spec

PAGE, KIND, PATH = "lens", "lens", "/lens"
TOP_K = 10
PROMPT, TARGET, MODEL, DTYPE = (ids.of(PAGE, name) for name in ("prompt", "target", "model", "dtype"))
RUN, CELL = ids.of(PAGE, "run"), ids.of(PAGE, "cell")

EXAMPLES: dict[str, dict[str, str]] = {
    "indirect object": {
        "prompt": "When Mary and John went to the store, John gave a drink to",
        "target": " Mary",
    },
    "capital": {"prompt": "The capital of France is", "target": " Paris"},
    "list": {"prompt": "Monday, Tuesday, Wednesday, Thursday,", "target": " Friday"},
}


def layout(state: AppState) -> html.Div:
    """Form, progress, and where the result goes."""
    first = EXAMPLES["indirect object"]
    form = forms.card(
        forms.prompt_input(PROMPT, "Prompt", first["prompt"], first=True),
        dmc.Group(
            [
                forms.token_input(
                    TARGET, "Target (optional)", first["target"], "the model's own top-1", w=200
                ),
                *forms.model_inputs(state, PAGE),
                forms.run_button(PAGE),
            ],
            align="end",
            gap="sm",
            mt="sm",
        ),
        html.Div(forms.examples(PAGE, {name: name for name in EXAMPLES}), className="examples"),
        job_panel.layout(PAGE),
    )
    about = "Decode the residual stream after every block with the model's own readout (logit lens)."
    return html.Div([forms.heading("Prompt & Lens", about), form, results.layout(PAGE)])


def fields(prompt: str | None, target: str | None, model: str | None, dtype: str | None) -> dict[str, Any]:
    """The spec of the form, as plain data. Raises `PromptError` for an empty prompt."""
    if not (prompt or "").strip():
        raise PromptError("The prompt is empty: type a text for the model to continue.")
    return {
        "kind": KIND,
        "model": forms.model_fields(model, dtype),
        "prompt": prompt,
        "target": target or None,
        "top_k": TOP_K,
    }


def form_values(spec: Spec) -> list[Any]:
    """The form that asks for a spec: the inverse of `fields`."""
    asked = spec.to_dict()
    prompt = asked["prompt"] if isinstance(asked["prompt"], str) else spec.title()
    return [prompt, asked["target"] or "", spec.model.name, spec.model.dtype]


def depth_sentence(result: Result) -> str:
    """From which layer on the target is what the model would say."""
    summary = result.summary
    last = summary["n_layers"] - 1
    target = repr(summary["target"])
    where = f"at position {summary['position']}"
    control = f"{summary['control_rank_last_layer']:,.0f}"
    if summary["depth"] is None:
        return (
            f"{target} is not top-1 {where} after the last of layers 0–{last}: its rank is "
            f"{summary['final_rank']:,} (random tokens: {control})."
        )
    return (
        f"{target} becomes and stays top-1 {where} from layer {summary['depth']} of 0–{last} on; "
        f"final probability {summary['final_probability']:.3f} (rank of random tokens: {control})."
    )


def cell_table(result: Result, layer: int, position: int) -> list[Any]:
    """The decoded tokens of one cell, and what else is known of it."""
    data = result.data
    cell = data.sel(layer=layer, position=position)
    k = data.sizes["k"]
    rows = [
        [str(i + 1), html.Code(tokens.visible(str(token))), f"{float(p):.4f}"]
        for i, (token, p) in enumerate(
            zip(cell["top_token"].values, cell["top_probability"].values, strict=True)
        )
    ]
    target = data.attrs["target"]
    more = {
        "entropy": f"{float(cell['entropy']):.3f} nats",
        "KL to final": f"{float(cell['kl_to_final']):.3f} nats",
        f"rank of {target!r}": f"{int(cell['target_rank']):,} of {int(data.attrs['d_vocab']):,}",
        f"p({target!r})": f"{float(cell['target_probability']):.3g}",
        "rank of random tokens": f"{float(cell['control_rank']):,.0f} (median of {data.attrs['n_control']})",
    }
    token = tokens.visible(str(cell["token"].values))
    return [
        dmc.Title(["Layer ", str(layer), ", position ", str(position), " ", html.Code(token)], order=2),
        dmc.Text(f"Top {k} tokens the model would say next from here", size="sm", c="dimmed"),
        tables.table(["", "token", "p"], rows, numbers=(2,)),
        tables.facts(more),
    ]


def clicked_cell(click: dict[str, Any] | None) -> tuple[int, int] | None:
    """Layer and position of a click on the grid; labels begin with the number."""
    if not click or not click.get("points"):
        return None
    point = click["points"][0]
    return int(str(point["y"]).split()[0]), int(str(point["x"]).split()[0])


def show(run: Run, scheme: str | None) -> list[Any]:
    """The figures of a run."""
    result = run.result
    drawn = graphs.graphs(result, PAGE, scheme)
    data = result.data
    start = int(data["layer"].values[-1]), int(data["position"].values[-1])
    return [
        results.headline(run, depth_sentence(result)),
        tokens.strip([str(t) for t in data["token"].values], label="Tokens of the prompt"),
        html.Div(
            [
                forms.card(drawn["lens"], className="wide"),
                forms.card(
                    html.Div(cell_table(result, *start), id=CELL, **aria(live="polite")),
                    dmc.Text("Click a cell of the grid to see another.", size="sm", c="dimmed", mt="xs"),
                    className="aside",
                ),
            ],
            className="grid-and-aside",
        ),
        forms.card(drawn["layers"]),
    ]


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: submit, examples, result, cell."""
    form = [Output(i, "value") for i in (PROMPT, TARGET, MODEL, DTYPE)]
    results.register(app, state, PAGE, KIND, PATH, form=form, form_values=form_values, show=show)

    @app.callback(
        Output(ids.SUBMITTED, "data", allow_duplicate=True),
        Input(RUN, "n_clicks"),
        State(PROMPT, "value"),
        State(TARGET, "value"),
        State(MODEL, "value"),
        State(DTYPE, "value"),
        State(ids.LOCATION, "search"),
        prevent_initial_call=True,
    )
    def submit(n_clicks, prompt, target, model, dtype, search):
        if not n_clicks:
            return no_update
        spec = parse_spec(fields(prompt, target, model, dtype), source="The form")
        return following.submit(state, spec, PAGE, search)

    @app.callback(
        Output(PROMPT, "value", allow_duplicate=True),
        Output(TARGET, "value", allow_duplicate=True),
        Input({"type": f"{PAGE}-example", "name": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def fill(_clicks):
        if (name := clicked("name")) is None:
            return no_update, no_update
        return EXAMPLES[name]["prompt"], EXAMPLES[name]["target"]

    @app.callback(
        Output(CELL, "children"),
        Input(ids.figure(PAGE, "lens"), "clickData"),
        State(ids.query(PAGE), "data"),
        prevent_initial_call=True,
        optional=True,  # there is no grid before the first result
    )
    def show_cell(click, query):
        cell, run_id = clicked_cell(click), following.run_of(query["search"])
        if cell is None or run_id is None:
            return no_update
        return cell_table(state.run(run_id).result, *cell)
