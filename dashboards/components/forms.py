"""Inputs that several pages share. Every one has a visible label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
from dash import html

from dashboards import ids
from dashboards.state import AppState

DTYPES = ["auto", "float32", "bfloat16", "float16"]
KEEP: dict[str, Any] = {"persistence": True, "persistence_type": "session"}
"""What is typed survives going to another page and a reload, in this tab."""


def model_names(state: AppState) -> list[str]:
    """Names to choose from: the aliases, and the model the dashboard was started with."""
    from workbench.model import aliases

    return list(dict.fromkeys([state.model, *aliases.known()]))


def model_inputs(state: AppState, page: str) -> list[Any]:
    """Model and dtype."""
    return [
        dmc.Select(
            id=ids.of(page, "model"),
            label="Model",
            data=model_names(state),
            value=state.model,
            allowDeselect=False,
            w=160,
            **KEEP,
        ),
        dmc.Select(
            id=ids.of(page, "dtype"),
            label="dtype",
            data=DTYPES,
            value="auto",
            allowDeselect=False,
            w=110,
            **KEEP,
        ),
    ]


def model_fields(model: str | None, dtype: str | None) -> dict[str, Any]:
    """The `model` part of a spec."""
    return {"name": model or "", "dtype": dtype or "auto"}


def prompt_input(input_id: str, label: str, value: str = "", *, first: bool = False) -> dmc.Textarea:
    """A prompt. The first one of a page takes the focus when `/` is pressed."""
    return dmc.Textarea(
        id=input_id,
        label=label,
        value=value,
        autosize=True,
        minRows=2,
        maxRows=8,
        spellCheck=False,
        className="prompt prompt-first" if first else "prompt",
        **KEEP,
    )


def token_input(
    input_id: str, label: str, value: str = "", placeholder: str = "", w: int = 140
) -> dmc.TextInput:
    """One token; the leading space is part of it."""
    return dmc.TextInput(
        id=input_id,
        label=label,
        value=value,
        placeholder=placeholder,
        w=w,
        className="token-input",
        spellCheck=False,
        **KEEP,
    )


def run_button(page: str) -> dmc.Button:
    """Starts the analysis; also Ctrl+Enter inside a prompt."""
    return dmc.Button("Run", id=ids.of(page, "run"), className="run-button", miw=88)


def examples(page: str, labels: dict[str, str]) -> dmc.Group:
    """Buttons that fill the form, by name of the example."""
    buttons = [
        dmc.Button(
            label, id=ids.example(page, name), variant="light", color="gray", size="compact-sm", radius="xl"
        )
        for name, label in labels.items()
    ]
    return dmc.Group([dmc.Text("Examples", size="sm", c="dimmed"), *buttons], gap="xs")


def heading(title: str, about: str) -> html.Div:
    """The name of a page and what it answers."""
    return html.Div(
        [dmc.Title(title, order=1), dmc.Text(about, size="sm", c="dimmed")], className="page-heading"
    )


def card(*children: Any, **properties: Any) -> dmc.Paper:
    """A bordered box."""
    return dmc.Paper(list(children), withBorder=True, p="md", **properties)


def model_cached(name: str) -> bool | None:
    """Whether an alias has been fetched; None for other models."""
    from workbench.model import aliases
    from workbench.model.cache import model_folder

    alias = aliases.known().get(name)
    return None if alias is None else Path(model_folder(alias)).is_dir()
