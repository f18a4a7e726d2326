"""The page of `wukong reward-report`, from the figures in its report.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wukong.report import figures
from wukong.report.page import Charts, fill

SLICES = {
    "source": (
        "Source",
        "Where the comparisons come from. A source far below the others is another task, or badly labelled.",
    ),
    "length": (
        "Length",
        "By how much longer the preferred answer is. Right only where it is longer: the model measures length.",
    ),
    "strength": (
        "Strength of the preference",
        "As annotators gave it, or how many places apart two ranked answers stand. Clear cases should be easy.",
    ),
    "margin": (
        "The model's own margin",
        "Fifths by the difference of the two scores. Where the model is sure, it should be right.",
    ),
    "depth": (
        "Depth of the conversation",
        "Turns of the user up to the answer. Deep conversations may lose their beginning to the context.",
    ),
}
"""Key in the report -> heading, how to read it."""


def render_reward(report: Mapping[str, Any]) -> str:
    """The whole page: HTML that needs nothing from outside.

    Args:
        report: the content of report.json.
    """
    charts = Charts()
    people = report["agreement"]
    curve = report["learning_curve"]
    ceiling = people["ceiling"][1] if people else None
    content = {
        "title": f"Reward model {report['reward_model']}",
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
