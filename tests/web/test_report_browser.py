"""A report in a real Chromium: definitions under a finger, and its two languages."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browsers import complaints_of
from wukong.stages import report
from wukong.stages.report import ReportOptions

IN_VIEW = "e => { const at = e.getBoundingClientRect(); return at.top >= 0 && at.bottom <= innerHeight; }"


@pytest.fixture
def phone(chromium: Browser, older_run) -> Iterator[Page]:
    report.run(ReportOptions(run=older_run, out=older_run / "report.html"))
    page = chromium.new_context(viewport={"width": 360, "height": 740}, has_touch=True, offline=True).new_page()
    complaints = complaints_of(page)
    page.goto((older_run / "report.html").absolute().as_uri())
    yield page
    assert complaints == []
    page.context.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_tapped_definition_stays_until_it_is_left(phone: Page, language: str):
    if language == "zh":
        phone.locator("#switch").tap()
    tip = phone.locator("#tip")
    first, second = (phone.locator("abbr.term:visible").nth(i) for i in (0, 3))
    first.tap()
    phone.wait_for_timeout(500)
    expect(tip).to_be_visible()
    expect(tip).to_have_text(first.get_attribute("data-about") or "")
    assert tip.evaluate(IN_VIEW)
    second.tap()
    phone.wait_for_timeout(500)
    expect(tip).to_have_text(second.get_attribute("data-about") or "")
    phone.locator("h1").tap()
    expect(tip).to_be_hidden()


def test_a_definition_stays_beside_its_words_while_the_page_moves(phone: Page):
    """A tap that ends a fling, or comes while the page still scrolls to a section, moves the page under the finger."""
    term, tip = phone.locator("#pipeline abbr.term:visible").first, phone.locator("#tip")
    term.scroll_into_view_if_needed()
    phone.evaluate(
        "scrollTo({ top: scrollY + term0.getBoundingClientRect().top - 600, behavior: 'instant' })".replace(
            "term0", "document.querySelector('#pipeline abbr.term')"
        )
    )
    term.tap()
    phone.evaluate("scrollBy({ top: 300, behavior: 'smooth' })")
    phone.wait_for_timeout(1500)
    expect(tip).to_be_visible()
    below = tip.evaluate("e => e.getBoundingClientRect().top") - term.evaluate("e => e.getBoundingClientRect().bottom")
    assert 0 <= below < 20
    phone.evaluate("scrollBy({ top: 1500, behavior: 'instant' })")
    expect(tip).to_be_hidden()
