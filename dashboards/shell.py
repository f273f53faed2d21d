"""The frame around every page: navigation, light and dark, directions, jobs, notifications and the address bar."""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Input, Output, State, dcc, html

from dashboards import ids, jobs_view
from dashboards.components import tray
from dashboards.components.aria import aria
from dashboards.components.icons import icon

POLL_MS = 400
NAVBAR: dict[str, Any] = {"width": 184, "breakpoint": "md"}
PAGES = [
    ("/", "Start", "start"),
    ("/lens", "Prompt & Lens", "lens"),
    ("/patch", "Patch", "patch"),
    ("/probes", "Probes", "probes"),
    ("/steer", "Steer", "steer"),
    ("/runs", "Runs", "runs"),
]
THEME: Any = {
    "primaryColor": "indigo",
    "primaryShade": 7,
    "fontFamily": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "fontFamilyMonospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace",
    "defaultRadius": "sm",
    "headings": {"fontWeight": "600", "sizes": {"h1": {"fontSize": "1.25rem"}, "h2": {"fontSize": "1rem"}}},
}
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%233b5bdb'/%3E"
    "%3Cpath d='M4 4v8h3M9 4l1 8 1.5-5 1.5 5 1-8' fill='none' stroke='white' stroke-width='1.3'/%3E%3C/svg%3E"
)
INDEX = f"""<!DOCTYPE html>
<html lang="en">
    <head>
        {{%metas%}}
        <title>{{%title%}}</title>
        <link rel="icon" href="{ICON}">
        {{%css%}}
    </head>
    <body>
        {{%app_entry%}}
        <footer>{{%config%}}{{%scripts%}}{{%renderer%}}</footer>
    </body>
</html>"""


def layout() -> dmc.MantineProvider:
    """Everything that stays when the page changes."""
    return dmc.MantineProvider(
        [
            dcc.Location(id=ids.LOCATION, refresh=False),
            dcc.Interval(id=ids.POLL, interval=POLL_MS, disabled=True),
            dcc.Store(id=ids.ROUTE),
            dcc.Store(id=ids.SUBMITTED),
            dcc.Store(id=ids.FOLLOWING, data={}),
            dcc.Store(id=ids.SEEN),
            dmc.NotificationContainer(id=ids.NOTIFICATIONS, position="bottom-right", limit=6),
            html.A("Skip to content", href=f"#{ids.CONTENT}", className="skip-link"),
            dmc.AppShell(
                [
                    dmc.AppShellHeader(_header()),
                    dmc.AppShellNavbar(_navigation(), p="xs", **aria(label="Pages")),
                    dmc.AppShellMain(html.Div(id=ids.CONTENT, tabIndex=-1)),
                ],
                id=ids.SHELL,
                header={"height": 48},
                navbar=navbar_settings(shown=False),
                padding="md",
                transitionDuration=0,
            ),
            jobs_view.layout(),
            tray.layout(),
        ],
        theme=THEME,
        defaultColorScheme="auto",
    )


def navbar_settings(*, shown: bool) -> Any:
    """The list of pages: always there on wide screens, on narrow ones when asked for."""
    return {**NAVBAR, "collapsed": {"mobile": not shown}}


def _header() -> dmc.Group:
    return dmc.Group(
        [
            dmc.Burger(
                id=ids.NAVBAR_SHOWN,
                opened=False,
                size="sm",
                hiddenFrom=NAVBAR["breakpoint"],
                **aria(label="Show or hide the list of pages"),
            ),
            dmc.Anchor("Latent Workbench", href="/", fw=600, c="inherit", underline="never", className="tap"),
            html.Div(className="spacer"),
            tray.button(),
            dmc.Indicator(
                dmc.Button(
                    "Jobs", id=ids.JOBS_BUTTON, leftSection=icon("jobs"), variant="default", size="xs"
                ),
                id=ids.JOBS_COUNT,
                disabled=True,
                label=0,
                size=18,
                offset=4,
            ),
            dmc.ColorSchemeToggle(
                id=ids.SCHEME,
                lightIcon=icon("moon"),
                darkIcon=icon("sun"),
                size="30px",
                variant="default",
                **aria(label="Switch between light and dark"),
            ),
        ],
        h="100%",
        px="md",
        gap="sm",
        wrap="nowrap",
    )


def _navigation() -> list[dmc.NavLink]:
    return [
        dmc.NavLink(
            label=label,
            href=href,
            leftSection=icon(name),
            active="exact" if href == "/" else "partial",
            className="nav-link",
        )
        for href, label, name in PAGES
    ]


def register(app: dash.Dash) -> None:
    """Callbacks: the list of pages on narrow screens, and what only the browser knows.

    The scheme is read from the document and not from the toggle, which says "light" until it has looked.
    """

    @app.callback(
        Output(ids.SHELL, "navbar"),
        Output(ids.NAVBAR_SHOWN, "opened"),
        Input(ids.NAVBAR_SHOWN, "opened"),
        Input(ids.LOCATION, "pathname"),
    )
    def navbar(opened, _pathname):
        shown = bool(opened) and dash.ctx.triggered_id == ids.NAVBAR_SHOWN  # going to a page closes it
        return navbar_settings(shown=shown), shown

    app.clientside_callback(
        ClientsideFunction("workbench", "route"),
        Output(ids.ROUTE, "data"),
        Input(ids.LOCATION, "pathname"),
    )
    app.clientside_callback(
        ClientsideFunction("workbench", "tell_page"),
        Output({"type": "query", "page": ALL}, "data"),
        Input(ids.LOCATION, "search"),
        Input(ids.LOCATION, "pathname"),
        State({"type": "query", "page": ALL}, "id"),
    )
