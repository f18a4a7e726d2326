"""The page of `wukong reward-report`, from its report.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wukong.errors import Text
from wukong.report import figures
from wukong.report.charts import Charts
from wukong.report.page import fill

SLICES = {
    "source": (
        Text("Source"),
        Text("By data source. A source far below the others is a different task, or badly labelled."),
    ),
    "length": (
        Text("Length"),
        Text(
            "By how much longer the preferred answer is. A model that is right only where it is longer measures length."
        ),
    ),
    "strength": (
        Text("Strength of the preference"),
        Text("As given by annotators, or the difference in rank of two ranked answers. Clear cases should be easy."),
    ),
    "margin": (
        Text("The model's own margin"),
        Text("Quintiles by the difference of the two scores. Where the model is confident, it should be right."),
    ),
    "depth": (
        Text("Depth of the conversation"),
        Text("User turns before the answer. Long conversations may lose their beginning to the context limit."),
    ),
}
"""key in the report -> (heading, how to read it)."""


def render_reward(report: Mapping[str, Any]) -> str:
    """The page as self-contained HTML.

    Args:
        report: the content of report.json.
    """
    charts = Charts()
    people = report["agreement"]
    curve = report["learning_curve"]
    ceiling = people["ceiling"][1] if people else None
    content = {
        "title": Text("Reward model {path}", path=report["reward_model"]),
        "report": report,
        "slices": [
            (title, text, charts.add(figures.accuracies(report["by"][key], ceiling)), report["by"][key])
            for key, (title, text) in SLICES.items()
        ],
        "calibration": charts.add(figures.calibration(report["calibration"]["bins"])),
        "scores": charts.add(figures.distributions(report["scores"])),
        "curve": charts.add(figures.learning_curve(curve["points"])) if curve else "",
    }
    return fill("reward.html.jinja", content, charts)
