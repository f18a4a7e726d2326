"""Reading with book-keeping: every record of a source ends as kept, dropped for a stated reason, or an error.

A reader is a `Registry`: small converters from public formats to our records, tried in order. `Registry.read`
is the only loop over records in this package, so nothing can be lost without being counted.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rich.markup import escape
from rich.table import Table

from wukong.data.sources import DataOptions, Reader, Row, Sources, open_rows, source_list
from wukong.errors import DataError, UsageError

T = TypeVar("T")
# How many records are looked at to find the format: a first record that is damaged must not decide it.
LOOKED_AT = 50


@dataclass
class SourceSummary:
    """What became of one source's records. `dropped`, `notes` and `truncated` count by reason."""

    source: str
    format: str = ""
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "format": self.format,
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "notes": dict(self.notes),
            "truncated": dict(self.truncated),
            "bad": self.bad,
        }


@dataclass
class ReadSummary:
    """What became of all records. A stage that shortens or removes some later adds to `truncated` and `dropped`."""

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
        """For the console: a line for each source, and below it each reason for which records were left out."""
        table = Table(title=title)
        for name in ("source", "format"):
            table.add_column(name, overflow="fold")
        for name in ("read", "kept", "dropped"):
            table.add_column(name, justify="right")
        table.add_column("what happened", overflow="fold")
        for source in self.sources:
            happened = [f"{n} dropped: {reason}" for reason, n in source.dropped.items()]
            happened += [f"{n} truncated: {reason}" for reason, n in source.truncated.items()]
            happened += [f"{n} x {note}" for note, n in source.notes.items()] + source.bad
            counts = map(str, (source.read, source.kept, source.dropped.total()))
            table.add_row(escape(source.source), source.format, *counts, escape("\n".join(happened)))
        if self.dropped or self.truncated:
            later = [f"{n} dropped: {reason}" for reason, n in self.dropped.items()]
            later += [f"{n} truncated: {reason}" for reason, n in self.truncated.items()]
            counts = map(str, (self.kept + self.dropped.total(), self.kept, self.dropped.total()))
            table.add_row("all, afterwards", "", *counts, "\n".join(later))
        return table


@dataclass
class Read(Generic[T]):
    """A reader's result: the records, and what became of those that are not among them."""

    records: list[T]
    summary: ReadSummary


@dataclass(frozen=True)
class Dropped:
    """What a converter yields in place of a record that is well formed but of no use."""

    reason: str


@dataclass(frozen=True)
class Format(Generic[T]):
    """A public format: its name, its fields as shown to people, how to know it, how to turn it into records."""

    name: str
    shape: str
    detect: Callable[[dict[str, Any]], bool]
    convert: Callable[[Row], Iterable[T | Dropped | DataError]]


