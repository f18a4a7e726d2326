"""The contents of a run directory: the steps with their numbers, the evaluations, the answers.

This depends on no recipe or data set: a step is anything with a provenance file. An unfinished run, or one with parts
deleted, is read as far as possible.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from wukong.errors import DataError, Text, UsageError
from wukong.files import numbered_lines, read_json
from wukong.places import read_recipe
from wukong.provenance import DIRECTORY_RECORD, FILE_RECORD, STARTED, read_record
from wukong.records import Message
from wukong.stats import in_words

INTERNAL = ("checkpoints", "tensorboard", ".staged")


@dataclass(frozen=True)
class StepResult:
    """A stage's result, or what it left when interrupted."""

    name: str
    """Its name in the recipe; else its path in the run directory."""
    stage: str
    out: Path
    finished: bool
    record: dict[str, Any]
    """provenance.json, or options.json of an unfinished step."""

    @property
    def results(self) -> dict[str, Any]:
        result: dict[str, Any] = self.record["results"]
        return result

    @property
    def options(self) -> dict[str, Any]:
        result: dict[str, Any] = self.record["options"]
        return result

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
        """The number of records written by a step whose result is a file."""
        return sum(1 for _, line in numbered_lines(self.out) if line.strip()) if self.out.is_file() else 0

    def last(self, metric: str) -> float | None:
        """The metric's last logged value."""
        return next((line[metric] for line in reversed(self.metrics) if line.get(metric) is not None), None)


