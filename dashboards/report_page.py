"""Parts of the HTML report: page, tables, figures. Text goes in, escaped HTML comes out.

The page carries everything it needs, plotly.js included (once), and a content security policy that lets it
load nothing else: opened from a folder or a mail, it asks no host for anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from dashboards.figures.tables import Table, tables
from dashboards.figures.theme import TEMPLATES, TOKENS, Scheme, has_our_template

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)

_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--background);color:var(--text);
  font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}
h2{font-size:20px;margin:40px 0 8px;padding-top:16px;border-top:1px solid var(--grid)}
h3{font-size:16px;margin:24px 0 8px}
h4{font-size:14px;margin:16px 0 4px}
p{margin:8px 0;max-width:80ch}
a{color:var(--accent)}
.muted,figcaption,caption{color:var(--muted)}
figure{margin:16px 0 24px}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
figcaption{font-size:14px;max-width:90ch}
.plot{min-width:640px}
.scroll{overflow-x:auto;max-width:100%}
.scroll.tall{max-height:480px;overflow:auto}
.scroll:focus-visible,summary:focus-visible,a:focus-visible{
  outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;margin:8px 0;font-size:14px;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:4px 0}
th,td{text-align:left;vertical-align:top;padding:4px 12px 4px 0;border-bottom:1px solid var(--grid)}
th{font-weight:600}
table.numbers{font-size:12px;white-space:nowrap}
table.numbers td,table.numbers thead th+th{text-align:right}
table.numbers tbody th,table.numbers thead th:first-child{position:sticky;left:0;
  background:var(--background)}
table.facts th{min-width:170px}
table.texts th,table.texts td{min-width:60px;max-width:46ch;white-space:pre-wrap;
  overflow-wrap:anywhere}
table.facts td{overflow-wrap:anywhere}
.said{white-space:pre-wrap}
summary{cursor:pointer;padding:4px 0;min-height:24px}
pre{background:var(--surface);border:1px solid var(--grid);border-radius:6px;padding:12px;overflow-x:auto;
  font:13px/1.5 ui-monospace,'SF Mono',Menlo,Consolas,monospace}
nav ol{margin:8px 0;padding-left:20px}
@media print{.scroll.tall{max-height:none}h2{break-after:avoid}figure{break-inside:avoid}}
"""

_SCRIPT = """
(function () {
  "use strict";
  var read = function (id) { return JSON.parse(document.getElementById(id).textContent); };
  var templates = read("templates"), drawn = [];
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var config = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    toImageButtonOptions: {format: "svg"},
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
  var layout = function (one) {
    if (!one.ours) return one.figure.layout;
    return Object.assign({}, one.figure.layout, {template: templates[dark.matches ? "dark" : "light"]});
  };
  var draw = function () {
    drawn.forEach(function (one) { Plotly.react(one.box, one.figure.data, layout(one), config); });
  };
  document.querySelectorAll("[data-figure]").forEach(function (box) {
    var one = read(box.dataset.figure);
    drawn.push({box: box, figure: one.figure, ours: one.ours});
  });
  draw();
  dark.addEventListener("change", draw);
})();
"""


def in_script(value: Any) -> str:
    """JSON that may stand in a `<script>`: nothing in it can end the element or start another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page(title: str, body: str) -> str:
    """A whole document around the body."""
    colours = {scheme: _variables(scheme) for scheme in TOKENS}
    templates = {scheme: pio.templates[name].to_plotly_json() for scheme, name in TEMPLATES.items()}
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
:root{{{colours["light"]}}}
@media (prefers-color-scheme: dark){{:root{{{colours["dark"]}}}}}
{_CSS}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="templates">{in_script(templates)}</script>
<script>{get_plotlyjs()}</script>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _variables(scheme: Scheme) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in asdict(TOKENS[scheme]).items())


def facts(pairs: Mapping[str, Any], caption: str = "") -> str:
    """A two-column table of names and values; nested mappings become dotted names."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="said">{escape(say(value))}</td></tr>\n'
        for name, value in flatten(pairs)
    )
    head = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table class="facts">{head}<tbody>\n{rows}</tbody></table></div>'


def flatten(pairs: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """`{"model": {"name": "x"}}` -> `("model.name", "x")`; empty mappings are kept as they are."""
    for name, value in pairs.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def say(value: Any) -> str:
    """A value for a reader: text as it is, None as a dash, anything else as JSON."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def table(one: Table, style: str = "numbers") -> str:
    """A table of numbers with its caption, column and row headings."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in one.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for first, *cells in one.rows
    )
    label = escape(one.caption, quote=True)
    return (
        f'<div class="scroll tall" role="region" tabindex="0" aria-label="{label}"><table class="{style}">'
        f"<caption>{escape(one.caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>"
    )


def figure(drawn: go.Figure, key: str, name: str, words: str) -> str:
    """A figure with its description and the numbers behind it."""
    numbers = "\n".join(table(one) for one in tables(drawn))
    raw = json.loads(drawn.to_json() or "{}")
    ours = has_our_template(drawn)
    if ours:
        raw["layout"].pop("template", None)
    height = drawn.layout.height or 450  # type: ignore[union-attr]
    label = escape(words or f"Figure {name}", quote=True)
    return f"""<figure>
<div class="scroll" role="region" tabindex="0" aria-label="{escape(name, quote=True)}, plot">
<div class="plot" role="img" aria-label="{label}" data-figure="figure-{key}" style="height:{height}px">
</div>
</div>
<figcaption>{escape(words)}</figcaption>
<details><summary>View as table</summary>
{numbers}
</details>
<script type="application/json" id="figure-{key}">{in_script({"figure": raw, "ours": ours})}</script>
</figure>"""


def code(text: str) -> str:
    """A block of code."""
    return f"<pre><code>{escape(text)}</code></pre>"


def paragraphs(text: str) -> str:
    """Plain text; an empty line starts a new paragraph."""
    return "\n".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def contents(entries: Sequence[tuple[str, str]]) -> str:
    """Links to the sections of the page: (id, heading)."""
    items = "".join(f'<li><a href="#{key}">{escape(heading)}</a></li>' for key, heading in entries)
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>'
