"""Runs as they lie on disk: the steps and their states, curves that grow, samples, results.

A directory beside the studio's own run (or in `runs/`) that holds a recipe or the record of a stage is a run. A name
from outside is looked up among what is there and never becomes a path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wukong.errors import DataError, WukongError
from wukong.feedback.store.labels import NotFoundError
from wukong.report.contents import RunContents, StepResult, read_steps
from wukong.report.figures import points_of, thinned
from wukong.report.page import chart_plan
from wukong.training.metric_definitions import definition
from wukong.web.processes import Process, is_running, outcome, process_of

LONGEST_LOG = 1 << 16
"""So many bytes of a log are shown, the last ones."""
MOST_LINES = 400
"""Of more new lines than this the page is told to fetch the curves anew, thinned."""


def run_directories(runs: Path | None) -> list[Path]:
    """The runs in a directory, the one changed last first."""
    found = [path for path in runs.iterdir() if _is_run(path)] if runs and runs.is_dir() else []
    return sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))


def _is_run(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_dir():
        return False
    marks = ("*/provenance.json", "*/options.json", "*.provenance.json")
    return (path / "recipe.yaml").is_file() or any(any(path.glob(mark)) for mark in marks)


def run_or_404(runs: Path | None, name: str) -> Path:
    for path in run_directories(runs):
        if path.name == name:
            return path
    raise NotFoundError("there is no such run")


# ------------------------------------------------------------------------------------------------------------- states


@dataclass(frozen=True)
class StepState:
    """`state`: waiting, running, stopped (half done, goes on when started), done or failed (with the `problem`)."""

    name: str
    stage: str
    state: str
    seconds: float | None = None
    problem: str = ""
    planned: bool = True
    """Whether it is one of the recipe's steps, which can be started."""
    logged: bool = False
    """Whether it has curves or samples to show."""


