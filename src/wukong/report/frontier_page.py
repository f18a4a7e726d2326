"""The page of `wukong frontier`, from its frontier.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wukong.report import figures
from wukong.report.page import Charts, fill


def render_frontier(report: Mapping[str, Any]) -> str:
    """The page as self-contained HTML.

    Args:
        report: the content of frontier.json.
    """
    charts = Charts()
    curves = report["curves"]
    content = {
        "title": "Gold and proxy reward over KL to the reference",
        "report": report,
        "gold": charts.add(figures.frontier(curves, "gold", f"gain in gold ({report['gold']})")),
        "proxy": charts.add(figures.frontier(curves, "proxy", "gain in proxy")),
    }
    return fill("frontier.html.jinja", content, charts)
