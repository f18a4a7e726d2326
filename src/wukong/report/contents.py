"""What lies in a run directory: the steps with their numbers, the evaluations, the answers.

Nothing here knows a recipe or a data set: a step is whatever left a provenance file. A run that is half done, or
of which parts were deleted, is read as far as it goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from wukong.errors import DataError, UsageError
from wukong.files import numbered_lines, read_json
from wukong.places import read_recipe
from wukong.provenance import DIRECTORY_RECORD, FILE_RECORD, STARTED, read_record
from wukong.records import Message

INTERNAL = ("checkpoints", "tensorboard", ".staged")


@dataclass(frozen=True)
class Step:
    """One stage's result, or what it left when it stopped half-way."""

    name: str
    """Its name in the recipe; else its place in the run directory."""
    stage: str
    out: Path
    finished: bool
    record: dict[str, Any]
    """provenance.json, or options.json of a step that is not finished."""

    @property
    def results(self) -> dict[str, Any]:
        return self.record["results"]

    @property
    def options(self) -> dict[str, Any]:
        return self.record["options"]

    @property
    def seconds(self) -> float | None:
        return self.record.get("seconds")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return list(_json_lines(self.out / "metrics.jsonl")) if self.out.is_dir() else []

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        return list(_json_lines(self.out / "samples.jsonl")) if self.out.is_dir() else []

    @cached_property
    def n_records(self) -> int:
        """How many records a step that makes a file wrote."""
        return sum(1 for _, line in numbered_lines(self.out) if line.strip()) if self.out.is_file() else 0

    def last(self, metric: str) -> float | None:
        """The metric's last logged value."""
        return next((line[metric] for line in reversed(self.metrics) if line.get(metric) is not None), None)


