"""The output of a running command: a progress bar with rate and time left, and plain lines in a log."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wukong import processes
from wukong.errors import Text, WukongError
from wukong.language import spoken

NARROWEST, WIDEST = 40, 500
"""Columns. Fewer leave no room for a word (and layout never finishes); with more, rules exhaust the memory."""


def _width() -> int | None:
    """$COLUMNS limited to a usable width; None, if it is not a number above 0, leaves the width to the terminal."""
    given = os.environ.get("COLUMNS", "")
    return min(max(int(given[:6]), NARROWEST), WIDEST) if given.isdecimal() and given.strip("0") else None


@contextlib.contextmanager
def readable_width() -> Iterator[None]:
    """Within the block, $COLUMNS is a usable width for help texts, whatever the terminal's width."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(_width() or min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


class _Console(Console):
    """Only the first process prints. Checked each time: this module may be imported before the process joins a
    job."""

    @property
    def quiet(self) -> bool:
        return self._silenced or not processes.is_first()

    @quiet.setter
    def quiet(self, silenced: bool) -> None:
        self._silenced = silenced


console = _Console(width=_width(), stderr=True, highlight=False)
"""Everything for people goes to standard error; standard output carries results only."""

LINE_SECONDS = 20.0
"""Without a terminal (a log file, CI), a line this often replaces the bar."""


def say(text: str | WukongError, /, **values: Any) -> None:
    """One line for people, in the terminal's language; `values` fill in the text's `{places}`."""
    console.print(spoken(text, **values), markup=False, soft_wrap=True)


def duration(seconds: float) -> Text:
    """Seconds for people: 0.4 s, 12 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 59.5:
        return Text("{seconds} s", seconds=f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:.0f}")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return Text("{hours} h {minutes:02} min", hours=hours, minutes=minutes)
    return Text("{minutes} min {seconds:02} s", minutes=minutes, seconds=rest)


_report_progress: Callable[[int, int], None] | None = None


@contextlib.contextmanager
def progress_reported_to(report: Callable[[int, int], None]) -> Iterator[None]:
    """Within the block, every bar also calls `report` with (units done, total units)."""
    global _report_progress  # noqa: PLW0603
    before, _report_progress = _report_progress, report
    try:
        yield
    finally:
        _report_progress = before


class Bar:
    """A progress bar on a terminal; elsewhere a line every `LINE_SECONDS`.

    Args:
        title: what is being done: a `Text`, or a name that is the same in every language.
        total: the number of units; 0 if unknown.
        unit: the name of one unit ("step", "response").
        done: units done before this process started (a resumed run).
    """

    def __init__(self, title: str, total: int, unit: str = "step", done: int = 0) -> None:
        self.title = title if isinstance(title, Text) else Text("{name}", name=title)
        self.total, self.unit, self.done = total, unit, done
        self._begin, self._first, self._last_line = time.monotonic(), done, time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal and not console.quiet:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn(spoken("left")),
                TimeRemainingColumn(),
            )
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                *columns,
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self._task = self._progress.add_task(spoken(self.title), total=total or None, completed=done, note="")

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        elif kind is None and not console.quiet:
            self._line()

    def advance(self, units: int = 1, **notes: float) -> None:
        """Advances the bar; `notes` are shown next to it."""
        self.done += units
        if _report_progress is not None:
            _report_progress(self.done, self.total)
        note = "  ".join(f"{name} {value:,.4g}" for name, value in notes.items())
        if self._progress:
            self._progress.update(self._task, completed=self.done, note=note)
        elif not console.quiet and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._line(note)

    def _line(self, note: str = "") -> None:
        self._last_line = time.monotonic()
        seconds = self._last_line - self._begin
        rate = (self.done - self._first) / max(seconds, 1e-9)
        rest = (self.total - self.done) / max(rate, 1e-9)
        left = Text("{time} left", time=duration(rest)) if rate else Text("time left unknown")
        count = f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        line = spoken(
            "{title}: {count} {units}, {rate:,.1f}/s, {time}",
            title=self.title,
            count=count,
            units=Text(f"{self.unit}s"),
            rate=rate,
            time=left if self.done < self.total else duration(seconds),
        )
        print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------------- what went wrong

_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}


def machine_trouble(error: BaseException) -> str | None:
    """One line for an error caused by the machine, not by a bug; None for any other."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if processes.is_peer_loss(error):
        return "another process of this job has ended; run the same command to resume from the last checkpoint"
    if isinstance(error, OSError) and error.errno in _REFUSED:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{os.strerror(error.errno)}; finished work is kept; run the same command to resume"
    if "No space left on device" in text or "os error 28" in text:  # libraries that wrap the system's error
        return f"the disk is full ({text}); make room, then run the same command to resume"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory ({text}); lower --micro-batch-tokens or the batch size"
    return None