class Registry(Generic[T]):
    """The formats that a reader knows, the most specific first.

    Args:
        what: what is read, for messages ("comparisons").
        useless: says why a record is of no use ("empty answer"), or None; applied to every format alike.
        key: what makes two records duplicates of each other.
    """

    def __init__(self, what: str, useless: Callable[[T], str | None], key: Callable[[T], Hashable]) -> None:
        self.what, self.useless, self.key = what, useless, key
        self.formats: list[Format[T]] = []

    def format(
        self, name: str, shape: str, detect: Callable[[dict[str, Any]], bool]
    ) -> Callable[
        [Callable[[Row], Iterable[T | Dropped | DataError]]], Callable[[Row], Iterable[T | Dropped | DataError]]
    ]:
        """Registers the decorated converter. A DataError that it yields is one bad item among good ones."""

        def register(
            convert: Callable[[Row], Iterable[T | Dropped | DataError]],
        ) -> Callable[[Row], Iterable[T | Dropped | DataError]]:
            self.formats.append(Format(name, shape, detect, convert))
            return convert

        return register

    def known(self) -> str:
        return ", ".join(form.name for form in self.formats)

    def named(self, name: str) -> Format[T]:
        for one in self.formats:
            if one.name == name:
                return one
        raise UsageError(f"unknown format {name!r} for {self.what}; known: auto, {self.known()}")

    def recognise(self, record: dict[str, Any]) -> Format[T] | None:
        return next((one for one in self.formats if one.detect(record)), None)

    def detect(self, rows: list[Row]) -> Format[T]:
        parsed = [row for row in rows if row.bad is None]
        for row in parsed:
            if found := self.recognise(row.fields):
                return found
        first = next(iter(parsed), None)
        if first is None:
            raise rows[0].bad or rows[0].error("cannot be read")
        raise first.error(
            f"no known format of {self.what} has the fields {', '.join(map(str, first.fields)) or '(none)'}",
            hint=f"known: {self.known()}; name one with --format, their fields are in docs/data.md",
        )

    def read(self, src: Sources, options: DataOptions, finish: Callable[[Row, T], T] | None = None) -> Read[T]:
        """All records of one or more sources. Raises DataError (file, line, field) and UsageError."""
        summary = ReadSummary()
        return Read(list(self.iterate(src, options, summary, finish)), summary)

    def iterate(
        self,
        src: Sources,
        options: DataOptions,
        summary: ReadSummary,
        finish: Callable[[Row, T], T] | None = None,
        text_reader: Reader | None = None,
    ) -> Iterator[T]:
        """As `read`, one record at a time, writing into `summary` as it goes; `finish` has the last word on each."""
        seen: set[bytes] = set()
        allowed = options.skip_bad
        chosen = None if options.format == "auto" else self.named(options.format)
        for source in source_list(src):
            for file, rows in itertools.groupby(
                open_rows(source, options.encoding, text_reader), key=lambda row: row.file
            ):
                account = SourceSummary(file)
                summary.sources.append(account)
                ahead = list(itertools.islice(rows, LOOKED_AT))
                form = chosen or self.detect(ahead)
                account.format = form.name
                asked: set[tuple[str, str]] = set()
                for row in itertools.chain(ahead, rows):
                    account.read += 1
                    row.question = options.question
                    found: list[T | Dropped | DataError] = []
                    try:
                        if row.bad is not None:
                            raise row.bad
                        found = list(form.convert(row))
                        if finish:
                            found = [o if isinstance(o, Dropped | DataError) else finish(row, o) for o in found]
                    except DataError as error:
                        found = [error]
                    account.notes.update(row.notes)
                    account.truncated.update(row.cuts)
                    asked |= row.asked
                    refuse_several(row, asked)
                    for record in found:
                        if isinstance(record, DataError):
                            if allowed == 0:
                                raise _with_hint(record, options.skip_bad) from None
                            allowed -= 1
                            account.dropped["bad record"] += 1
                            account.bad.append(str(record))
                            continue
                        reason = record.reason if isinstance(record, Dropped) else self.useless(record)
                        if reason is None and not isinstance(record, Dropped):
                            digest = hashlib.blake2b(repr(self.key(record)).encode(), digest_size=16).digest()
                            if digest not in seen:
                                seen.add(digest)
                                account.kept += 1
                                yield record
                                continue
                            reason = "duplicate"
                        account.dropped[str(reason)] += 1
        if summary.kept == 0:
            reasons = ", ".join(f"{n} {reason}" for reason, n in summary.all_dropped().items())
            raise DataError(f"no usable {self.what} (dropped: {reasons})", file=", ".join(source_list(src)))


def refuse_several(row: Row, asked: set[tuple[str, str]]) -> None:
    """Answers to different questions are different labels: never one set without somebody's choice.

    Args:
        asked: (kind, name) of the questions answered in this file so far; questions of two kinds may share it, as long
            as no record answers both.

    Raises:
        DataError: there are several, and none was chosen.
    """
    kinds = {kind for kind, _ in asked}
    several = [{name for of, name in asked if of == kind} for kind in kinds] + [{name for _, name in row.asked}]
    names = max(several, key=len)
    if len(names) > 1:
        raise row.error(f"answers several questions: {', '.join(sorted(names))}", hint="choose one with --question")


def _with_hint(error: DataError, skip_bad: int) -> DataError:
    if error.hint is not None:
        return error
    hint = (
        f"more than the {skip_bad} bad records that --skip-bad allows"
        if skip_bad
        else "--skip-bad N lets N such records pass"
    )
    return DataError(error.problem, file=error.file, line=error.line, field=error.field, hint=hint)
