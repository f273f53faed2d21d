"""The Steer page and the tray in Chromium, with a tiny model: make, save, find, compare, steer, delete."""

from __future__ import annotations

import re

import pytest
import steer_app
from test_browser import CHROMIUM, FIGURE, check, chromium, opened, served  # noqa: F401

from workbench.directions import library

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: install Debian's `chromium`"),
]
tray_folder = pytest.fixture(autouse=True)(steer_app.tray_of_its_own)
model = pytest.fixture(scope="module")(steer_app.tiny_llama)


@pytest.fixture
def app(tmp_path, model):
    with served(tmp_path / "runs", lambda _spec: model) as running:
        yield running


@pytest.fixture
def page(chromium, app):  # noqa: F811
    made = opened(chromium, app)
    yield made
    made.context.close()
    check(app)


def fill(page) -> None:
    page.get_by_label("Prompts, one per line", exact=True).fill("Mary and John went to\nthe capital of")
    page.get_by_label("Positive prompts").fill("\n".join(steer_app.SPEC["positive"]))
    page.get_by_label("Negative prompts").fill("\n".join(steer_app.SPEC["negative"]))
    page.get_by_label("New tokens").fill("4")
    page.get_by_role("slider", name="Layer").press("Home")
    page.get_by_role("slider", name="Layer").press("ArrowRight")
    page.get_by_text("Layer 1", exact=True).wait_for()


def test_a_direction_is_made_seen_saved_found_again_and_deleted(app, page, model):
    page.goto(f"{app.url}/steer")
    page.get_by_role("heading", name="Steer", exact=True).wait_for()
    fill(page)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_url(re.compile(r"/steer\?run="))
    page.get_by_role("heading", name="Continuations").wait_for()
    assert page.locator(".steer-texts").count() == 2
    assert page.locator(".steer-texts").first.locator("tbody tr").count() == 5  # four strengths and 0
    assert "n = 2 prompts" in page.locator(".headline").inner_text()

    page.get_by_label("Name in the tray").fill("made here")
    page.get_by_role("button", name="Save direction").click()
    page.get_by_role("alert").filter(has_text="'made here' is in the tray").first.wait_for()

    page.get_by_label("Score: logit of").fill("Mary")
    page.get_by_label("minus logit of").fill("John")
    page.get_by_label("Random directions").fill("1")
    page.get_by_role("button", name="Dose-response").click()
    page.get_by_text("the mean score moves by").wait_for()
    page.locator(FIGURE).nth(1).wait_for()

    library().save("another", steer_app.direction(1, fingerprint=model.fingerprint))
    library().save("foreign", steer_app.direction(2, fingerprint="of another model"))
    page.get_by_role("button", name="Directions").click()
    page.get_by_text("3 of 3 directions").wait_for()
    assert page.locator(".tray-row").filter(has_text="another model").count() == 1
    for name in ("made here", "another"):
        page.get_by_role("checkbox", name=name, exact=True).check()
    page.get_by_role("button", name="Cosines").click()
    page.locator(f"#tray-figures {FIGURE}").first.wait_for()
    page.get_by_role("checkbox", name="another", exact=True).uncheck()
    page.get_by_role("button", name="Tokens").click()
    page.locator(f"#tray-figures {FIGURE}").nth(2).wait_for()

    page.get_by_role("button", name="More for another").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("2 of 2 directions").wait_for()
    assert library().names() == ["foreign", "made here"]

    page.get_by_role("link", name="Steer with foreign").click()
    page.wait_for_url(re.compile(r"/steer\?direction=foreign"))
    page.get_by_text("refused unless Force is on").wait_for()
    page.get_by_role("textbox", name="in units of").click()
    page.get_by_role("option", name="activations").click()
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").filter(has_text="fingerprint").first.wait_for()
    page.get_by_role("switch", name="Force (accept").check()
    page.get_by_text("applied all the same").wait_for()
    page.get_by_role("button", name="Generate").click()
    page.wait_for_url(re.compile(r"/steer\?run="))
    page.get_by_text(re.compile("test at blocks.1.hook_resid_post")).wait_for()


def test_the_tray_is_reached_and_left_by_keyboard_and_every_input_has_a_name(app, page):
    library().save("mine", steer_app.direction(0))
    page.goto(f"{app.url}/lens")
    page.get_by_role("heading", name="Prompt & Lens").wait_for()
    page.wait_for_load_state("networkidle")
    page.get_by_role("button", name="Directions").focus()
    page.keyboard.press("Enter")
    page.get_by_role("checkbox", name="mine").wait_for()
    page.get_by_role("button", name="More for mine").focus()
    page.keyboard.press("Enter")
    page.get_by_role("menuitem", name="Rename").press("Enter")
    page.get_by_label("New name").fill("yours")
    page.get_by_role("button", name="Rename").press("Enter")
    page.get_by_role("checkbox", name="yours").wait_for()
    for path in ("/steer", "/steer?direction=yours"):
        page.goto(app.url + path)
        page.get_by_role("heading", name="Steer", exact=True).wait_for()
        page.get_by_role("button", name="Directions").click()
        page.get_by_role("checkbox", name="yours").wait_for()
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll('input:not([type=hidden], [type=file]), textarea, button, a, [role=slider]')]
                .filter(e => e.offsetParent && !(e.labels && e.labels.length) && !e.ariaLabel && !e.innerText.trim()
                             && !e.getAttribute('aria-labelledby') && !e.closest('[aria-hidden=true], .modebar'))
                .map(e => e.outerHTML.slice(0, 160))"""
        )
        assert unnamed == []
        small = page.evaluate(
            """() => [...document.querySelectorAll('#content button, #content a, .tray-row button, .tray-row a')]
                .filter(e => e.offsetParent && e.tabIndex >= 0 && e.getBoundingClientRect().height < 24)
                .map(e => e.outerHTML.slice(0, 160))"""
        )
        assert small == []
        with page.expect_file_chooser():
            page.get_by_role("button", name="Import file").press("Enter")
        page.keyboard.press("Escape")
        page.get_by_role("checkbox", name="yours").wait_for(state="hidden")
