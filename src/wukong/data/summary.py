"""A summary of reading: what happened to every record of every source, for the console and provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rich.markup import escape
from rich.table import Table

from wukong.data.row import Row
from wukong.errors import Text
from wukong.language import recognised, spoken

T = TypeVar("T")


@dataclass(frozen=True)
class Dropped:
    """Yielded by a converter in place of a record that is well formed but unusable."""

    reason: str


@dataclass
class SourceSummary:
    """What happened to one source's records. `dropped`, `notes` and `truncated` count by reason, `formats` by name;
    `columns` counts fields kept for rewards, `unused` nonempty fields that were not used."""

    source: str
    formats: Counter[str] = field(default_factory=Counter)
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    @property
    def format(self) -> str:
        """The formats found, the most frequent first."""
        return ", ".join(name for name, _ in self.formats.most_common())

    def events(self) -> list[str]:
        """One line per kind of event."""
        lines: list[str] = [
            *_counted("{n} dropped: {reason}", self.dropped),
            *_counted("{n} truncated: {reason}", self.truncated),
        ]
        lines += [Text("{n} x {note}", n=n, note=recognised(note)) for note, n in self.notes.items()]
        if self.columns:
            lines.append(Text("kept for rewards: {fields}", fields=_named(self.columns)))
        if self.unused:
            lines.append(Text("not used: {fields}", fields=_named(self.unused)))
        return lines + self.bad

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "format": self.format,
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "notes": dict(self.notes),
            "truncated": dict(self.truncated),
            "columns": dict(self.columns),
            "unused": dict(self.unused),
            "bad": self.bad,
        }


@dataclass
class ReadSummary:
    """What happened to all records. Stages that later shorten or remove some add to `truncated` and `dropped`."""

    sources: list[SourceSummary] = field(default_factory=list)
    truncated: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        return sum(source.kept for source in self.sources) - self.dropped.total()

    def all_dropped(self) -> Counter[str]:
        return sum((source.dropped for source in self.sources), Counter(self.dropped))

    def all_truncated(self) -> Counter[str]:
        return sum((source.truncated for source in self.sources), Counter(self.truncated))

    def as_dict(self) -> dict[str, Any]:
        """For provenance.json."""
        return {
            "kept": self.kept,
            "dropped": dict(self.all_dropped()),
            "truncated": dict(self.all_truncated()),
            "sources": [source.as_dict() for source in self.sources],
        }

    def table(self, title: str = "data") -> Table:
        """For the console: one row per source, with the reasons for which records were left out."""
        table = Table(title=spoken(title))
        for name in ("source", "format"):
            table.add_column(spoken(name), overflow="fold")
        for name in ("read", "kept", "dropped"):
            table.add_column(spoken(name), justify="right")
        table.add_column(spoken("what happened"), overflow="fold")
        for source in self.sources:
            counts = (f"{n:,}" for n in (source.read, source.kept, source.dropped.total()))
            events = "\n".join(map(spoken, source.events()))
            table.add_row(escape(source.source), source.format, *counts, escape(events))
        if self.dropped or self.truncated:
            later = [
                *_counted("{n} dropped: {reason}", self.dropped),
                *_counted("{n} truncated: {reason}", self.truncated),
            ]
            counts = (f"{n:,}" for n in (self.kept + self.dropped.total(), self.kept, self.dropped.total()))
            table.add_row(spoken("all, afterwards"), "", *counts, escape("\n".join(map(spoken, later))))
        return table


def _named(fields: Counter[str]) -> str:
    return ", ".join(f"{name} ({n})" for name, n in fields.items())


def _counted(template: str, reasons: Counter[str]) -> Iterator[Text]:
    """One line per reason."""
    for reason, n in reasons.items():
        yield Text(template, n=n, reason=recognised(reason))


@dataclass
class Read(Generic[T]):
    """A reader's result: the records, and a summary of what was left out."""

    records: list[T]
    summary: ReadSummary


def require_one_question(row: Row, asked: set[tuple[str, str]]) -> None:
    """Requires a choice between several questions: their answers are different labels.

    Args:
        asked: (kind, name) of the questions answered in this file so far; a file may hold questions of two kinds, as
            long as no record answers both.

    Raises:
        DataError: several questions, and none was chosen.
    """
    kinds = {kind for kind, _ in asked}
    several = [{name for of, name in asked if of == kind} for kind in kinds] + [{name for _, name in row.asked}]
    names = max(several, key=len)
    if len(names) > 1:
        listed = ", ".join(sorted(names))
        raise row.error(f"answers several questions: {listed}", hint="choose one with --question")
