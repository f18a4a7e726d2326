"""A real Chromium, and how somebody new comes in with it."""

from playwright.sync_api import Browser, Page, expect

PATIENCE = 120_000  # milliseconds: the machine may be busy with other things


def newcomer(chromium: Browser, link: str, name: str, **options) -> Page:
    """A fresh browser of somebody who accepts an invitation."""
    page = chromium.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE)
    page.add_init_script("window.failed = []; addEventListener('error', e => window.failed.push(e.message))")
    page.goto(link)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Projects")).to_be_visible(timeout=PATIENCE)
    return page
