"""The dashboard in Chromium: whole flows with a tiny model, and one with the real one.

Nothing may be asked of another host, and nothing may go wrong on the console, in any of them.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import tiny

from dashboards import ids
from dashboards.app import create_app
from dashboards.components import notify
from dashboards.figures import theme
from dashboards.server import make_server
from workbench.jobs import JobWorker
from workbench.lens.spec import LensSpec
from workbench.model.language_model import LanguageModel
from workbench.patching.specs.sweep import PatchSpec
from workbench.progress import Preview, preview
from workbench.runs import list_runs

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: install Debian's `chromium`"),
]
PROMPT = "Mary and John went to the store and John gave a drink to"
FIGURE = ".js-plotly-plot .main-svg"


class Slow(LensSpec):
    """A lens run of many short steps that never gets far."""

    def run(self, model, progress):
        progress.stage("count slowly", 10_000)
        for _ in range(10_000):
            time.sleep(0.02)
            progress.advance()
        raise AssertionError("nobody cancelled")


class SlowPatch(PatchSpec):
    """A sweep that shows two of four columns, for as long as it runs."""

    def run(self, model, progress):
        grid = np.full((3, 4), np.nan)
        grid[:, 2:] = np.arange(6).reshape(3, 2)
        progress.stage("sweep slowly", 10_000)
        for _ in range(10_000):
            preview(progress, Preview("resid_pre, pair 1 of 1", grid, "layer", "position"))
            time.sleep(0.02)
            progress.advance()
        raise AssertionError("nobody cancelled")


@dataclass
class Served:
    """An app that answers on a port, and what the browser said of it."""

    url: str
    worker: JobWorker
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def runs(self, kind: str) -> list[str]:
        return [info.id for info in list_runs(self.worker.runs) if info.kind == kind]


@contextmanager
def served(folder, load) -> Iterator[Served]:
    worker = JobWorker(folder, load=load)
    server = make_server(create_app(worker=worker), port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.effective_port}", worker)
    finally:
        worker.close()
        server.close()
        thread.join(5)


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    model = LanguageModel(tiny.hf_model("llama"), tiny.tokenizer(), name="tiny-llama")
    with served(tmp_path_factory.mktemp("runs"), lambda _spec: model) as running:
        yield running


def opened(chromium, app: Served, *, scheme="light"):
    """A page of a fresh browser profile that keeps account of requests and of what goes wrong."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(20_000)
    page = context.new_page()
    app.problems, app.requests = [], []
    page.on("console", lambda m: app.problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: app.problems.append(str(error)))
    page.on("request", lambda request: app.requests.append(request.url))
    return page


def check(app: Served) -> None:
    assert app.problems == []
    foreign = [u for u in app.requests if not u.startswith((app.url, "data:", "blob:"))]
    assert foreign == []
    assert app.requests


@pytest.fixture
def page(chromium, app):
    made = opened(chromium, app)
    yield made
    made.context.close()
    check(app)


@pytest.fixture(scope="module")
def lens_run(app) -> str:
    """A finished lens run with three layers and thirteen positions."""
    job = app.worker.wait(app.worker.submit(LensSpec(prompt=PROMPT, target=" Mary")).id, 60)
    assert job.state == "finished", job.error
    return job.run_id


def background(page) -> str:
    """Background of the first figure."""
    return page.eval_on_selector(FIGURE, "e => getComputedStyle(e).background")


def rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))


def click_cell(page, layer: str, column: int) -> None:
    """Click the middle of a cell of the first heatmap."""
    box = page.evaluate(
        """([layer, column]) => {
            const plot = document.querySelector('.js-plotly-plot'), full = plot._fullLayout;
            const rect = plot.getBoundingClientRect();
            return [rect.x + full.xaxis._offset + full.xaxis.d2p(full.xaxis._categories[column]),
                    rect.y + full.yaxis._offset + full.yaxis.d2p(layer)];
        }""",
        [layer, column],
    )
    page.mouse.move(box[0] - 2, box[1])
    page.mouse.move(*box)
    page.locator(".hoverlayer .hovertext").first.wait_for()  # plotly clicks on what it hovers over
    page.mouse.click(*box)


