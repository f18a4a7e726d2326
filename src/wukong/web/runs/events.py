"""What `wukong run` last said of itself in a run's `events.jsonl` (its format: `wukong.events`).

Runs of older versions have none; they are shown by their results alone.
"""

from __future__ import annotations

import json
import os
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wukong.errors import RunError, Text, WukongError
from wukong.places import EVENTS

READ_BYTES = 1 << 18
"""So much of the end is read. An event is far shorter, whatever error it tells of."""
WORKING = ("started", "progress")


@dataclass(frozen=True)
class LastEvent:
    """Where a run is, or how it ended.

    Attributes:
        event: started, progress, finished, skipped, failed or interrupted.
        step: the step's name; None where the checks before the first step failed.
        error: why it failed.
    """

    event: str
    pid: int
    time: float
    step: str | None
    error: WukongError | None = None

    @property
    def working(self) -> bool:
        """Whether a step had begun and not ended: the process is at it, or was killed."""
        return self.event in WORKING


def last_event(run: Path) -> LastEvent | None:
    """The last complete event; None for a run without any, or where the file cannot be read."""
    try:
        with (run / EVENTS).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - READ_BYTES))
            lines = file.read().split(b"\n")[:-1]  # the rest is a line that is being written, or was never finished
    except OSError:
        return None
    return next((event for line in reversed(lines) if (event := _event(line)) is not None), None)


def _event(line: bytes) -> LastEvent | None:
    """None for a line that is torn or damaged."""
    try:
        content = json.loads(line)
        step = content["step"]
        error = _error(content) if content["event"] == "failed" else None
        return LastEvent(
            str(content["event"]),
            int(content["pid"]),
            float(content["time"]),
            None if step is None else str(step),
            error,
        )
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _error(content: dict[str, Any]) -> WukongError:
    """The error, with its template if that can be filled in, else as it was printed."""
    try:
        return RunError(_text(content))
    except (ValueError, TypeError, KeyError, RecursionError):
        return RunError(str(content["message"]))


def _text(content: dict[str, Any]) -> Text:
    """The inverse of `Text.as_json`. Raises ValueError, TypeError or KeyError for what it did not make."""
    template, given = str(content["template"]), content["values"]
    if not isinstance(given, dict):
        raise TypeError("values are no object")
    values = {name: _text(value) if isinstance(value, dict) else value for name, value in given.items()}
    if values:
        _check_plain(template)
    return Text(template, **values)


def _check_plain(template: str) -> None:
    """A run may come from anywhere: its templates reach no attribute of a value, and fill in no endless padding."""
    for _, name, form, _ in string.Formatter().parse(template):
        if name is not None and not (name.isidentifier() and len(form or "") <= 4 and "{" not in (form or "")):
            raise ValueError(f"not a plain template: {template!r}")
