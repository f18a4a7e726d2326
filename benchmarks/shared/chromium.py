"""Pictures of pages, taken with Chromium."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright


def find_chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        sys.exit("Chromium is needed")
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser, closed at the end of the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def shrink(picture: Path, colours: int) -> None:
    """Reduces a PNG to few colours, which makes it about a third of the size."""
    Image.open(picture).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(picture, optimize=True)
