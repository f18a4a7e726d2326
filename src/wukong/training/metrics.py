"""Metrics as JSON lines (authoritative) and as TensorBoard events (optional)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, Any

from wukong import processes
from wukong.errors import DataError
from wukong.files import atomic_open


class JsonLines:
    """A file of JSON objects, one per line, each with its "step"; a resumed run first drops those it will rewrite.

    Only the first process writes.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self._file: IO[str] | None = None
        if not processes.is_first():
            return
        kept = [record for record in read_json_lines(path) if record["step"] <= start_step]
        with atomic_open(path) as out:
            out.writelines(json.dumps(record) + "\n" for record in kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file, without one cut off by a kill -9; empty for a missing file.

    Raises DataError, with the line number, for a line that is not an object with a step.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    records = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].split(b"\n"), start=1):
        try:
            record = json.loads(line.decode()) if line else {"step": 0}
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise DataError("not a line of metrics or samples; delete it to continue", file=path, line=number)
        if line:
            records.append(record)
    return records


class MetricsLog:
    """`metrics.jsonl` of a stage, and the same as TensorBoard events.

    Every name is defined in docs/reference/metrics.md (a test checks it).
    """

    def __init__(self, directory: Path, start_step: int, tensorboard: bool) -> None:
        self._lines = JsonLines(directory / "metrics.jsonl", start_step)
        self._writer = None
        if tensorboard and processes.is_first():
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Eight significant digits each; non-finite numbers are left out, since JSON has none."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        rounded = {k: v if isinstance(v, int) else float(f"{v:.8g}") for k, v in finite.items()}
        self._lines.write({"step": step, **rounded})
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._lines.close()
        if self._writer:
            self._writer.close()


def read_metrics(directory: str | Path) -> list[dict[str, float]]:
    """The logged steps of a stage's directory; empty if it has none."""
    return read_json_lines(Path(directory) / "metrics.jsonl")
