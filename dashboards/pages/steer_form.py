"""What the form of the Steer page looks like; what it means is in `steer_fields`."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import html

from dashboards import ids
from dashboards.components import forms, job_panel
from dashboards.components.aria import aria
from dashboards.pages.steer_fields import FORM, MADE, PAGE, SITES, TRAY
from dashboards.state import AppState

DEFAULT_LAYERS = 30
PROMPTS = [
    "I watched the film yesterday. It was",
    "We ate at the new restaurant. The food was",
    "My sister read the book. She said it was",
]
POSITIVE = [
    "This film is wonderful and I loved every minute.",
    "What a delicious meal, everything was perfect.",
    "The staff were kind and the room was beautiful.",
    "A great book, warm, funny and well written.",
    "The concert was brilliant and we left happy.",
    "I am delighted with this phone, it works perfectly.",
]
NEGATIVE = [
    "This film is terrible and I hated every minute.",
    "What a disgusting meal, everything was awful.",
    "The staff were rude and the room was filthy.",
    "A bad book, cold, boring and poorly written.",
    "The concert was dreadful and we left angry.",
    "I am disappointed with this phone, it never works.",
]
OPERATIONS = {
    "add": "add",
    "add_keeping_norm": "add, keeping the norm",
    "in_context": "in-context (share of norm)",
    "ablate": "ablate (project out)",
    "clamp": "clamp to a value",
    "rotate": "rotate (degrees)",
    "affine": "affine (a·c + b)",
}
RULES = {
    "all": "every token",
    "prompt": "prompt tokens",
    "generated": "generated tokens",
    "last": "last prompt token",
    "from": "from position …",
    "from_text": "from the text …",
}


NAME = {field: ids.of(PAGE, field) for field in FORM}


def layout(state: AppState) -> dmc.Paper:
    """The card with all inputs and both buttons."""
    source = dmc.SegmentedControl(
        id=NAME["source"],
        data=[{"value": TRAY, "label": "From the tray"}, {"value": MADE, "label": "Made here from prompts"}],
        value=MADE,
        size="sm",
        **forms.KEEP,
        **aria(label="Where the direction comes from"),
    )
    generate = dmc.Button("Generate", id=ids.of(PAGE, "run"), className="run-button", miw=120)
    dose = dmc.Button("Dose-response", id=ids.of(PAGE, "dose"), variant="light", miw=120)
    return forms.card(
        forms.prompt_input(NAME["prompts"], "Prompts, one per line", "\n".join(PROMPTS), first=True),
        _part("Direction", html.Div(source, className="steer-source"), _from_tray(), _from_prompts()),
        _part("Steering", _row(*_steering()), _row(*_decoding(), *forms.model_inputs(state, PAGE), generate)),
        _part("Dose-response", _row(*_scoring(), dose)),
        job_panel.layout(PAGE),
    )


def _from_tray() -> html.Div:
    chosen = dmc.Select(
        id=NAME["direction"],
        label="Named direction",
        data=[],
        value=None,
        searchable=True,
        placeholder="choose one",
        nothingFoundMessage="The tray has none of that name",
        w=320,
    )
    force = dmc.Switch(
        id=NAME["force"], label="Force (accept another model's)", checked=False, className="switch-in-row"
    )
    about = html.Div(id=ids.of(PAGE, "about"), className="steer-about", **aria(live="polite"))
    return html.Div([_row(chosen, force), about], id=ids.of(PAGE, "from-tray"))


def _from_prompts() -> html.Div:
    sets = [
        forms.prompt_input(NAME[name], f"{name.capitalize()} prompts, one per line", "\n".join(examples))
        for name, examples in (("positive", POSITIVE), ("negative", NEGATIVE))
    ]
    layer = html.Div(
        [
            dmc.Text("Layer 14", id=ids.of(PAGE, "layer-label"), size="sm", fw=500, className="steer-layer"),
            dmc.Slider(
                id=NAME["layer"],
                min=0,
                max=DEFAULT_LAYERS - 1,
                step=1,
                value=14,
                thumbLabel="Layer",
                marks=marks(DEFAULT_LAYERS),
                **forms.KEEP,
            ),
        ],
        className="steer-slider",
    )
    where = dmc.Group(
        [_select("site", "Site", SITES, "resid_post", 280), layer], align="start", gap="lg", mt="sm"
    )
    both = dmc.SimpleGrid(sets, cols={"base": 1, "sm": 2}, spacing="sm")
    return html.Div([both, where], id=ids.of(PAGE, "from-prompts"))


def _steering() -> list[Any]:
    units = {"natural": "the direction's scale", "activation": "activations"}
    label = "Strengths (list, or start:end:step)"
    return [
        dmc.TextInput(id=NAME["strengths"], label=label, value="-1, -0.5, 0.5, 1", w=250, **forms.KEEP),
        _select("units", "in units of", units, "natural", 210),
        _select("op", "Operation", OPERATIONS, "add", 210),
        _number("value", "value", 0, 90, hidden=True),
        _number("offset", "b", 0, 90, hidden=True),
        _select("where", "Positions", RULES, "all", 180),
        dmc.TextInput(id=NAME["start"], label="from", value="", w=120, style=job_panel.HIDDEN, **forms.KEEP),
    ]


def _decoding() -> list[Any]:
    return [
        _number("tokens", "New tokens", 30, 110, min=0, max=2000, allowDecimal=False),
        _select("decoding", "Decoding", {"greedy": "greedy", "sampled": "sampled"}, "greedy", 110),
        _number("temperature", "Temperature", 0.8, 110, min=0.01, step=0.1, hidden=True),
        _number("seed", "Seed", 0, 80, min=0, allowDecimal=False),
    ]


def _scoring() -> list[Any]:
    return [
        forms.token_input(NAME["answer"], "Score: logit of …", " good"),
        forms.token_input(NAME["wrong"], "minus logit of …", " bad"),
        _number("random", "Random directions", 5, 150, min=1, max=100, allowDecimal=False),
    ]


def marks(n_layers: int) -> Any:
    """A few labelled layers of the slider, the first and last among them."""
    last = n_layers - 1
    step = max(1, round(last / 5))
    at = [layer for layer in range(0, last, step) if last - layer >= step / 2] + [last]
    return [{"value": layer, "label": str(layer)} for layer in at]


def _select(field: str, label: str, options: dict[str, str], value: str, w: int) -> dmc.Select:
    data = [{"value": name, "label": words} for name, words in options.items()]
    return dmc.Select(
        id=NAME[field], label=label, data=data, value=value, allowDeselect=False, w=w, **forms.KEEP
    )


def _number(
    field: str, label: str, value: float, w: int, *, hidden: bool = False, **more: Any
) -> dmc.NumberInput:
    style = job_panel.HIDDEN if hidden else {}
    return dmc.NumberInput(id=NAME[field], label=label, value=value, w=w, style=style, **more, **forms.KEEP)


def _row(*inputs: Any) -> dmc.Group:
    return dmc.Group(list(inputs), align="end", gap="sm", mb="xs")


def _part(title: str, *children: Any) -> html.Div:
    return html.Div([dmc.Title(title, order=2), *children], className="steer-part")