def test_first_load_is_light_and_the_start_page_runs_an_example(app, page):
    began = time.monotonic()
    page.goto(app.url)
    page.get_by_role("heading", name="Start").wait_for()
    assert time.monotonic() - began < 10
    page.wait_for_load_state("networkidle")
    assert len(app.requests) <= 25
    assert page.locator("html").get_attribute("lang") == "en"
    page.get_by_role("button", name="Run: When is the answer known?").click()
    page.wait_for_url(re.compile(r"/lens\?run="))
    page.locator(FIGURE).first.wait_for()
    assert page.get_by_label("Prompt", exact=True).input_value().startswith("When Mary and John")


def test_a_prompt_becomes_a_grid_and_a_click_on_a_cell_its_tokens(app, page):
    page.goto(f"{app.url}/lens")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Target (optional)").fill(" Mary")
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_url(re.compile(r"\?run="))
    page.locator(FIGURE).first.wait_for()
    assert page.get_by_role("heading", name="Layer 2, position 12").is_visible()
    assert (
        "' Mary'" in page.locator(".headline").inner_text()
        or "'Mary'" in page.locator(".headline").inner_text()
    )
    assert page.locator(".modebar-btn").count() > 0
    assert page.locator(".modebar-btn[data-title*='hare']").count() == 0  # nothing offers an upload
    page.locator(".grid-and-aside").scroll_into_view_if_needed()
    click_cell(page, "1", 4)
    page.get_by_role("heading", name="Layer 1, position 4").wait_for()
    assert page.locator("#lens-cell tbody tr").count() >= 10
    assert (
        page.get_by_role("figure").first.get_attribute("aria-label").startswith("Heatmap of 3 layers by 13")
    )


@pytest.mark.parametrize(
    ("prompt", "target", "says"),
    [("   ", " Mary", "The prompt is empty"), (PROMPT, " Mary John", "token")],
    ids=["found by the form", "found by the run"],
)
def test_bad_input_is_said_in_red_and_nothing_is_written(app, page, prompt, target, says):
    before = app.runs("lens")
    page.goto(f"{app.url}/lens")
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Target (optional)").fill(target)
    page.get_by_role("button", name="Run", exact=True).click()
    note = page.get_by_role("alert").filter(has_text=says).first
    note.wait_for()
    assert app.runs("lens") == before
    page.wait_for_timeout(600)
    assert note.is_visible()


def test_what_is_sent_twice_about_one_job_is_one_note(app, page):
    page.goto(f"{app.url}/lens")
    page.get_by_label("Prompt", exact=True).wait_for()
    send = f"note => dash_clientside.set_props('{ids.NOTIFICATIONS}', {{sendNotifications: [note]}})"
    for about in ("job-1", "job-1", "job-2"):
        page.evaluate(send, notify.error("It was refused.", about=about))
        page.wait_for_timeout(300)
    assert page.get_by_role("alert").filter(has_text="It was refused.").count() == 2


def test_a_pair_of_prompts_of_one_length_becomes_grids(app, page):
    page.goto(f"{app.url}/patch")
    page.get_by_label("Clean prompt").fill(PROMPT)
    page.get_by_label("Corrupt prompt").fill(PROMPT + " Mary")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("alert").filter(has_text=re.compile("13 tokens.*14")).first.wait_for()
    page.get_by_label("Corrupt prompt").fill(PROMPT.replace("John gave", "Mary gave"))
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_url(re.compile(r"/patch\?run="))
    page.locator(FIGURE).nth(1).wait_for()
    assert page.locator(".headline").inner_text().startswith("Strongest: layer ")
    assert page.locator(".token-differs").count() == 2
    page.reload()
    page.locator(FIGURE).first.wait_for()
    assert page.get_by_label("Clean prompt").input_value() == PROMPT


