"""The models of a run, and which of them to talk to."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from wukong.errors import WukongError
from wukong.files import read_json
from wukong.model.architectures import POLICIES
from wukong.options import POLICY_STAGES
from wukong.places import read_recipe, resolve

_BY_STAGE = ("pretrain", "sft", *reversed(POLICY_STAGES))
"""From the least to the most finished model."""


def models_in(run: Path | None, architectures: Collection[str] = POLICIES) -> list[Path]:
    """The run's model directories of a kind, by what their config.json says.

    architectures: `POLICIES` or `REWARDS` of wukong.model.architectures.
    """
    found = []
    for config in sorted(run.glob("*/config.json")) if run else []:
        try:
            if not set(architectures).isdisjoint(read_json(config).get("architectures", [])):
                found.append(config.parent)
        except (WukongError, AttributeError, TypeError):  # a directory that is no model of ours
            continue
    return found


def _record(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (WukongError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _scores(run: Path) -> dict[Path, float]:
    """The mean scores of evaluated models, by the judge, or by the reward model where there is no judge."""
    scores: dict[Path, float] = {}
    for path in sorted(run.glob("*/evaluation.json")):
        for entry in dict(_record(path).get("models") or {}).values():
            score = entry.get("score_mean") if entry.get("score_mean") is not None else entry.get("reward_mean")
            if score is not None and not entry.get("best_of"):
                scores[Path(resolve(str(entry["path"]), run)).resolve()] = float(score)
    return scores


def best_policy(run: Path) -> Path | None:
    """The model of the run with the best evaluation; without one, the model of its last stage. None if it has no
    model yet."""
    models = models_in(run)
    scores = _scores(run)
    judged = [model for model in models if model.resolve() in scores]
    if judged:
        return max(judged, key=lambda model: scores[model.resolve()])
    stages = {model: _record(model / "provenance.json").get("stage") for model in models}
    known = [model for model in models if stages[model] in _BY_STAGE]
    return max(known, key=lambda model: _BY_STAGE.index(str(stages[model])), default=None)


def newest_run(directory: Path) -> Path | None:
    """The run below `directory` that last did something and has a model."""
    runs = [path.parent for path in directory.glob("*/events.jsonl") if best_policy(path.parent)]
    return max(runs, key=lambda run: (run / "events.jsonl").stat().st_mtime, default=None)


def example_prompts(run: Path, count: int = 3) -> list[str]:
    """Evaluated questions to begin with: those that the run's report shows first, then others. A kind of prompt that
    the report pins, such as kitchen/unsafe, stands for its first question."""
    pinned = [str(text) for options in read_recipe(run)["steps"].values() for text in options.get("pinned") or []]
    asked, first_of_kind = [], dict[str, str]()
    for path in sorted(run.glob("*/answers.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            messages = record.get("messages") or []
            if len(messages) == 1:
                asked.append(messages[0]["content"])
                first_of_kind.setdefault(record.get("source") or "", asked[-1])
    wanted = [first_of_kind.get(text, text) for text in pinned]
    return [text for text in dict.fromkeys([*wanted, *asked]) if text in asked][:count]