class _Contract(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


Interval = tuple[float, float]


class SourceResult(_Contract):
    n: int
    score_mean: float | None = None
    checks: dict[str, float] = {}


class ModelResult(_Contract):
    """What the evaluation says of one model; None where it was not measured."""

    score_mean: float | None = None
    score_std: float | None = None
    score_interval: Interval | None = None
    reward_mean: float | None = None
    kl: float | None = None
    kl_interval: Interval | None = None
    termination_rate: float | None = None
    length_mean: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    checks: dict[str, float] = {}
    by_source: dict[str, SourceResult] = {}


class PairResult(_Contract):
    """How often `judge` prefers a's answer to b's."""

    a: str
    b: str
    judge: str
    n: int
    wins: int
    ties: int
    losses: int
    win_rate: float
    interval: Interval
    length_controlled_win_rate: float | None = None


class OverlapResult(_Contract):
    """Which of the prompts were used in training (`wukong.data.overlap`)."""

    seen: int
    words: str


class EvaluationResult(_Contract):
    n_prompts: int
    overlap: OverlapResult | None = None
    """None in a result of an earlier version, which did not look."""
    scorer: str | None = None
    """The judge whose scores, checks and reasons are shown; None when only a reward model judged."""
    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    models: dict[str, ModelResult] = {}
    """From the oldest to the newest."""
    comparisons: list[PairResult] = []

    @property
    def newest_first(self) -> list[PairResult]:
        """The comparisons of the newest model first, each with its nearest predecessor first: the headline on top."""
        age = {name: i for i, name in enumerate(reversed(self.models))}
        return sorted(self.comparisons, key=lambda pair: age.get(pair.a, len(age)))


class ComparedPair(_Contract):
    """As `wukong compare` writes it: how often a's answer is preferred to b's, and what may be said of it."""

    a: str
    b: str
    n: int
    win_rate: float
    interval: Interval
    length_controlled_win_rate: float | None = None
    words: str


class Rating(_Contract):
    rating: float
    interval: Interval


class Agreement(_Contract):
    value: float
    interval: Interval


class ComparedBy(_Contract):
    """What one judge says of all models."""

    comparisons: list[ComparedPair]
    ratings: dict[str, Rating]
    agreement_with_people: Agreement | None = None


class ComparisonResult(_Contract):
    n_prompts: int
    overlap: OverlapResult | None = None
    judges: dict[str, ComparedBy]


class AnswerResult(_Contract):
    text: str
    score: float | None = None
    reward: float | None = None
    finish_reason: str = "stop"
    n_tokens: int | None = None
    reasons: list[str] = []


class Answered(_Contract):
    """One prompt with every model's answer to it."""

    prompt_id: str = ""
    source: str = ""
    messages: list[Message]
    answers: dict[str, AnswerResult]


@dataclass(frozen=True)
class Evaluation:
    name: str
    result: EvaluationResult
    answered: list[Answered]


@dataclass(frozen=True)
class RunContents:
    root: Path
    name: str
    steps: list[Step]
    not_run: list[str] = field(default_factory=list)
    """Steps of the recipe of which there is nothing yet."""
    planned: dict[str, Path] = field(default_factory=dict)
    """The recipe's steps in order, the report's too, and where the result of each goes."""
    evaluations: list[Evaluation] = field(default_factory=list)

    def of_stage(self, stage: str) -> list[Step]:
        return [step for step in self.steps if step.stage == stage]

    def source_of(self, step: Step, stage: str) -> Step | None:
        """The step of `stage` whose result `step` was made from, directly or by others in between. Of several the one
        that stands first among the inputs: stages name what they train on before what they test on."""
        made = {one.record["result"]: one for one in self.steps if one.record.get("result")}
        inputs = step.record["inputs"].values()
        for parent in (made[value] for value in inputs if value in made and made[value] is not step):
            found = parent if parent.stage == stage else self.source_of(parent, stage)
            if found:
                return found
        return None


def read_run(root: Path) -> RunContents:
    """Reads a run directory.

    Raises:
        UsageError: no such directory, or nothing of a run in it.
        DataError: a file in it is damaged.
    """
    run = read_steps(root)
    evaluations = list(_evaluations(root, run.steps))
    if not run.steps and not evaluations:
        raise UsageError(f"{root}: nothing of a run is here (no provenance.json, no evaluation)")
    return replace(run, evaluations=evaluations)


def read_steps(root: Path) -> RunContents:
    """The steps alone, without the evaluations; there may be none yet. Errors as `read_run`."""
    if not root.is_dir():
        raise UsageError(f"{root}: {'expected a run directory' if root.exists() else 'no such directory'}")
    recipe = read_recipe(root)
    places = {_place(options.get("out"), root): name for name, options in recipe["steps"].items()}
    steps = [_named(step, root, places) for step in _steps(root)]
    order = list(places.values())
    known = sorted((step for step in steps if step.name in order), key=lambda step: order.index(step.name))
    others = [step for step in steps if step.name not in order]
    others.sort(key=lambda step: step.record.get("finished", "~"))  # what is not finished comes last
    found = {step.name for step in known}
    # The report itself is no news to its reader.
    not_run = [name for name in order if name not in found and name.partition("_")[0] != "report"]
    planned = {name: root / place for place, name in places.items()}
    return RunContents(root, str(recipe["name"] or root.absolute().name), [*known, *others], not_run, planned)


def _place(out: Any, root: Path) -> str:
    """An `out` of the recipe relative to the run directory: "runs/x/sft" -> "sft". One of an older version may call it
    what it was called before it was moved."""
    path, root = Path(str(out)), root.absolute()
    if path.absolute().is_relative_to(root):
        return path.absolute().relative_to(root).as_posix()
    parts = path.parts
    return Path(*parts[parts.index(root.name) + 1 :]).as_posix() if root.name in parts else path.name


def _steps(root: Path) -> Iterator[tuple[Path, bool, dict[str, Any]]]:
    """(out, whether it is finished, its record) of everything that a stage made below `root`."""
    for path in sorted(root.rglob("*.json")):
        inside = path.relative_to(root)
        if any(part in INTERNAL or part.startswith(".") for part in inside.parts):
            continue
        if path.name == DIRECTORY_RECORD and path.parent != root:
            yield path.parent, True, read_record(path) or {}
        elif path.name.endswith(FILE_RECORD):
            yield path.with_name(path.name.removesuffix(FILE_RECORD)), True, read_record(path) or {}
        elif path.name == STARTED and path.parent != root and not (path.parent / DIRECTORY_RECORD).exists():
            yield path.parent, False, read_record(path) or {}


def _named(step: tuple[Path, bool, dict[str, Any]], root: Path, places: dict[str, str]) -> Step:
    out, finished, record = step
    place = out.relative_to(root).as_posix()
    return Step(places.get(place, place), record["stage"], out, finished, record)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; none for a missing one. A last line that is still being written is left out."""
    lines = [(number, line) for number, line in numbered_lines(path) if line] if path.exists() else []
    for number, line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if number == lines[-1][0]:
                return
            raise DataError(f"not valid JSON: {error.msg}", file=path, line=number) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"not usable JSON: {error}", file=path, line=number) from None
        if isinstance(value, dict):
            yield value


C = TypeVar("C", bound=_Contract)


def _parsed(kind: type[C], value: Any, path: Path, line: int | None = None) -> C:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(first["msg"], file=path, line=line, field=".".join(map(str, first["loc"])) or None) from None


def _evaluations(root: Path, steps: list[Step]) -> Iterator[Evaluation]:
    """In the order of the steps; one that was put there by hand counts too."""
    places = [step.out for step in steps if step.stage == "evaluate"]
    places += [path.parent for path in sorted(root.glob("*/evaluation.json")) if path.parent not in places]
    for place in places:
        if not (place / "evaluation.json").exists():
            continue
        result = _parsed(EvaluationResult, read_json(place / "evaluation.json"), place / "evaluation.json")
        yield Evaluation(place.relative_to(root).as_posix(), result, read_answered(place / "answers.jsonl"))


def read_comparison(path: Path) -> ComparisonResult:
    """The comparison.json of `wukong compare`. Raises DataError where it is something else."""
    return _parsed(ComparisonResult, read_json(path), path)


def read_answered(path: Path) -> list[Answered]:
    """The prompts of an answers.jsonl with every model's answer; none for a missing file. DataError for a bad line."""
    return [_parsed(Answered, value, path, n) for n, value in enumerate(_json_lines(path), start=1)]
