"""Background jobs of projects, at most one for each project at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from wukong.errors import UsageError, WukongError


@dataclass
class Job:
    """What a page shows of it. `lines` say how far it has come and, at its end, what it did; `error` why it failed."""

    what: str
    state: Literal["running", "done", "failed"] = "running"
    lines: list[str] = field(default_factory=list)
    error: WukongError | None = None

    def tell(self, line: str) -> None:
        """How far it has come."""
        self.lines = [line]


class Jobs:
    """The last job of each project."""

    def __init__(self) -> None:
        self._lock, self._jobs = threading.Lock(), dict[int, Job]()

    def of(self, project_id: int) -> Job | None:
        return self._jobs.get(project_id)

    def start(self, project_id: int, what: str, work: Callable[[Job], list[str]]) -> None:
        """Runs `work`, which returns what it did, in a thread. Raises UsageError when the project has a job already."""
        with self._lock:
            if (last := self._jobs.get(project_id)) is not None and last.state == "running":
                raise UsageError("something is running for this project already; wait for its end")
            job = self._jobs[project_id] = Job(what)

        def run() -> None:
            try:
                job.lines, job.state = work(job), "done"
            except WukongError as error:
                job.lines, job.error, job.state = [], error, "failed"
            except BaseException as error:
                job.lines, job.state = [f"{type(error).__name__}: {error}"], "failed"
                raise

        threading.Thread(target=run, name=f"wukong-{what}-{project_id}", daemon=True).start()
