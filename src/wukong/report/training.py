"""The curves of every step that logged metrics: which share a chart, their verdicts and definitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wukong.errors import Text
from wukong.report import figures
from wukong.report.charts import Charts
from wukong.report.contents import RunContents, StepResult
from wukong.report.formatting import number
from wukong.report.names import stage_name
from wukong.report.verdicts import CurveVerdict, Level, verdict, worst
from wukong.training.metric_definitions import EVERY_STAGE, METRICS, Metric, definition

TOGETHER = (
    ("loss", "valid_loss"),
    ("perplexity", "valid_perplexity"),
    ("accuracy", "valid_accuracy"),
    ("score", "reward_model_score"),
    ("kl", "kl_k3"),
    ("ratio_max", "ratio_min"),
    ("clip_fraction", "clip_fraction_high"),
    ("equal_groups", "equal_groups_kept"),
    ("return_mean", "value_mean"),
    ("grad_norm_policy", "grad_norm_value"),
)
"""Related metrics, drawn in one chart."""

FEW_CURVES = 12
"""Up to this number of charts need no headings."""


@dataclass
class Entry:
    """One metric of a chart: its last value, verdict and definition."""

    name: str
    last: str
    verdict: CurveVerdict
    metric: Metric | None


@dataclass
class Curve:
    """One chart and its metrics."""

    title: str
    chart: str
    entries: list[Entry]

    @property
    def level(self) -> Level:
        return worst([entry.verdict.level for entry in self.entries])


@dataclass
class CurveGroup:
    title: str
    curves: list[Curve]


def chart_plan(stage: str, logged: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(heading, the metrics of one chart) for everything a stage logged, in the order of the definitions,
    stage-specific metrics first. Related metrics share a chart; a few charts need no headings."""
    names = dict.fromkeys(name for name in logged if name != "step")
    places = {name: place for place, name in enumerate(METRICS)}
    plan: list[tuple[str, list[str]]] = []
    drawn: set[str] = set()
    for name in sorted(names, key=lambda n: places.get(f"{stage}/{n}", places.get(n, len(places)))):
        if name not in drawn:
            together = [n for n in next((t for t in TOGETHER if name in t), (name,)) if n in names]
            drawn.update(together)
            first = definition(stage, together[0])
            plan.append((first.group if first else "Not defined", together))
    if len(plan) <= FEW_CURVES:
        return [("", together) for _, together in plan]
    headings = list(dict.fromkeys(heading for heading, _ in plan))
    return sorted(plan, key=lambda chart: (chart[0] == EVERY_STAGE, headings.index(chart[0])))


def curve_groups(step: StepResult, charts: Charts) -> list[CurveGroup]:
    """All metrics of a step, as charts under headings (see `chart_plan`)."""
    points = {n: figures.points_of(step.metrics, n) for n in dict.fromkeys(n for line in step.metrics for n in line)}
    values = {name: [y for _, y in found] for name, found in points.items() if name != "step"}
    groups: dict[str, CurveGroup] = {}
    for heading, names in chart_plan(step.stage, (name for name, found in points.items() if found)):
        series = {name: points[name] for name in names}
        metrics = {name: definition(step.stage, name) for name in names}
        entries = [
            Entry(name, number(found[-1][1], 4), verdict(step.stage, name, values), metrics[name])
            for name, found in series.items()
        ]
        first = metrics[names[0]]
        chart = charts.add(figures.curves(series, first.unit if first else ""))
        groups.setdefault(heading, CurveGroup(heading, [])).curves.append(Curve(_listed(names), chart, entries))
    return list(groups.values())


def _listed(names: Sequence[str]) -> Text:
    """Names of metrics, which are the same in every language, with words between them."""
    listed = Text("{name}", name=names[0])
    for name in names[1:]:
        listed = Text("{a} and {b}", a=listed, b=name)
    return listed


def training(run: RunContents, charts: Charts) -> list[dict[str, Any]]:
    """The curves of every step that logged metrics, with the number of curves at each level."""
    shown = []
    for step in (one for one in run.steps if one.metrics):
        groups = curve_groups(step, charts)
        levels = Counter(curve.level for group in groups for curve in group.curves)
        shown.append(
            {
                "step": step,
                "title": stage_name(step.stage),
                "groups": groups,
                "levels": [(level, levels[level]) for level in ("red", "amber", "green") if levels[level]],
                "n_steps": step.metrics[-1].get("step"),
                "over_kl": charts.add(figures.reward_over_kl(step.metrics)),
                "seed": step.options.get("seed"),
            }
        )
    return shown
