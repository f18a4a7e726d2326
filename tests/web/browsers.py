"""A real Chromium, and how somebody new comes in with it."""

import re

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


ENGLISH = r"""() => {
    const sentence = /[A-Za-z][A-Za-z'’]+(?:[ ,;:-]+[A-Za-z'’]{2,}){2,}/g, found = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const { parentElement: parent, textContent } = walker.currentNode;
        const skipped = parent.closest("script, style, code, pre, kbd, noscript, .plain");
        if (skipped || !parent.checkVisibility({ visibilityProperty: true })) continue;
        (textContent.replace(/--[\w-]+|[^\s]*\/[^\s]*/g, "").match(sentence) ?? []).forEach((one) => found.add(one));
    }
    for (const name of ["aria-label", "title", "placeholder", "alt"])
        for (const one of document.querySelectorAll(`[${name}]`))
            (one.getAttribute(name).match(sentence) ?? []).forEach((text) => found.add(text));
    return [...found];
}"""
"""What a reader of Chinese cannot read: three words of English in a row, in what is seen and in what names it. Code is
code, in every language; so are options, paths, and the hashes of a record (.plain)."""
NOT_SENTENCES = re.compile(r"log pi|beta log|wukong \w+|loss and valid|Gao et al")
"""Formulas, commands, references."""


def english_in(page: Page) -> list[str]:
    """English sentences that are seen on a page."""
    return [text for text in page.evaluate(ENGLISH) if not NOT_SENTENCES.search(text)]


def too_wide(page: Page) -> list[str]:
    """The elements by which a page is wider than its window."""
    return page.evaluate("""() => {
        const width = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= width) return [];
        const right = (one) => one.getBoundingClientRect().right;
        const wide = [...document.querySelectorAll("body *")].filter((one) => right(one) > width + 1);
        return wide.slice(0, 5).map((one) => `${one.tagName}.${one.className}`);
    }""")


def complaints_of(page: Page) -> list[str]:
    """Filled with what the browser says of a page: errors of scripts, of loading, of the content security policy."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    return said
