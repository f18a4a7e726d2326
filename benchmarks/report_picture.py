"""A picture of a run's report for the README, taken with Chromium.

python benchmarks/report_picture.py runs/kitchen --out docs/pictures/report.png
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run directory, such as runs/kitchen")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/report.png"))
    parser.add_argument("--height", type=int, default=1500, help="so many pixels from the top")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is needed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": given.height})
        page.goto((given.run / "report.html").resolve().as_uri())
        page.wait_for_selector("svg")
        page.screenshot(path=given.out, animations="disabled")
        browser.close()
    Image.open(given.out).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
