"""The loop over records: every record of a source is kept, dropped for a stated reason, or an error.

A reader is a `Registry`, an ordered list of formats. Each record is matched separately, so a file may mix formats.
`Registry.iterate` is the only loop over records, so nothing can be lost without being counted.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError

from wukong.data.formats import Fields, Format
from wukong.data.readers import Reader
from wukong.data.row import Row
from wukong.data.sources import DataOptions, Sources, open_rows, source_list
from wukong.data.summary import Dropped, Read, ReadSummary, SourceSummary, require_one_question
from wukong.errors import DataError, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """The formats of a reader, the most specific first.

    Args:
        what: what is read, for messages ("comparisons").
        useless: returns why a record is unusable ("empty answer"), or None; applied to every format.
        key: what makes two records duplicates of each other.
    """

    def __init__(self, what: str, useless: Callable[[T], str | None], key: Callable[[T], Hashable]) -> None:
        self.what, self.useless, self.key = what, useless, key
        self.formats: list[Format[T]] = []

    def add(self, *formats: Format[T]) -> None:
        self.formats += formats

    def known(self) -> str:
        return ", ".join(dict.fromkeys(form.name for form in self.formats))

    def named(self, name: str) -> list[Format[T]]:
        """Raises UsageError for an unknown name."""
        found = [one for one in self.formats if one.name == name]
        if not found:
            raise UsageError(f"unknown format {name!r} for {self.what}; known: auto, {self.known()}")
        return found

    def recognise(self, record: Fields) -> Format[T] | None:
        return next((one for one in self.formats if one.matches(record)), None)

    def unknown(self, row: Row, candidates: list[Format[T]], before: Format[T] | None) -> DataError:
        """The error for a record that matches no format: what the nearest one lacks, or the fields found."""
        for name, column in row.lacking:
            found = ", ".join(map(str, row.fields)) or "nothing"
            return row.error(f"is missing; it was to be read as {name!r}", column, f"found: {found}")
        if not row.fields:
            return row.error(f"the record has no fields; no format of {self.what} matches")
        # Among equally near formats prefer that of the previous record, then the first, which is the most specific.
        nearest = max(candidates, key=lambda form: (*form.nearness(row.fields), form is before))
        part, _ = nearest.nearness(row.fields)
        if len(candidates) == 1 or (part >= 0.5 and not nearest.only_lacks_condition(row.fields)):
            return nearest.complaint(row)
        names = ", ".join(map(str, row.fields))
        near = f"nearest: {nearest}; " if part else ""
        return row.error(
            f"no known format of {self.what} has the fields {names}",
            hint=f"{near}known: {self.known()}; --columns NAME=COLUMN renames a field",
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
        """As `read`, one record at a time, updating `summary`; `finish` is applied to each record and may refuse it
        with DataError."""
        seen: set[bytes] = set()
        renamed: set[str] = set()
        allowed = _BadRecordLimit(options.skip_bad)
        candidates = self.formats if options.format == "auto" else self.named(options.format)
        for source in source_list(src):
            rows = open_rows(source, options.encoding, text_reader)
            for file, group in itertools.groupby(rows, key=lambda row: row.file):
                account = SourceSummary(file)
                summary.sources.append(account)
                before: Format[T] | None = None
                asked: set[tuple[str, str]] = set()
                for row in group:
                    account.read += 1
                    row.question = options.question
                    row = options.renamed(row)
                    renamed |= row.renamed
                    try:
                        form, found = self._converted(row, candidates, before)
                    except DataError as error:
                        allowed.take(error, account)
                        continue
                    before = form
                    asked |= row.asked
                    require_one_question(row, asked)
                    account.formats[form.name] += 1
                    for record in found:
                        if isinstance(record, DataError):
                            allowed.take(record, account)
                            continue
                        if finish and not isinstance(record, Dropped):
                            try:
                                record = finish(row, record)
                            except DataError as error:
                                allowed.take(error, account)
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
                    account.notes.update(row.notes)
                    account.truncated.update(row.cuts)
                    account.columns.update(sorted(row.kept))
                    account.unused.update(name for name in form.unused(row.fields) if name not in row.used | row.kept)
                    account.unused.update(row.unused.keys())
        options.check_columns(renamed, src)
        if summary.kept == 0:
            reasons = ", ".join(f"{n} {reason}" for reason, n in summary.all_dropped().items())
            raise DataError(f"no usable {self.what} (dropped: {reasons})", file=", ".join(source_list(src)))

    def _converted(
        self, row: Row, candidates: list[Format[T]], before: Format[T] | None
    ) -> tuple[Format[T], list[T | Dropped | DataError]]:
        """Raises DataError for a record of unknown format, or one that cannot be converted."""
        if row.bad is not None:
            raise row.bad
        form = next((one for one in candidates if one.matches(row.fields)), None)
        if form is None:
            raise self.unknown(row, candidates, before)
        try:
            return form, list(form.convert(row))
        except ValidationError as error:  # a value that our records do not allow, such as a negative strength
            first = error.errors()[0]
            raise row.error(first["msg"], ".".join(map(str, first["loc"])) or None) from None


@dataclass
class _BadRecordLimit:
    """The allowed number of bad records (`--skip-bad`), and the number so far."""

    granted: int
    taken: int = 0

    def take(self, error: DataError, account: SourceSummary) -> None:
        """Counts a bad record. Raises it once the limit is exceeded."""
        if self.taken == self.granted:
            hint = (
                f"more than the {self.granted} bad records that --skip-bad allows"
                if self.granted
                else "--skip-bad N skips up to N such records"
            )
            hint = f"{error.hint}; {hint}" if error.hint else hint
            raise DataError(error.problem, file=error.file, line=error.line, field=error.field, hint=hint) from None
        self.taken += 1
        account.dropped["bad record"] += 1
        account.bad.append(str(error))
