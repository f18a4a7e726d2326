"""The glass box of a report: real responses of training as tokens, with a slider over the traced iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from wukong.language import translate
from wukong.language.scripts import used_in
from wukong.options import POLICY_STAGES
from wukong.report.contents import RunContents, StepResult
from wukong.report.names import stage_name
from wukong.report.traces import TracedIteration, TracedResponse, read_trace

SHARED = Path(__file__).parents[1] / "templates" / "shared"
"""Scripts and styles of the reports that the studio serves too."""

MOST_ITERATIONS, MOST_RESPONSES = 10, 4
"""What a page shows of a trace: iterations, evenly spread, and of each so many responses of the batch and so many to
pinned prompts. A trace can be larger than a page should be."""
MEANS = ("score", "kl", "kl_coef", "advantage_std", "value_mean", "return_mean", "policy_loss", "value_loss",
         "clip_fraction")  # fmt: skip
"""The metrics of the iteration that are shown above its responses."""


def glass_boxes(run: RunContents) -> list[dict[str, Any]]:
    """Of each step with a trace, what its part of the page needs. Raises DataError for a damaged trace."""
    steps = [step for step in run.steps if step.stage in POLICY_STAGES and step.out.is_dir()]
    return [
        {"step": step, "title": stage_name(step.stage), "data": _data(step, traced)}
        for step in steps
        if (traced := read_trace(step.out))
    ]


def glass_assets() -> dict[str, Markup]:
    """The view's script and style, to be inlined."""
    element, view, css = ((SHARED / name).read_text(encoding="utf-8") for name in ("element.js", "view.js", "view.css"))
    script = element + view.replace('import { element } from "./element.js";\n', "")  # they become one module
    return {"js": Markup(script), "css": Markup(css)}


def script_texts() -> dict[str, str]:
    """English -> Chinese of what the view's script, and the report's that draws it, say."""
    texts = used_in(SHARED / "view.js") | used_in(SHARED.parent / "report" / "token_script.html.jinja")
    return {text: translate("zh", text) for text in sorted(texts)}


def _data(step: StepResult, traced: list[TracedIteration]) -> dict[str, Any]:
    last = len(traced) - 1
    shown = sorted({round(i * last / (MOST_ITERATIONS - 1)) for i in range(MOST_ITERATIONS)})
    logged = {int(line["step"]): line for line in step.metrics if "step" in line}
    iterations = []
    for one in (traced[i] for i in shown):
        line = logged.get(one.step, {})
        means = [(name, line[name]) for name in MEANS if name in line]
        responses = [view_of(response) for response in _few(one.responses)]
        iterations.append({"step": one.step, "means": means, "responses": responses})
    return {"total": max(logged, default=None), "iterations": iterations}


def _few(responses: list[TracedResponse]) -> list[TracedResponse]:
    return [one for pinned in (True, False) for one in [r for r in responses if r.pinned == pinned][:MOST_RESPONSES]]


def view_of(response: TracedResponse) -> dict[str, Any]:
    """What the view (view.js) reads of a response."""
    return rounded(response.model_dump(exclude_none=True))


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """With one digit more than the view shows."""
    return {
        name: [round(x, 5) if isinstance(x, float) else x for x in value] if isinstance(value, list) else value
        for name, value in record.items()
    }