class _ResultModel(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


Interval = tuple[float, float]


class SourceResult(_ResultModel):
    n: int
    score_mean: float | None = None
    checks: dict[str, float] = {}


class ModelResult(_ResultModel):
    """An evaluation's figures for one model; None if not measured."""

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
    check_counts: dict[str, int] = {}
    """The number of answers that each check applies to; older evaluations do not say."""
    by_source: dict[str, SourceResult] = {}
    sampling: dict[str, float] = {}
    """temperature, top_p and top_k; absent in results of earlier versions."""


class PairResult(_ResultModel):
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


class OverlapResult(BaseModel):
    """Which of the prompts were used in training (`wukong.data.overlap`), with whatever else was recorded about it."""

    model_config = ConfigDict(extra="allow")

    seen: int
    words: str

    @property
    def said(self) -> Text:
        """`words`, from the numbers, so that they can be said in another language."""
        from wukong.data.overlap import in_words  # needs torch

        try:
            return in_words(self.model_dump())
        except (KeyError, TypeError, IndexError):  # of an earlier version, which recorded less
            return Text(self.words)


class EvaluationResult(_ResultModel):
    n_prompts: int
    overlap: OverlapResult | None = None
    """None in results of earlier versions, which did not check."""
    scorer: str | None = None
    """The judge whose scores, checks and reasons are shown; None if only a reward model judged."""
    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    models: dict[str, ModelResult] = {}
    """From the oldest to the newest."""
    comparisons: list[PairResult] = []

    @property
    def newest_first(self) -> list[PairResult]:
        """The newest model's comparisons first, starting with its nearest predecessor, so that the headline is on
        top."""
        age = {name: i for i, name in enumerate(reversed(self.models))}
        return sorted(self.comparisons, key=lambda pair: age.get(pair.a, len(age)))


class ComparedPair(_ResultModel):
    """As written by `wukong compare`: how often a's answer is preferred to b's, and the conclusion."""

    a: str
    b: str
    n: int
    win_rate: float
    interval: Interval
    length_controlled_win_rate: float | None = None
    words: str
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    """None in results of an earlier version."""

    @property
    def said(self) -> Text:
        """`words`, from the numbers, so that they can be said in another language."""
        return Text(self.words) if None in (self.wins, self.ties, self.losses) else in_words(self.model_dump())


class RatingResult(_ResultModel):
    rating: float
    interval: Interval


class Agreement(_ResultModel):
    value: float
    interval: Interval


class ComparedBy(_ResultModel):
    """One judge's results for all models."""

    comparisons: list[ComparedPair]
    ratings: dict[str, RatingResult]
    agreement_with_people: Agreement | None = None


class ComparisonResult(_ResultModel):
    n_prompts: int
    overlap: OverlapResult | None = None
    judges: dict[str, ComparedBy]


class AnswerResult(_ResultModel):
    text: str
    score: float | None = None
    reward: float | None = None
    finish_reason: str = "stop"
    n_tokens: int | None = None
    reasons: list[str] = []


class AnsweredPrompt(_ResultModel):
    """One prompt with every model's answer to it."""

    prompt_id: str = ""
    source: str = ""
    messages: list[Message]
    answers: dict[str, AnswerResult]


@dataclass(frozen=True)
class Evaluation:
    name: str
    result: EvaluationResult
    answered: list[AnsweredPrompt]


@dataclass(frozen=True)
class RunContents:
    root: Path
    name: str
    steps: list[StepResult]
    not_run: list[str] = field(default_factory=list)
    """Steps of the recipe that have not started."""
    planned: dict[str, Path] = field(default_factory=dict)
    """The recipe's steps in order, including the report, and where each result goes."""
    evaluations: list[Evaluation] = field(default_factory=list)

    def of_stage(self, stage: str) -> list[StepResult]:
        return [step for step in self.steps if step.stage == stage]

    def source_of(self, step: StepResult, stage: str) -> StepResult | None:
        """The step of `stage` from which `step` was made, directly or indirectly. If there are several, the first among
        the inputs: stages list training inputs before test inputs."""
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
        UsageError: no such directory, or it contains no run.
        DataError: a file in it is damaged.
    """
    run = read_steps(root)
    evaluations = list(_evaluations(root, run.steps))
    if not run.steps and not evaluations:
        raise UsageError(f"{root}: not a run directory (no provenance.json, no evaluation)")
    return replace(run, evaluations=evaluations)


def read_steps(root: Path) -> RunContents:
    """Only the steps, of which there may be none yet, without the evaluations. Errors as `read_run`."""
    if not root.is_dir():
        raise UsageError(f"{root}: {'expected a run directory' if root.exists() else 'no such directory'}")
    recipe = read_recipe(root)
    places = {_place(options.get("out"), root): name for name, options in recipe["steps"].items()}
    steps = [_named(step, root, places) for step in _steps(root)]
    order = list(places.values())
    known = sorted((step for step in steps if step.name in order), key=lambda step: order.index(step.name))
    others = [step for step in steps if step.name not in order]
    others.sort(key=lambda step: step.record.get("finished", "~"))  # unfinished steps last
    found = {step.name for step in known}
    # The report itself is left out.
    not_run = [name for name in order if name not in found and name.partition("_")[0] != "report"]
    planned = {name: root / place for place, name in places.items()}
    return RunContents(root, str(recipe["name"] or root.absolute().name), [*known, *others], not_run, planned)


def _place(out: Any, root: Path) -> str:
    """An `out` of the recipe relative to the run directory: "runs/x/sft" -> "sft". Older versions recorded the run
    directory's path, which may have changed since."""
    path, root = Path(str(out)), root.absolute()
    if path.absolute().is_relative_to(root):
        return path.absolute().relative_to(root).as_posix()
    parts = path.parts
    return Path(*parts[parts.index(root.name) + 1 :]).as_posix() if root.name in parts else path.name


def _steps(root: Path) -> Iterator[tuple[Path, bool, dict[str, Any]]]:
    """(out, whether it is finished, its record) of every stage's result below `root`."""
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


def _named(step: tuple[Path, bool, dict[str, Any]], root: Path, places: dict[str, str]) -> StepResult:
    out, finished, record = step
    place = out.relative_to(root).as_posix()
    return StepResult(places.get(place, place), record["stage"], out, finished, record)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one after another; none if it is missing. An incomplete last line is left out."""
    lines = ((number, line) for number, line in numbered_lines(path) if line) if path.exists() else iter(())
    for number, line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if next(lines, None) is None:
                return
            raise DataError("not valid JSON: {reason}", reason=error.msg, file=path, line=number) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"not usable JSON: {error}", file=path, line=number) from None
        if isinstance(value, dict):
            yield value


C = TypeVar("C", bound=_ResultModel)


def _parsed(kind: type[C], value: Any, path: Path, line: int | None = None) -> C:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(first["msg"], file=path, line=line, field=".".join(map(str, first["loc"])) or None) from None


def _evaluations(root: Path, steps: list[StepResult]) -> Iterator[Evaluation]:
    """In step order; an evaluation copied there by hand counts too."""
    places = [step.out for step in steps if step.stage == "evaluate"]
    places += [path.parent for path in sorted(root.glob("*/evaluation.json")) if path.parent not in places]
    for place in places:
        if not (place / "evaluation.json").exists():
            continue
        result = _parsed(EvaluationResult, read_json(place / "evaluation.json"), place / "evaluation.json")
        yield Evaluation(place.relative_to(root).as_posix(), result, read_answered_prompts(place / "answers.jsonl"))


def read_comparison(path: Path) -> ComparisonResult:
    """The comparison.json of `wukong compare`. Raises DataError for anything else."""
    return _parsed(ComparisonResult, read_json(path), path)


def iter_answered_prompts(path: Path) -> Iterator[AnsweredPrompt]:
    """The prompts of an answers.jsonl with every model's answer; none if it is missing. Raises DataError for a bad
    line."""
    return (_parsed(AnsweredPrompt, value, path, n) for n, value in enumerate(_json_lines(path), start=1))


def read_answered_prompts(path: Path) -> list[AnsweredPrompt]:
    """All of them."""
    return list(iter_answered_prompts(path))