def test_probes_at_sites_that_exist_become_curves_and_a_table(app, page):
    page.goto(f"{app.url}/probes")
    page.get_by_label("Examples", exact=True).fill("40")
    page.get_by_label("Folds").fill("2")
    sites = page.get_by_role("textbox", name="Sites")
    sites.fill("blocks.1.hook_resid_pots")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("alert").filter(has_text="hook_resid_post").first.wait_for()
    sites.fill("blocks.*.hook_resid_post")
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_url(re.compile(r"/probes\?run="))
    page.locator(FIGURE).nth(1).wait_for()
    assert page.locator(".tall tbody tr").count() == 3 * 2
    assert "shuffled labels" in page.locator(".headline").inner_text()


def test_the_table_of_runs_opens_a_report(app, page, lens_run):
    page.goto(f"{app.url}/runs")
    page.get_by_label("Text in title, model or id").fill(lens_run)
    page.get_by_text(re.compile(r"^1 of \d+ runs$")).wait_for()
    page.locator(".run-link").first.click()
    page.wait_for_url(f"**/runs/{lens_run}")
    page.locator(FIGURE).first.wait_for()
    page.get_by_role("tab", name="Spec").click()
    assert PROMPT in page.get_by_label("spec", exact=True).inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="Spec", exact=True).click()
    assert download.value.suggested_filename == f"{lens_run}-spec.yaml"
    page.go_back()
    page.locator(".ag-row").first.wait_for()
    page.locator(".ag-row .ag-cell[col-id=kind]").first.click()
    page.wait_for_url("**/runs/*")
    assert "/runs/" in page.url


def test_a_running_job_survives_a_reload_and_stops_within_a_second(app, page):
    job = app.worker.submit(Slow(prompt="slow"))
    page.goto(f"{app.url}/lens")
    panel = page.get_by_role("status").filter(has_text="count slowly")
    panel.wait_for()
    page.reload()
    panel.wait_for()
    page.get_by_role("button", name="Jobs").click()
    row = page.locator(".job-row").filter(has_text="slow").first
    first = row.get_by_text(re.compile(r"count slowly · \d+ of")).inner_text()
    page.wait_for_timeout(1000)
    assert row.get_by_text(re.compile(r"count slowly · \d+ of")).inner_text() != first
    row.get_by_role("button", name=f"Cancel {job.id}").click()
    began = time.monotonic()
    app.worker.wait(job.id, 5)
    assert time.monotonic() - began < 1
    row.get_by_text(re.compile("cancelled after")).wait_for()
    page.keyboard.press("Escape")
    panel.wait_for(state="hidden")
    assert job.state == "cancelled"


def test_the_cells_of_a_running_sweep_are_painted_and_go_when_it_is_stopped(app, page):
    job = app.worker.submit(SlowPatch(clean=PROMPT, corrupt=PROMPT, answer="Mary", wrong="John"))
    page.goto(f"{app.url}/patch")
    painted = page.locator("#patch-preview")
    painted.locator(FIGURE).first.wait_for()
    assert "6 of 12 cells" in painted.inner_text()
    app.worker.cancel(job.id)
    painted.locator(FIGURE).first.wait_for(state="detached")


def test_the_next_question_can_be_typed_while_a_job_runs(app, page):
    job = app.worker.submit(Slow(prompt="slow"))
    page.goto(f"{app.url}/lens")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("waiting for its turn").first.wait_for()
    page.get_by_label("Prompt", exact=True).fill("two plus two")
    app.worker.cancel(job.id)
    page.wait_for_url(re.compile(r"\?run="))
    page.locator(FIGURE).first.wait_for()
    assert page.get_by_label("Prompt", exact=True).input_value() == "two plus two"


