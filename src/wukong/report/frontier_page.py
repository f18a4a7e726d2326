"""The page of `wukong frontier`, from its frontier.json."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from wukong.errors import Text
from wukong.report import figures
from wukong.report.charts import Charts
from wukong.report.page import fill


def render_frontier(report: Mapping[str, Any]) -> str:
    """The page as self-contained HTML.

    Args:
        report: the content of frontier.json.
    """
    charts, gold = Charts(), Text("gain in gold ({gold})", gold=escape(report["gold"]))
    curves = report["curves"]
    content = {
        "title": Text("Gold and proxy reward over KL to the reference"),
        "report": report,
        "gold": charts.add(figures.frontier(curves, "gold", gold)),
        "proxy": charts.add(figures.frontier(curves, "proxy", Text("gain in proxy"))),
    }
    return fill("frontier.html.jinja", content, charts)
