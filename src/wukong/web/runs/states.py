"""Runs as they lie on disk: the steps and their states.

A directory beside the studio's own run (or in `runs/`) that holds a recipe or the record of a stage is a run. A name
from outside is looked up among what is there and never becomes a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wukong.errors import RunError, WukongError
from wukong.feedback.store.labels import NotFoundError
from wukong.report.contents import RunContents, StepResult, read_steps
from wukong.report.formatting import duration
from wukong.web.runs.events import LastEvent, last_event
from wukong.web.runs.processes import RunProcess, is_running, process_of

ENDED = "the process ended unexpectedly; see the log, and start the run again to resume it"


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
    """`state`: waiting, running, stopped (half done, resumed when started), done or failed (with the `problem`)."""

    name: str
    stage: str
    state: str
    seconds: float | None = None
    problem: WukongError | None = None
    planned: bool = True
    """Whether it is one of the recipe's steps, which can be started."""
    logged: bool = False
    """Whether it has curves or samples to show."""


@dataclass(frozen=True)
class Overview:
    """A run at a moment; `problem` where a file in it is damaged, or where it failed outside of its open steps."""

    name: str
    steps: Sequence[StepState] = ()
    running: bool = False
    process: RunProcess | None = None
    """The process that works on it, when a studio started it."""
    problem: WukongError | None = None

    @property
    def startable(self) -> bool:
        return any(step.planned and step.state != "done" for step in self.steps)

    def as_json(self, t: Callable[[str | WukongError], str]) -> dict[str, Any]:
        """What a page needs to be told of a change; `t` translates texts and errors."""

        def said(error: WukongError | None) -> str:
            return t(error) if error else ""

        return {
            "running": self.running,
            "stoppable": self.process is not None,
            "asked": self.process.signals if self.process else 0,
            "startable": self.startable,
            "problem": said(self.problem),
            "steps": [
                vars(step) | {"problem": said(step.problem), "time": t(duration(step.seconds))} for step in self.steps
            ],
        }


def overview(run: Path) -> Overview:
    """The run's steps with their states: those of its recipe in order, then what else was made here."""
    try:
        contents = read_steps(run)
    except WukongError as error:
        return Overview(run.name, problem=error)
    running, process, last = is_running(run), process_of(run), last_event(run)
    done = {step.name for step in contents.steps if step.finished}
    done |= {name for name, out in contents.planned.items() if _is_report(name) and out.is_file()}
    at = next((name for name in contents.planned if name not in done), None)
    failed, problem = None, None
    if running:
        current = process is None or not process.alive or (last is not None and last.pid == process.pid)
        at = last.step if last is not None and last.working and current else at
    else:
        failed, problem = _failure(process, last, at, done)
    steps = list(_steps(contents, done, at if running else None, failed, problem))
    elsewhere = problem if failed not in {step.name for step in steps} else None
    return Overview(run.name, steps, running, process if process and process.alive else None, elsewhere)


def _steps(
    contents: RunContents, done: set[str], at: str | None, failed: str | None, problem: WukongError | None
) -> Iterable[StepState]:
    by_name = {step.name: step for step in contents.steps}
    for name in [*contents.planned, *(name for name in by_name if name not in contents.planned)]:
        step = by_name.get(name)
        state = "done" if name in done else "stopped" if step else "waiting"
        if name in (at, failed):
            state = "running" if name == at else "failed"
        yield StepState(
            name,
            step.stage if step else name.partition("_")[0],
            state,
            seconds=step.seconds if step else None,
            problem=problem if name == failed else None,
            planned=name in contents.planned,
            logged=step is not None and any((step.out / f"{file}.jsonl").is_file() for file in ("metrics", "samples")),
        )


def _is_report(step: str) -> bool:
    """A report leaves no record: it is a view, redrawn each time."""
    return step.partition("_")[0] == "report"


def _failure(
    process: RunProcess | None, last: LastEvent | None, at: str | None, done: set[str]
) -> tuple[str | None, WukongError | None]:
    """Where and why the run's last process ended before its time; (None, None) when it did not, or was asked to.

    Args:
        at: the first step that is not done.
    """
    if process is not None and (last is None or (process.pid != last.pid and process.started > last.time)):
        # It said nothing of itself: it ended at once, or is of an older version.
        reached = process.step in done if process.step else at is None
        return (None, None) if process.signals or reached else (at, RunError(ENDED))
    if last is not None and last.step not in done:
        asked = process is not None and process.pid == last.pid and process.signals
        if last.event == "failed":
            return last.step or at, last.error
        if last.working and not asked:
            return last.step, RunError(ENDED)
    return None, None


def step_or_404(run: Path, name: str) -> StepResult:
    """A step by its name; one that the recipe plans may have nothing yet.

    Raises NotFoundError for an unknown name, DataError for a damaged record.
    """
    contents = read_steps(run)
    for step in contents.steps:
        if step.name == name:
            return step
    if name in contents.planned:
        return StepResult(name, name.partition("_")[0], contents.planned[name], False, {"results": {}, "options": {}})
    raise NotFoundError("there is no such step")
