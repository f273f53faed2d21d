"""Reports: one file that says everything, asks no host for anything and cannot be broken by what is in it."""

from __future__ import annotations

import json
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from fake_results import AWKWARD, lens, of_every_kind, patching, steering, where_from

from dashboards.figures import describe, figures
from dashboards.report import title_of, write_collection, write_report
from dashboards.report_page import in_script
from workbench.results import Result

SPEC = {
    "id": "20261122-014512-lens-3f2a",
    "kind": "lens",
    "model": {"name": "smollm2-135m", "dtype": "auto", "revision": None},
    "seed": 7,
    "prompt": "When Mary and John went to the store, John gave a drink to",
    "target": " Mary",
}


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, in order, and the text outside of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
        self._in: list[str] = []
        self._script = ""
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._in.append(tag)
            self._script = dict(attrs).get("id") or ""

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._in.pop()

    def handle_data(self, data):
        if not self._in:
            self.text += data
        elif self._in == ["script"] and self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def report(folder: Path, result: Result, spec: dict | None = None) -> Page:
    return Page(write_report(folder, result, spec or SPEC, figures(result)))


def sections():
    spec = {name: value for name, value in SPEC.items() if name != "id"}
    return [(f"Part {kind}", f"About {kind}.", made, spec) for kind, made in of_every_kind().items()]


def test_a_report_says_what_was_asked_what_came_out_and_what_made_it(tmp_path):
    page = report(tmp_path, lens())
    for fact in (
        "Logit lens: When Mary and John went to the store", "20261122-014512-lens-3f2a",
        "model.dtype", "When Mary and John", "depth", "24",
        "f1e2d3c4", "2.13.0", "Linux x86_64", "1.234", "2026-11-22T01:45:12+00:00",
        "median rank of 32 random tokens",
        "workbench run spec.yaml", "load_spec(\"spec.yaml\")", "wb.load_run('20261122-014512-lens-3f2a')",
    ):  # fmt: skip
        assert fact in page.text, fact
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html"]


def test_the_spec_in_the_report_can_be_run_again(tmp_path):
    import yaml

    from workbench.specs import parse_spec

    text = report(tmp_path, lens()).text
    yaml_text = text[text.index("kind: lens") : text.index("In a terminal")]
    assert parse_spec(yaml.safe_load(yaml_text)).to_dict() == parse_spec({**_without_id(SPEC)}).to_dict()


def _without_id(spec: dict) -> dict:
    return {name: value for name, value in spec.items() if name != "id"}


@pytest.mark.parametrize("result", of_every_kind().values(), ids=of_every_kind())
def test_every_figure_has_its_words_its_table_and_its_own_numbers(tmp_path, result):
    page = report(tmp_path, result)
    plots = [a for a in page.all("div") if "data-figure" in a]
    assert [a["aria-label"] for a in plots] == list(describe(result).values())
    for words in describe(result).values():
        assert words in page.text
    for plot, drawn in zip(plots, figures(result).values(), strict=True):
        sent = json.loads(page.scripts[plot["data-figure"] or ""])
        assert sent["ours"] and "template" not in sent["figure"]["layout"]
        assert sent["figure"]["data"] == json.loads(drawn.to_json())["data"]
    assert len(page.all("details")) >= len(plots) and page.text.count("View as table") == len(plots)
    assert "Control" in page.text


def test_plotly_is_in_a_report_and_in_a_collection_exactly_once(tmp_path):
    write_collection(tmp_path / "all.html", sections())
    for page in (report(tmp_path, lens()), Page(tmp_path / "all.html")):
        assert page.raw.count("plotly.js v") == 1
        assert len(page.raw) < 8_000_000


def test_nothing_in_a_page_points_outside_of_it(tmp_path):
    write_collection(tmp_path / "all.html", sections())
    for page in (report(tmp_path, steering(text=True)), Page(tmp_path / "all.html")):
        targets = [
            a[k] for _, a in page.elements for k in ("src", "href", "srcset", "action", "data") if a.get(k)
        ]
        assert [t for t in targets if not str(t).startswith(("#", "data:,"))] == []
        policy = next(a["content"] or "" for a in page.all("meta") if "http-equiv" in a)
        assert "default-src 'none'" in policy and "http" not in policy
        assert "@import" not in page.raw and "url(http" not in page.raw.split("<script>")[0]


def test_texts_cannot_become_markup(tmp_path):
    evil = "</script></title><script>alert(1)</script><img src=x onerror=alert(2)>"
    result = lens(awkward=True, tokens=[*AWKWARD, evil])
    result.data.attrs["target"] = evil
    result.summary[evil] = evil
    result.provenance.settings[evil] = {evil: evil}
    usual = report(tmp_path, lens())
    page = report(tmp_path, result, {**SPEC, "prompt": evil, evil: [evil]})
    assert len(page.all("script")) == len(usual.all("script")) and page.all("img") == []
    assert evil in page.text
    write_collection(tmp_path / "all.html", [(evil, evil, result, {evil: evil})], title=evil)
    assert len(Page(tmp_path / "all.html").all("script")) == len(usual.all("script"))
    assert not any("alert" in str(a) and "onerror" in a for _, a in page.elements)