def test_dark_and_light_change_page_figures_and_table_together(app, page, lens_run):
    page.goto(f"{app.url}/lens?run={lens_run}")
    page.locator(FIGURE).first.wait_for()
    assert rgb(theme.TOKENS["light"].background) in background(page)
    page.get_by_role("button", name="Switch between light and dark").click()
    dark = rgb(theme.TOKENS["dark"].background)
    page.wait_for_function(
        "c => getComputedStyle(document.querySelector('.js-plotly-plot .main-svg')).background.includes(c)",
        arg=dark,
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    page.get_by_role("link", name="Runs", exact=True).click()
    page.locator(".ag-row").first.wait_for()
    assert page.eval_on_selector(".ag-root-wrapper", "e => getComputedStyle(e).backgroundColor") == dark
    page.goto(f"{app.url}/runs/{lens_run}")
    page.locator(FIGURE).first.wait_for()
    assert dark in background(page)  # from the first drawing on, not only after the click


def test_links_and_the_back_button_go_through_runs_and_pages(app, page, lens_run):
    pair = {
        "clean": PROMPT,
        "corrupt": PROMPT.replace("John gave", "Mary gave"),
        "answer": " Mary",
        "wrong": " John",
    }
    patched = app.worker.wait(app.worker.submit(PatchSpec(**pair)).id, 60)
    page.goto(f"{app.url}/lens?run={lens_run}")
    page.locator(FIGURE).first.wait_for()
    page.get_by_role("button", name="Jobs").click()
    page.locator(".job-row").first.get_by_role("link", name="Open").click()
    page.wait_for_url(f"**/patch?run={patched.run_id}")
    page.get_by_text("Strongest: layer").wait_for()
    assert page.get_by_role("alert").count() == 0  # the page that was left was not asked for this run
    page.go_back()
    page.get_by_role("heading", name="Layer 2, position 12").wait_for()
    assert page.url.endswith(f"/lens?run={lens_run}")
    assert page.title() == "Prompt & Lens · Latent Workbench"


def test_slash_goes_to_the_prompt_which_is_kept_and_ctrl_enter_runs_it(app, page):
    page.goto(f"{app.url}/lens")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.wait_for()
    page.locator("h1").click()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "lens-prompt"
    prompt.fill("Anna and Tom")
    page.get_by_role("link", name="Patch").click()
    page.get_by_label("Clean prompt").wait_for()
    page.get_by_role("link", name="Prompt & Lens").click()
    prompt.wait_for()
    assert prompt.input_value() == "Anna and Tom"
    prompt.fill(PROMPT)
    page.keyboard.press("Control+Enter")
    page.wait_for_url(re.compile(r"\?run="))


def test_every_input_has_a_label_and_every_target_its_size(app, page, lens_run):
    for path in ("/", "/lens", "/patch", "/probes", "/runs", f"/runs/{lens_run}"):
        page.goto(app.url + path)
        page.locator("h1").wait_for()
        page.wait_for_load_state("networkidle")
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll('input:not([type=hidden]), textarea, button, a')]
                .filter(e => e.offsetParent && !(e.labels && e.labels.length) && !e.ariaLabel && !e.innerText.trim()
                             && !e.getAttribute('aria-labelledby') && !e.closest('[aria-hidden=true], .modebar'))
                .map(e => e.outerHTML.slice(0, 160))"""
        )
        assert unnamed == [], path
        small = page.evaluate(
            """() => [...document.querySelectorAll('#content button, #content a, header button, nav a')]
                .filter(e => e.offsetParent && e.getBoundingClientRect().height < 24
                             && !e.closest('.modebar, .ag-root-wrapper, [aria-hidden=true], [tabindex="-1"]'))
                .map(e => e.outerHTML.slice(0, 160))"""
        )
        assert small == [], path


@pytest.mark.real_model
def test_the_real_model_says_mary(chromium, tmp_path, smollm2):
    with served(tmp_path / "runs", lambda _spec: smollm2) as app:
        page = opened(chromium, app, scheme="dark")
        page.goto(f"{app.url}/lens")
        page.get_by_role("button", name="Run", exact=True).click()
        page.wait_for_url(re.compile(r"\?run="), timeout=60_000)
        page.locator(FIGURE).first.wait_for()
        assert (
            page.locator(".headline")
            .inner_text()
            .startswith("' Mary' becomes and stays top-1 at position 13 from layer 29 of 0–29 on")
        )
        page.context.close()
        check(app)
