"""Metrics as JSON lines (the truth) and as TensorBoard events (for those who like them)."""

from __future__ import annotations

import json
from pathlib import Path

from wukong.files import atomic_open


class MetricsLog:
    """Appends to `metrics.jsonl`, one object a logged step; a resumed run first drops the steps it will do again.

    Every name is defined in docs/metrics.md (a test checks it).
    """

    def __init__(self, directory: Path, start_step: int, tensorboard: bool) -> None:
        self.path = directory / "metrics.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] <= start_step]
        with atomic_open(self.path) as out:
            out.writelines(line + "\n" for line in kept)
        self._file = self.path.open("a", encoding="utf-8")
        self._writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start_step)

    def _lines(self) -> list[str]:
        """The complete lines; one cut off by a kill -9 is left out."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        return text[: text.rfind("\n") + 1].splitlines()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in metrics.items()}}) + "\n")
        self._file.flush()
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._writer:
            self._writer.close()


def read_metrics(directory: str | Path) -> list[dict[str, float]]:
    """The logged steps of a stage's directory; empty when it has none."""
    path = Path(directory) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