def test_json_in_a_script_holds_nothing_that_ends_it_and_reads_back():
    value = {"a": "</script><!-- & \u2028 \u2029 é"}
    assert json.loads(in_script(value)) == value
    assert not set("<>&\u2028\u2029") & set(in_script(value))


def test_a_page_has_a_language_headings_in_order_and_scoped_table_headings(tmp_path):
    write_collection(tmp_path / "all.html", sections())
    for page in (report(tmp_path, lens()), Page(tmp_path / "all.html")):
        assert page.all("html")[0]["lang"] == "en"
        levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert page.all("th") and all(a.get("scope") in ("row", "col") for a in page.all("th"))
        ids = [a["id"] for _, a in page.elements if "id" in a]
        assert len(ids) == len(set(ids))
        assert {a["href"] for a in page.all("a")} <= {f"#{i}" for i in ids}


def test_a_collection_has_every_part_with_its_text_its_figures_and_its_control(tmp_path):
    path = write_collection(tmp_path / "new" / "demo.html", sections(), title="What the demo found")
    page = Page(path)
    assert path == tmp_path / "new" / "demo.html" and page.text.count("What the demo found") == 2
    for heading, text, result, _ in sections():
        assert heading in page.text and text in page.text
        for words in describe(result).values():
            assert words in page.text
    assert len([a for a in page.all("div") if "data-figure" in a]) == 8
    assert page.text.count("Provenance") == 4


def test_a_report_is_replaced_by_the_next_one(tmp_path):
    report(tmp_path, lens())
    assert "Patching sweep" in report(tmp_path, patching(), {"kind": "patch", "clean": "a"}).text


def test_generated_texts_stand_beside_the_random_direction_and_say_how_many_are_shown(tmp_path):
    page = report(tmp_path, steering(n_prompts=12, text=True))
    assert "The first 5 of 12 prompts" in page.text
    assert "<i>said</i> 0" in page.text and page.text.count("After: The film was") == 5


def test_a_kind_of_someone_else_is_reported_with_their_figures(tmp_path):
    data = xr.Dataset({"norm": ("layer", np.arange(3.0))}, attrs={"control": "shuffled"})
    result = Result("norms", data, where_from(), {"largest": 2})
    theirs = go.Figure(go.Bar(x=[0, 1], y=[1, 2]), layout={"template": "plotly_dark"})
    page = Page(write_report(tmp_path, result, {"kind": "norms"}, {"norm": theirs}))
    sent = json.loads(page.scripts["figure-1-norm"])
    assert not sent["ours"] and "template" in sent["figure"]["layout"]
    assert "Control: shuffled." in page.text and "no table for this type of plot" in page.text


@pytest.mark.parametrize(
    ("spec", "title"),
    [
        ({"prompt": "a\nb"}, "Logit lens: a b"),
        ({"prompt": [{"role": "user", "content": "hello"}]}, "Logit lens: hello"),
        ({"dataset": "capitals"}, "Logit lens: capitals"),
        ({"prompt": "x" * 200}, "Logit lens: " + "x" * 89 + "…"),
        ({}, "Logit lens"),
    ],
)
def test_the_title_is_the_analysis_and_its_subject(spec, title):
    assert title_of(lens(), spec) == title


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = Path("/usr/bin/chromium")
    if not path.exists():
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=str(path), args=arguments)
        yield browser
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opened_in_a_browser_it_draws_everything_and_asks_no_host(tmp_path, chromium, scheme):
    awkward = lens(awkward=True, tokens=AWKWARD)
    parts = [*sections(), ("Awkward", "Tokens that look like markup.", awkward, {"kind": "lens"})]
    path = write_collection(tmp_path / "all.html", parts)
    n = sum(len(figures(result)) for _, _, result, _ in parts)
    context = chromium.new_context(color_scheme=scheme)
    opened = context.new_page()
    requests, problems = [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(path.as_uri())
    assert opened.locator("[data-figure]").count() == n
    for i in range(n):
        opened.locator("[data-figure]").nth(i).locator("svg.main-svg .subplot").first.wait_for(
            state="attached"
        )
    opened.locator("summary").first.click()
    assert opened.locator("table.numbers").first.is_visible()
    assert requests == [path.as_uri()] and problems == []

    def backgrounds() -> list[str]:
        """Colours of the page and of its first figure."""
        return opened.evaluate(
            "[document.body, document.querySelector('.main-svg')].map(e => getComputedStyle(e).backgroundColor)"
        )

    before = backgrounds()
    assert len(set(before)) == 1
    opened.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    # The page's policy forbids what Playwright's `wait_for_function` does, hence a loop.
    deadline = time.monotonic() + 30
    while backgrounds()[1] == before[1] and time.monotonic() < deadline:
        opened.wait_for_timeout(100)
    assert len(set(backgrounds())) == 1 and backgrounds() != before
    assert problems == []
    context.close()


def test_no_figure_offers_to_upload_itself(tmp_path):
    path = write_report(tmp_path, lens(), SPEC, figures(lens()))
    assert 'showSendToCloud: false, plotlyServerURL: ""' in path.read_text(encoding="utf-8")
