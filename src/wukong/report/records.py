"""What the steps recorded: the reward models' quality, samples of pretraining, the data, the provenance."""

from __future__ import annotations

from typing import Any

from wukong.report import figures
from wukong.report.charts import Charts
from wukong.report.contents import RunContents
from wukong.report.formatting import flat, interval, number, percent
from wukong.report.names import stage_name


def reward_models(run: RunContents, charts: Charts) -> list[dict[str, Any]]:
    """Accuracy and calibration of every reward model on held-out prompts."""
    return [
        {
            "step": step,
            "accuracy": percent(step.results.get("valid_accuracy")),
            "interval": interval(step.results.get("valid_accuracy_interval"), as_percent=True),
            "pairs": number(step.results.get("valid_pairs")),
            "train_pairs": number(step.results.get("train_pairs")),
            "length": percent(step.results.get("length_accuracy")),
            "normalised": step.results.get("normalised_from"),
            "calibration": charts.add(figures.calibration(step.results.get("calibration") or [])),
        }
        for step in run.of_stage("reward")
    ]


def samples(run: RunContents, per_prompt: int = 6) -> list[dict[str, Any]]:
    """Samples written during pretraining: by prompt, evenly spread over the run, including the first and last."""
    shown = []
    for step in run.of_stage("pretrain"):
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for line in step.samples:
            by_prompt.setdefault(str(line.get("prompt", "")), []).append(line)
        for prompt, lines in by_prompt.items():
            picked = sorted({round(i * (len(lines) - 1) / (per_prompt - 1)) for i in range(per_prompt)})
            shown.append({"step": step, "prompt": prompt, "lines": [lines[i] for i in picked]})
    return shown


def data_tables(run: RunContents) -> list[dict[str, Any]]:
    """The data each step read: by source, the records kept, dropped and truncated, with reasons."""
    tables = []
    for step in run.steps:
        data = step.results.get("data")
        if isinstance(data, dict) and isinstance(data.get("sources"), list):
            sources = [source for source in data["sources"] if isinstance(source, dict)]
            title = stage_name(step.stage)
            tables.append({"step": step, "title": title, "sources": sources, "data": data})
    return tables


KNOWN_IN_RECORD = {"stage", "options", "inputs", "version", "git_commit", "seconds", "files", "result", "results"}


def provenance(run: RunContents) -> list[dict[str, Any]]:
    """The provenance of each step."""
    return [
        {
            "step": step,
            "title": stage_name(step.stage),
            "options": flat(step.options),
            "results": flat({k: v for k, v in step.results.items() if k not in ("data", "calibration")}),
            "inputs": [(str(k), str(v or "hub")) for k, v in step.record["inputs"].items()],
            "files": [(str(k), str(v)) for k, v in step.record["files"].items()],
            "machine": flat({k: v for k, v in step.record.items() if k not in KNOWN_IN_RECORD}),
        }
        for step in run.steps
    ]