@dataclass(frozen=True)
class Overview:
    """A run at a moment; `problem` where a file in it is damaged."""

    name: str
    steps: Sequence[StepState] = ()
    running: bool = False
    process: Process | None = None
    """The process that works on it, when a studio started it."""
    problem: str = ""

    @property
    def startable(self) -> bool:
        return any(step.planned and step.state != "done" for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """What a page needs to be told of a change."""
        return {
            "running": self.running,
            "stoppable": self.process is not None,
            "asked": self.process.signals if self.process else 0,
            "startable": self.startable,
            "problem": self.problem,
            "steps": [vars(step) for step in self.steps],
        }


def overview(run: Path) -> Overview:
    """The run's steps with their states: those of its recipe in order, then what else was made here."""
    try:
        contents = read_steps(run)
    except WukongError as error:
        return Overview(run.name, problem=str(error))
    running = is_running(run)
    process = process_of(run)
    steps = list(_steps(run, contents, running, process))
    return Overview(run.name, steps, running, process if process and process.alive else None)


def _steps(run: Path, contents: RunContents, running: bool, process: Process | None) -> Iterable[StepState]:
    by_name = {step.name: step for step in contents.steps}
    done = {step.name for step in contents.steps if step.finished}
    done |= {name for name, out in contents.planned.items() if _is_report(name) and out.is_file()}
    at = next((name for name in contents.planned if name not in done), None)
    failed = "" if running or process is None else _failure(run, process, at)
    for name in [*contents.planned, *(name for name in by_name if name not in contents.planned)]:
        step = by_name.get(name)
        state = "done" if name in done else "stopped" if step else "waiting"
        if name == at and running:
            state = "running"
        elif name == at and failed:
            state = "failed"
        yield StepState(
            name,
            step.stage if step else name.partition("_")[0],
            state,
            seconds=step.seconds if step else None,
            problem=failed if state == "failed" else "",
            planned=name in contents.planned,
            logged=step is not None and any((step.out / f"{file}.jsonl").is_file() for file in ("metrics", "samples")),
        )


def _is_report(step: str) -> bool:
    """A report leaves no record: it is a view, drawn anew each time."""
    return step.partition("_")[0] == "report"


def _failure(run: Path, process: Process, at: str | None) -> str:
    """Why the last process ended before its time; "" when it did not, or was asked to."""
    if at is None or process.signals:
        return ""
    was_at, words = outcome(run, process)
    if was_at not in (None, at) or words.startswith("stopped"):
        return ""
    return words or "the process ended without a word"


def step_or_404(run: Path, name: str) -> StepResult:
    """A step by its name; one that the recipe plans may have nothing yet.

    Raises NotFoundError for a name that is none, DataError for a damaged record.
    """
    contents = read_steps(run)
    for step in contents.steps:
        if step.name == name:
            return step
    if name in contents.planned:
        return StepResult(name, name.partition("_")[0], contents.planned[name], False, {"results": {}, "options": {}})
    raise NotFoundError("there is no such step")


# ------------------------------------------------------------------------------------------------------ files that grow


class Tail:
    """What a file has grown by, in whole lines.

    Args:
        path: the file, which may not be there yet.
        place: where an earlier reader stopped (its `place`); the beginning when empty.
    """

    def __init__(self, path: Path, place: str = "") -> None:
        inode, _, offset = place.partition("-")
        known = all(re.fullmatch("[0-9]{1,19}", part) for part in (inode, offset))
        self.path, self.inode, self.offset = path, int(inode) if known else 0, int(offset) if known else 0

    @property
    def place(self) -> str:
        return f"{self.inode}-{self.offset}"

    def read(self, most: int | None = None) -> tuple[bool, bytes]:
        """(whether it is another file than before, or was cut; its new whole lines).

        most: of more bytes than this only the last are read.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                new = self.inode not in (0, status.st_ino) or status.st_size < self.offset
                if new:
                    self.offset = 0
                self.inode = status.st_ino
                if most is not None:
                    self.offset = max(self.offset, status.st_size - most)
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return False, b""
        data = data[: data.rfind(b"\n") + 1]
        self.offset += len(data)
        return new, data


def json_lines(data: bytes, path: Path) -> list[dict[str, Any]]:
    """The objects of JSON lines. Raises DataError."""
    try:
        lines = [json.loads(line) for line in data.split(b"\n") if line]
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", file=path) from None
    if not all(isinstance(line, dict) for line in lines):
        raise DataError("a line is no JSON object", file=path)
    return lines


def curves(step: StepResult) -> dict[str, Any]:
    """Every metric the step logged, as charts in the order of their definitions.

    Returns:
        `charts`, each with a heading, a unit and its metrics (name, definition, what to watch for, and x and y, thinned
        to some hundred points); the last `step`; and `at`, the place from which `Watch` goes on.
    """
    tail = Tail(step.out / "metrics.jsonl")
    lines = json_lines(tail.read()[1], tail.path)
    points = {name: points_of(lines, name) for name in dict.fromkeys(name for line in lines for name in line)}
    charts = []
    for heading, names in chart_plan(step.stage, (name for name, found in points.items() if found)):
        metrics = [_metric(step.stage, name) for name in names]
        for one in metrics:
            xs, ys = zip(*thinned(points[one["name"]]), strict=True)
            one |= {"x": xs, "y": [float(f"{y:.5g}") for y in ys]}
        charts.append({"heading": heading, "metrics": metrics})
    return {"charts": charts, "step": lines[-1].get("step") if lines else None, "at": tail.place}


def _metric(stage: str, name: str) -> dict[str, Any]:
    found = definition(stage, name)
    unit, text, watch = (found.unit, found.definition, found.watch) if found else ("", "", "")
    return {"name": name, "unit": unit, "definition": text, "watch": watch}


def samples(step: StepResult, per_prompt: int = 6) -> list[dict[str, Any]]:
    """What the model wrote while it learnt: for each prompt (`prompt`, `lines`), evenly spread over the run with the
    first and the last; where each prompt came once only, as in PPO, all of them together (`prompt` is None)."""
    lines = step.samples
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_prompt.setdefault(str(line.get("prompt", "")), []).append(line)
    if lines and len(by_prompt) > len(lines) / 2:
        return [{"prompt": None, "lines": _spread(lines, 4 * per_prompt)}]
    return [{"prompt": prompt, "lines": _spread(own, per_prompt)} for prompt, own in by_prompt.items()]


def _spread(lines: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [lines[i] for i in sorted({round(i * (len(lines) - 1) / (count - 1)) for i in range(count)})]


class Watch:
    """What has changed in a run since the last look, as (event, data) for the page.

    Args:
        run: the run directory.
        step: whose curves are watched; None for none.
        place: where an earlier watch (its `place`), or the page's own reading, stopped.
    """

    def __init__(self, run: Path, step: StepResult | None, place: str = "") -> None:
        metrics, _, log = place.partition(".")
        self.run = run
        self.metrics = Tail(step.out / "metrics.jsonl", metrics) if step else None
        self.samples = Tail(step.out / "samples.jsonl") if step else None
        if self.samples:
            self.samples.read(0)
        self.log = Tail(run / "run.log", log)
        self.state: dict[str, Any] | None = None

    @property
    def place(self) -> str:
        return f"{self.metrics.place if self.metrics else ''}.{self.log.place}"

    def grown(self) -> Iterable[tuple[str, Any]]:
        """`lines` of metrics, `reset` (fetch the curves anew), `samples` (there are new ones), `log` (text)."""
        if self.metrics and self.samples:
            new, data = self.metrics.read()
            lines = json_lines(data, self.metrics.path)
            if new or len(lines) > MOST_LINES:
                yield "reset", None
            elif lines:
                yield "lines", lines
            new, data = self.samples.read()
            if new or data:
                yield "samples", None
        new, data = self.log.read(LONGEST_LOG)
        if new or data:
            yield "log", {"new": new, "text": data.decode(errors="replace")}

    def changed(self) -> Iterable[tuple[str, Any]]:
        """`state`, when it is another than at the last look."""
        state = overview(self.run).as_json()
        if state != self.state:
            self.state = state
            yield "state", state
