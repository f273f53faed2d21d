"""Patch: which activation, moved from one run into another, moves the answer?

Either one pair of prompts or a set of pairs; the grid of effects stands beside its wrong-source control.
"""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, html, no_update

from dashboards import following, ids
from dashboards.components import forms, graphs, job_panel, results, tokens
from dashboards.components.aria import aria
from dashboards.figures.preview import preview
from dashboards.figures.theme import number
from dashboards.state import AppState
from workbench import datasets
from workbench.errors import MetricError, PromptError
from workbench.results import Result
from workbench.runs import Run
from workbench.specs import Spec, parse_spec

PAGE, KIND, PATH = "patch", "patch", "/patch"
FORM = ["source", "clean", "corrupt", "answer", "wrong", "dataset", "limit", "site", "direction", "control"]
FORM += ["model", "dtype"]
"""Inputs of the form, in the order of `fields`."""
RUN = ids.of(PAGE, "run")
PAIR, DATASET = "pair", "dataset"

EXAMPLE = {
    "clean": "When Mary and John went to the store, John gave a drink to",
    "corrupt": "When Mary and John went to the store, Mary gave a drink to",
    "answer": " Mary",
    "wrong": " John",
}
SITES = {
    "resid_pre": "resid_pre: stream before block",
    "resid_mid": "resid_mid: stream before MLP",
    "resid_post": "resid_post: stream after block",
    "attn_out": "attn_out: attention output",
    "mlp_out": "mlp_out: MLP output",
    "z": "z: attention heads",
    "q": "q: queries of heads",
    "k": "k: keys of heads",
    "v": "v: values of heads",
    "pattern": "pattern: attention of heads",
    "neurons": "neurons: groups of 128",
}
COLUMNS = ("position", "head", "group", "span")
"""What the columns of a grid may be, the first of which is named with its token."""
DIRECTIONS = [
    {"value": "denoising", "label": "denoising: clean → corrupt"},
    {"value": "noising", "label": "noising: corrupt → clean"},
]


def layout(state: AppState) -> html.Div:
    """Form, progress, and where the result goes."""
    name = {field: ids.of(PAGE, field) for field in FORM}
    pairs = [n for n, entry in datasets.index().items() if entry["kind"] == "pairs"]
    source = dmc.SegmentedControl(
        id=name["source"],
        data=[{"value": PAIR, "label": "One pair"}, {"value": DATASET, "label": "Data set of pairs"}],
        value=PAIR,
        size="sm",
        mb="sm",
        **forms.KEEP,
        **aria(label="What to patch: one pair or a data set"),
    )
    prompts = dmc.SimpleGrid(
        [
            forms.prompt_input(name["clean"], "Clean prompt", EXAMPLE["clean"], first=True),
            forms.prompt_input(name["corrupt"], "Corrupt prompt (same number of tokens)", EXAMPLE["corrupt"]),
        ],
        id=ids.of(PAGE, "prompts"),
        cols={"base": 1, "sm": 2},
        spacing="sm",
        mb="sm",
    )
    answers = dmc.Group(
        [
            forms.token_input(name["answer"], "Answer token", EXAMPLE["answer"]),
            forms.token_input(name["wrong"], "Wrong token", EXAMPLE["wrong"]),
        ],
        id=ids.of(PAGE, "answers"),
        gap="sm",
    )
    dataset = dmc.Group(
        [
            dmc.Select(
                id=name["dataset"],
                label="Data set",
                data=pairs,
                value=pairs[0] if pairs else None,
                w=180,
                allowDeselect=False,
            ),
            dmc.NumberInput(
                id=name["limit"], label="Pairs", value=8, min=1, max=500, w=100, allowDecimal=False
            ),
        ],
        id=ids.of(PAGE, "set"),
        gap="sm",
        style=job_panel.HIDDEN,
    )
    what = dmc.Group(
        [
            answers,
            dataset,
            dmc.Select(
                id=name["site"],
                label="Site",
                data=[{"value": v, "label": label} for v, label in SITES.items()],
                value="resid_pre",
                allowDeselect=False,
                w=280,
                **forms.KEEP,
            ),
            dmc.Select(
                id=name["direction"],
                label="Direction",
                data=DIRECTIONS,
                value="denoising",
                allowDeselect=False,
                w=250,
                **forms.KEEP,
            ),
        ],
        align="end",
        gap="sm",
    )
    how = dmc.Group(
        [
            *forms.model_inputs(state, PAGE),
            dmc.Switch(
                id=name["control"], label="Wrong-source control", checked=True, className="switch-in-row"
            ),
            forms.run_button(PAGE),
        ],
        align="end",
        gap="sm",
        mt="sm",
    )
    about = "Copy activations from one run into another, layer by layer, and see what the answer does."
    form = forms.card(source, prompts, what, how, job_panel.layout(PAGE))
    so_far = html.Div(id=ids.of(PAGE, "preview"), className="results stack")
    return html.Div([forms.heading("Patch", about), form, so_far, results.layout(PAGE)])


