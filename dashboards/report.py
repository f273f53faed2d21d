"""Reports: a result as one HTML file that opens anywhere and asks no other host for anything.

    write_report(folder, result, spec, figures)     `report.html` of a run
    write_collection(path, sections)                several results in one file

A report says what was asked, what came out (numbers, figures, the same as tables and in words), what it was
compared with, what made it, and how to make it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dashboards import report_page as page
from dashboards.figures import KINDS, control_statement, describe
from dashboards.figures import figures as make_figures
from dashboards.figures.tables import Table
from workbench.files import publish_file

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.results import Result

Section = tuple[str, str, "Result", Mapping[str, Any]]
"""Heading, text, result and spec of one part of a collection."""

NAMES = {
    "logit_lens": "Logit lens",
    "patching_sweep": "Patching sweep",
    "probe_sweep": "Probe sweep",
    "dose_response": "Steering dose–response",
    "attribution": "Attribution patching",
    "edge_attribution": "Edge attribution",
    "path_patching": "Path patching",
    "knockout": "Attention knock-out",
    "back_patching": "Back-patching",
    "all_for_one": "All-for-one subgraph",
    "all_for_one_search": "All-for-one subgraph: search",
    "das": "Distributed alignment search",
    "causal_mediation": "Causal mediation",
    "circuit": "Circuit: faithfulness and completeness",
    "neuron_importance": "Comparative neuron analysis",
    "probe_numbers": "Probes of numbers",
    "probe_sparse": "Sparse probes beside the dense one",
    "probe_erasure": "Concept erasure",
    "probe_apply": "Saved probe on new texts",
    "probe_mil": "True, false or neither: multiple-instance probes",
    "probe_periodic": "Periodic codes of numbers",
    "probe_periodic_patch": "Periodic codes: causal patch",
    "probe_spectrum": "Fourier spectrum of numbers",
    "probe_regression": "Helix and its baselines",
    "probe_causal": "Causal check of a probe",
    "probe_board": "Probes of a board",
    "latent_saliency": "Latent saliency map",
    "probe_trust": "Probe beside every control",
    "probe_transfer": "Transfer of probes",
    "probe_undefined": "Probes where no label is right",
    "probe_permutation": "Permutation test of probes",
    "probe_text_baselines": "What the text alone says",
    "direction_cosines": "Cosines of directions",
    "direction_tokens": "Tokens of a direction",
    "direction_angles": "Angles between subspaces",
    "direction_make": "Directions by site",
    "steered_texts": "Steered texts",
    "steering_methods": "Steering methods",
    "z_steer": "Vectors that write sentences",
}
N_TEXTS = 5
"""Of so many prompts the generated texts are shown; the page says how many there are."""


def write_report(
    folder: Path, result: Result, spec: Mapping[str, Any], figures: Mapping[str, go.Figure]
) -> Path:
    """Write `report.html` into a run folder.

    Args:
        folder: the run folder, which exists.
        result: what came out.
        spec: what was asked, as plain data; an `id` in it is the run's.
        figures: figures to show, by name, the main one first.

    Returns:
        The path of the file.

    Raises:
        WorkbenchError: the file cannot be written.

    Example:
        >>> write_report(run.path, run.result, {"id": run.id, **run.spec.to_dict()}, run.result.figures())
    """
    title = title_of(result, spec)
    head = f"<h1>{page.escape(title)}</h1>\n<p class='muted'>{page.escape(_line_of(result, spec))}</p>"
    body = [
        head,
        "<h2>What was asked</h2>",
        page.facts(_asked(spec)),
        "<h2>Summary</h2>",
        page.facts(result.summary),
        "<h2>Figures</h2>",
        _figures(result, figures, "1", 3),
        "<h2>Control</h2>",
        page.paragraphs(_control(result)),
        "<h2>Provenance</h2>",
        _provenance(result),
        "<h2>How to reproduce</h2>",
        _reproduce(spec),
    ]
    return _write(Path(folder) / "report.html", page.page(title, "\n".join(body)))


def write_collection(
    path: str | Path, sections: Sequence[Section], *, title: str = "Latent Workbench report"
) -> Path:
    """Write several results into one HTML file.

    Args:
        path: the file; parents are made as needed and an existing file is replaced.
        sections: (heading, text, result, spec) of each part, in order. The text is plain; an empty line
            starts a new paragraph.
        title: heading of the page.

    Returns:
        The path of the file.

    Raises:
        RunError: a result of a kind that has no figures.
        WorkbenchError: the file cannot be written.
    """
    models = dict.fromkeys(str(result.provenance.model.get("name", "")) for _, _, result, _ in sections)
    parts = f"{len(sections)} part{'' if len(sections) == 1 else 's'}"
    line = " · ".join([part for part in (parts, *models) if part])
    body = [f"<h1>{page.escape(title)}</h1>", f"<p class='muted'>{page.escape(line)}</p>"]
    body.append(page.contents([(f"part-{i}", heading) for i, (heading, *_) in enumerate(sections, 1)]))
    for i, (heading, text, result, spec) in enumerate(sections, 1):
        body += [
            f'<section aria-labelledby="part-{i}">',
            f'<h2 id="part-{i}">{page.escape(heading)}</h2>',
            page.paragraphs(text),
            _figures(result, make_figures(result), str(i), 3),
            "<h3>Control</h3>",
            page.paragraphs(_control(result)),
            "<h3>Summary</h3>",
            page.facts(result.summary),
            "<h3>What was asked, and what made it</h3>",
            f"<details><summary>Spec</summary>\n{page.facts(_asked(spec))}</details>",
            f"<details><summary>Provenance</summary>\n{_provenance(result)}</details>",
            f"<details><summary>How to reproduce</summary>\n{_reproduce(spec)}</details>",
            "</section>",
        ]
    return _write(Path(path), page.page(title, "\n".join(body)))


def title_of(result: Result, spec: Mapping[str, Any]) -> str:
    """`Logit lens: When Mary and John went to the store, …`."""
    name = NAMES.get(result.kind, result.kind.replace("_", " ").capitalize())
    for key in ("prompt", "clean", "dataset", "prompts"):
        subject = spec.get(key)
        if isinstance(subject, list) and subject:
            subject = subject[-1].get("content") if isinstance(subject[-1], Mapping) else subject[0]
        if isinstance(subject, str) and subject.strip():
            short = " ".join(subject.split())
            return f"{name}: {short if len(short) <= 90 else short[:89] + '…'}"
    return name


def _line_of(result: Result, spec: Mapping[str, Any]) -> str:
    made = result.provenance
    seconds = sum(made.seconds.values())
    parts = [
        str(made.model.get("name", "")),
        f"run {spec['id']}" if spec.get("id") else "",
        made.created,
        f"{seconds:.1f} seconds" if made.seconds else "",
    ]
    return " · ".join(part for part in parts if part)


def _asked(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name != "id"}


def _control(result: Result) -> str:
    if result.kind in KINDS:
        return control_statement(result)
    control = result.data.attrs.get("control")
    return f"Control: {control}." if control else "This result names no control."


def _figures(result: Result, figures: Mapping[str, go.Figure], key: str, level: int) -> str:
    words = describe(result)
    parts = []
    for name, drawn in figures.items():
        title = _title(drawn) or name
        parts.append(f'<h{level} class="unseen">{page.escape(title)}</h{level}>')
        parts.append(page.figure(drawn, f"{key}-{name}", name, words.get(name, "")))
    if "text" in result.data and "direction" in result.data.dims:
        parts.append(_texts(result, level))
    return "\n".join(parts) or "<p>There are no figures for this kind of result.</p>"


def _title(drawn: go.Figure) -> str:
    from html import unescape

    return unescape(drawn.layout.title.text or "")  # type: ignore[union-attr]


def _texts(result: Result, level: int) -> str:
    """Generated texts of a steering result, per prompt: strengths down, directions across."""
    data = result.data
    n = data.sizes.get("prompt", 1)
    shown = min(n, N_TEXTS)
    note = f" The first {shown} of {n} prompts; the result holds all." if n > shown else ""
    directions = [str(name) for name in data["direction"].values]
    parts = [f"<h{level}>Generated texts</h{level}>", f"<p>What the model writes at each strength.{note}</p>"]
    for i in range(shown):
        one = data.isel(prompt=i)
        prompt = str(one["prompt_text"].values) if "prompt_text" in one else f"prompt {i}"
        rows = tuple(
            (f"{float(s):g}", *(str(one["text"].sel(direction=d, strength=s).values) for d in directions))
            for s in data["strength"].values
        )
        texts = page.table(Table(f"After: {prompt}", ("strength", *directions), rows), "texts")
        is_open = " open" if i == 0 else ""
        parts.append(f"<details{is_open}><summary>{page.escape(prompt)}</summary>\n{texts}</details>")
    return "\n".join(parts)


def _provenance(result: Result) -> str:
    made = result.provenance
    rest = {
        "seed": made.seed,
        "created": made.created,
        "python": made.python,
        "processor": made.processor,
        "settings": made.settings,
    }
    return "\n".join(
        page.facts(pairs, caption)
        for caption, pairs in (
            ("Model", made.model),
            ("Inputs", made.inputs),
            ("Versions", made.versions),
            ("Seconds", made.seconds),
            ("Run", rest),
        )
        if pairs
    )


def _reproduce(spec: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(_asked(spec), sort_keys=False, allow_unicode=True, width=100)
    lines = ["import workbench as wb", "from workbench.specs import load_spec", ""]
    lines.append('run = wb.run_spec(load_spec("spec.yaml"))')
    if spec.get("id"):
        lines += ["", "# what this page was made from", f"result = wb.load_run({str(spec['id'])!r}).result"]
    return "\n".join(
        [
            "<p>Save as <code>spec.yaml</code> (a run folder has it already):</p>",
            page.code(text),
            "<p>In a terminal:</p>",
            page.code("workbench run spec.yaml"),
            "<p>In Python:</p>",
            page.code("\n".join(lines)),
        ]
    )


def _write(path: Path, text: str) -> Path:
    with publish_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
