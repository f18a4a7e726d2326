"""Files that grow: what is new in them, and a run's metrics, samples and log as a page follows them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wukong.errors import DataError, WukongError
from wukong.report.contents import StepResult
from wukong.report.figures import points_of, thinned
from wukong.report.training import chart_plan
from wukong.training.metric_definitions import definition
from wukong.web.runs.states import overview

LONGEST_LOG = 1 << 16
"""Bytes of a log that are shown: the last ones."""
MOST_LINES = 400
"""When there are more new lines than this, the page is told to fetch the thinned curves again."""


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
        raise DataError("not valid JSON: {reason}", reason=error, file=path) from None
    if not all(isinstance(line, dict) for line in lines):
        raise DataError("a line is no JSON object", file=path)
    return lines


def curves(step: StepResult) -> dict[str, Any]:
    """Every metric the step logged, as charts in the order of their definitions.

    Returns:
        `charts`, each with a heading, a unit and its metrics (name, definition, what to watch for, and x and y, thinned
        to some hundred points); the last `step`; and `at`, the place from which `Watch` continues.
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
        step: the step whose curves are watched, if any.
        place: where an earlier watch (its `place`), or the page's own reading, stopped.
        t: translates texts and errors.
    """

    def __init__(
        self, run: Path, step: StepResult | None, place: str = "", t: Callable[[str | WukongError], str] = str
    ) -> None:
        metrics, _, log = place.partition(".")
        self.run, self.t = run, t
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
        """`lines` of metrics, `reset` (fetch the curves again), `samples` (there are new ones), `log` (text)."""
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
        state = overview(self.run).as_json(self.t)
        if state != self.state:
            self.state = state
            yield "state", state
