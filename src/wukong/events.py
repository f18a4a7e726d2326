"""The events of a run, one JSON object per line: `events.jsonl` in the run directory, which the studio reads.

Every line has `time` (seconds since 1970), `pid` and `event`; an event of a step also has its name (`step`), its
`number` and the number of steps (`of`):

    started      the step begins
    progress     `done` of `total` units, 0 if unknown; at most one every two seconds
    finished     after `seconds`
    skipped      the step was done already
    failed       `message`, `template` and `values` (wukong.errors.Text), `exit_code`, and `redo`: the step for which
                 `--redo STEP` is the remedy, else null; `step` is null if the checks before the first step failed
    interrupted  by Ctrl-C or SIGTERM

A killed process leaves no last event. It may leave half a line, which readers ignore.

This is a log, not a result: two runs with the same results differ in it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from wukong import processes
from wukong.console import machine_trouble, say
from wukong.errors import Text, WukongError, printable
from wukong.places import EVENTS

PROGRESS_SECONDS = 2.0
"""Minimum time between progress events."""


class EventLog:
    """Appends to a run directory's events, in the first process only. A write error is reported once and does not stop
    the run."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / EVENTS
        self._step: dict[str, Any] = {"step": None}
        self._last_progress = 0.0
        self._refused = False

    def start(self, step: str, number: int, of: int) -> None:
        """Starts a step, to which later events belong."""
        self._step = {"step": step, "number": number, "of": of}

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            self.write("progress", done=done, total=total)

    def failed(self, error: BaseException) -> None:
        """Records an error as it is printed."""
        if isinstance(error, WukongError):
            message, said, code = str(error), error.text, error.exit_code
        else:
            said, code = Text(machine_trouble(error) or f"{type(error).__name__}: {error}"), 1
            message = printable(said)
        self.write("failed", message=message, **said.as_json(), exit_code=code, redo=_to_redo(said))

    def write(self, event: str, **fields: Any) -> None:
        if not processes.is_first() or self._refused:
            return
        content = {"time": time.time(), "pid": os.getpid(), "event": event, **self._step, **fields}
        finite = json.loads(json.dumps(content), parse_constant=str)  # nan is not JSON
        try:
            with self.path.open("ab+") as file:
                file.seek(max(file.tell() - 1, 0))
                torn = file.read(1) not in (b"", b"\n")  # a writer was killed in the middle of a line
                file.write(b"\n" * torn + json.dumps(finite, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            self._refused = True
            say(
                "warning: {path} cannot be written ({strerror}); the studio cannot follow this run",
                path=self.path,
                strerror=error.strerror,
            )


def _to_redo(said: Text) -> str | None:
    """The step that `wukong.recipe.named` added to an error that `--redo` remedies."""
    problem = said.values.get("problem")
    return str(said.values["step"]) if isinstance(problem, Text) and "redo" in problem.values else None