def fields(
    source: str, clean: str | None, corrupt: str | None, answer: str | None, wrong: str | None,
    dataset: str | None, limit: int | str | None, site: str, direction: str, control: bool,
    model: str | None, dtype: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The spec of the form, as plain data.

    Raises:
        PromptError, MetricError: an empty prompt or token of a pair.
    """
    common = {
        "kind": KIND,
        "model": forms.model_fields(model, dtype),
        "site": site,
        "direction": direction,
        "control": bool(control),
    }
    if source == DATASET:
        return {**common, "dataset": dataset, "limit": limit}
    for name, text in (("clean", clean), ("corrupt", corrupt)):
        if not (text or "").strip():
            raise PromptError(f"The {name} prompt is empty: patching compares a clean and a corrupt prompt.")
    for name, text in (("answer", answer), ("wrong", wrong)):
        if not text:
            raise MetricError(
                f"The {name} token is empty: give exactly one token, for instance {EXAMPLE[name]!r}."
            )
    return {**common, "clean": clean, "corrupt": corrupt, "answer": answer, "wrong": wrong}


def form_values(spec: Spec) -> list[Any]:
    """The form that asks for a spec; fields of the other source keep what they hold."""
    asked = spec.to_dict()
    source = DATASET if asked["dataset"] is not None else PAIR
    pair = [asked[n] if source == PAIR else no_update for n in ("clean", "corrupt", "answer", "wrong")]
    chosen = [asked[n] if source == DATASET else no_update for n in ("dataset", "limit")]
    settings = [asked["site"], asked["direction"], asked["control"]]
    return [source, *pair, *chosen, *settings, spec.model.name, spec.model.dtype]


def strongest_sentence(result: Result) -> str:
    """Where the largest effect is, beside its control."""
    strongest = result.summary["strongest"]
    if strongest is None:
        return str(result.summary.get("note", "No cell has an effect in every pair."))
    column = next(name for name in COLUMNS if name in strongest)
    where = f"{column} {strongest[column]}" + (f" {strongest['token']!r}" if "token" in strongest else "")
    effect = number(strongest["effect"])
    interval = ""
    if "interval" in strongest:
        low, high = (number(v) for v in strongest["interval"])
        interval = f" [95 % interval {low} to {high}]"
    control = "control not run"
    if "control_effect" in strongest:
        control = f"wrong-source control there {number(strongest['control_effect'])}"
    n = result.summary["n_pairs"]
    return (
        f"Strongest: layer {strongest['layer']}, {where}: effect {effect}{interval}; {control}; "
        f"n = {n} pair{'s' if n > 1 else ''}."
    )


def show(run: Run, scheme: str | None) -> list[Any]:
    """The figures of a run."""
    result = run.result
    data = result.data
    drawn = graphs.graphs(result, PAGE, scheme)
    parts: list[Any] = [results.headline(run, strongest_sentence(result))]
    if "pairs" in result.summary:
        parts.append(dmc.Text(f"Used: {result.summary['pairs']}.", size="sm", c="dimmed"))
    if "position" in data.dims:
        pair = [[str(t) for t in data[name].values] for name in ("clean_token", "corrupt_token")]
        differs = [a != b for a, b in zip(*pair, strict=True)]
        first = " of the first pair" if result.summary["n_pairs"] > 1 else ""
        parts.append(
            html.Div(
                [
                    tokens.strip(pair[0], label=f"Clean tokens{first}", differs=differs),
                    tokens.strip(pair[1], label=f"Corrupt tokens{first}", differs=differs),
                ],
                className="token-strips",
            )
        )
    return [*parts, *(forms.card(figure) for figure in drawn.values())]


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: submit, pair or data set, result."""
    values = [(ids.of(PAGE, f), "checked" if f == "control" else "value") for f in FORM]
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
        Output(ids.of(PAGE, "preview"), "children"),
        Input(ids.POLL, "n_intervals"),
        State(ids.FOLLOWING, "data"),
        State(ids.SUBMITTED, "data"),
        State(ids.query(PAGE), "data"),
        State(ids.of(PAGE, "preview"), "children"),
    )
    def paint(_ticks, known, submitted, query, before):
        """The cells that the followed sweep has, while it runs."""
        mine = following.entry(PAGE, following.current(state, known), submitted)
        job = state.job(mine["job"]) if mine is not None and not mine["done"] else None
        if job is None or (seen := job.preview) is None:
            return None if before else no_update
        if query is None:  # the page has just been made: the next tick knows its colours
            return no_update
        words = f"So far: {seen.title}."
        return forms.card(graphs.graph(PAGE, "preview", preview(seen), words, query["scheme"]))

    @app.callback(
        Output(ids.of(PAGE, "prompts"), "style"),
        Output(ids.of(PAGE, "answers"), "style"),
        Output(ids.of(PAGE, "set"), "style"),
        Input(ids.of(PAGE, "source"), "value"),
    )
    def choose_source(source):
        shown, hidden = {}, job_panel.HIDDEN
        return (shown, shown, hidden) if source == PAIR else (hidden, hidden, shown)
