"""What the evaluations measured: the headline, the comparisons, the models."""

from __future__ import annotations

from typing import Any

from wukong.errors import Text
from wukong.language import counted
from wukong.report import figures
from wukong.report.charts import Charts
from wukong.report.contents import Evaluation, RunContents, StepResult
from wukong.report.formatting import duration, interval, number, percent


def headline(run: RunContents) -> dict[str, Any]:
    """The newest model compared with its predecessor, and the numbers that qualify the result."""
    first = next((e.result for e in run.evaluations), None)
    best = first.newest_first[0] if first and first.comparisons else None
    tiles: list[tuple[Text, str, Text]] = []
    if first and best and best.a in first.models:
        model, other = first.models[best.a], first.models.get(best.b)
        spread = interval(model.kl_interval) if model.kl_interval else Text("per response")
        kl = Text("{kl} nats", kl=number(model.kl)) if model.kl is not None else number(None)
        tiles.append((Text("[KL](#kl-divergence) of {model}", model=best.a), kl, spread))
        tiles.append((Text("responses that end [by themselves](#termination-rate)"), percent(model.termination_rate),
                      Text("")))  # fmt: skip
        if model.distinct_2 is not None and other and other.distinct_2:
            tiles.append((Text("[distinct bigrams](#distinct-2)"), percent(model.distinct_2 / other.distinct_2, 0),
                          Text("of those of {model}", model=best.b)))  # fmt: skip
    if reward := next((s for s in run.of_stage("reward") if s.results.get("valid_accuracy")), None):
        spread = interval(reward.results.get("valid_accuracy_interval"), as_percent=True)
        tiles.append((Text("accuracy of the [reward model](#reward-model)"), percent(reward.results["valid_accuracy"]),
                      spread))  # fmt: skip
    times = [step.seconds for step in of_the_run(run) if step.seconds is not None]
    tiles.append((Text("total time"), duration(sum(times)), counted(len(times), "{n:,} step", "{n:,} steps")))
    notes = []
    if first and first.overlap is None:
        notes.append(Text("Overlap with the training data is unknown."))
    elif first and first.overlap and first.overlap.seen:
        notes.append(Text("{overlap}.", overlap=first.overlap.said))
    return {"best": best, "notes": notes, "tiles": [tile for tile in tiles if not tile[1].startswith("–")]}


LATER = ("reward-report", "compare", "frontier")
"""Tools whose results may lie in a run without being a part of it."""


def of_the_run(run: RunContents) -> list[StepResult]:
    """The steps of the recipe; without one, all but what was measured later."""
    if run.planned:
        return [step for step in run.steps if step.name in run.planned]
    return [step for step in run.steps if step.stage not in LATER]


def results(run: RunContents, charts: Charts) -> list[dict[str, Any]]:
    return [
        {
            "name": evaluation.name,
            "result": evaluation.result,
            "colours": figures.model_indices(list(evaluation.result.models)),
            "wins": charts.add(figures.win_rates(evaluation.result)),
            "scores": charts.add(figures.scores(evaluation.result)),
            "checks": charts.add(figures.checks(evaluation.result)),
            "sources": _sources(evaluation),
        }
        for evaluation in run.evaluations
    ]


def _sources(evaluation: Evaluation) -> list[tuple[Text, int, dict[str, float | None]]]:
    """(source, prompts, score by model), if the prompts have sources."""
    models = evaluation.result.models
    names = sorted({source for model in models.values() for source in model.by_source})
    rows = []
    for name in names:
        of_source = {m: model.by_source[name] for m, model in models.items() if name in model.by_source}
        n = max(one.n for one in of_source.values())
        rows.append((Text(name or "(none)"), n, {m: one.score_mean for m, one in of_source.items()}))
    return rows
