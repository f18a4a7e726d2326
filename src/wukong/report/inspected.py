"""With which models an evaluation's answer is read as tokens (`wukong.inspection`), and all that a report shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wukong.report.contents import AnsweredPrompt, RunContents
from wukong.report.glass import rounded


@dataclass(frozen=True)
class AnsweringModel:
    """A model of an evaluation: its directory or hub id, whether it got plain text (`--raw`), and the evaluation's
    reference and reward model, "" without one."""

    source: str
    raw: bool
    reference: str
    reward_model: str
    temperature: float


def answering_model(run: RunContents, place: str, name: str) -> AnsweringModel | None:
    """The model of this name in the evaluation at a place of the run; None for an unknown one, or for an evaluation
    without a record."""
    step = next((s for s in run.of_stage("evaluate") if s.out.relative_to(run.root).as_posix() == place), None)
    found = next((one for one in run.evaluations if one.name == place), None)
    if step is None or found is None:
        return None
    named = (str(one).partition("=") for one in step.options.get("models") or [])
    sources = {key: source or key for key, _, source in named}
    if name not in sources:
        return None
    raw = name in (step.options.get("raw") or [])
    reference = "" if raw else sources.get(str(step.options.get("reference")), "")
    model = found.result.models.get(name)
    temperature = model.sampling.get("temperature", 1.0) if model else 1.0
    return AnsweringModel(sources[name], raw, reference, str(step.options.get("reward_model") or ""), temperature)


Inspect = Callable[[AnsweringModel, AnsweredPrompt, str], dict[str, Any] | None]
"""(model, prompt, the model's name) -> the answer as tokens, or None where it cannot be had."""


def inspected_answers(run: RunContents, shown: Sequence[dict[str, Any]], inspect: Inspect) -> list[list[Any]]:
    """Of each prompt that the page shows, in order, its answers as tokens.

    shown: as `wukong.report.answers.side_by_side` makes them, one for each evaluation with answers.
    """
    found: list[list[Any]] = []
    places = [one.name for one in run.evaluations if one.answered]
    for place, section in zip(places, shown, strict=True):
        for prompt in (*section["first"], *section["drawn"]):
            models = {name: answering_model(run, place, name) for name in prompt.answers}
            read = (inspect(model, prompt, name) if model else None for name, model in models.items())
            found.append([rounded(one) if one else None for one in read])
    return found
