"""A picture of a run's report for the README, taken with Chromium.

python benchmarks/studio/report_picture.py runs/kitchen --out docs/pictures/report.png
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.chromium import chromium, shrink
from shared.command_line import new_parser, run_argument


def main() -> None:
    parser = new_parser(__doc__)
    run_argument(parser)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/report.png"))
    parser.add_argument("--height", type=int, default=1500, help="so many pixels from the top")
    given = parser.parse_args()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": given.height})
        page.goto((given.run / "report.html").resolve().as_uri())
        page.wait_for_selector("svg")
        page.screenshot(path=given.out, animations="disabled")
    shrink(given.out, colours=96)


if __name__ == "__main__":
    main()
