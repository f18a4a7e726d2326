"""Files into the store: responses (tasks without labels), or comparisons, rankings and votes in any format that
`wukong.data` reads (our JSONL, TRL, HH, CSV, …), as tasks, as gold tasks, or with their judgments.

The whole file is read and checked before anything is written, and no transaction is open meanwhile. What it holds is
then added in short transactions, so that other writers get their turns in between. Tasks and judgments are named by
their content: a file that is imported a second time adds nothing, and after a kill only what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy.orm import Session

from wukong.data.comparisons import COMPARISONS
from wukong.data.row import Row
from wukong.data.sources import DataOptions
from wukong.data.summary import ReadSummary
from wukong.errors import DataError, Text, UsageError
from wukong.feedback.store.database import Store
from wukong.feedback.store.labels import add_label, project_of
from wukong.feedback.store.tables import Project, check_text
from wukong.feedback.store.tasks import (
    TaskDraft,
    TaskRows,
    content_hash,
    drafts_of,
    insert_tasks,
    task_of,
    task_rows,
)
from wukong.feedback.store.values import checked
from wukong.files import numbered_lines
from wukong.records import Comparison, Preference, Ranking, Response, Vote, iter_records

Use = Literal["tasks", "gold", "labels"]
Tell = Callable[[str], None]
T = TypeVar("T")

BATCH, STEP = 100, 10
"""So many tasks are added in one transaction at most, and so many by one statement."""
BATCH_SECONDS = 0.1
"""After so long a transaction ends, however few tasks it has added: others are waiting for it."""
TOLD = 500
"""Progress is told after so many records."""
MOST = 1_000_000
"""So many records, and tasks made of them, one file may hold: all are in memory until the last one is checked."""


@dataclass
class Imported:
    """What became of a file: `added` tasks are new, `happened` has a line for what was left out."""

    added: int = 0
    read: int = 0
    happened: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _NewTask:
    """A task to be added, and the judgment of it that is to become a label."""

    draft: TaskDraft
    value: dict[str, Any] | None = None
    annotator: str = ""
    seconds: float | None = None


def import_file(
    store: Store,
    project_id: int,
    path: str | Path,
    use: Use = "tasks",
    per_prompt: int = 0,
    skip_bad: int = 0,
    tell: Tell = lambda line: None,
) -> Imported:
    """Adds a file to a project.

    Args:
        path: responses.jsonl, or comparisons in any format.
        use: of comparisons, whether the answers alone are taken, or the judgment too: as the known answer of a gold
            task, or as a label by its annotator.
        per_prompt: of responses, at most so many tasks or answers a prompt (see `drafts_of`).
        skip_bad: how many unusable records may be left out.
        tell: is told how far the import has come.

    Raises:
        DataError: with file, line and field, for a record that cannot be used; then nothing is added.
    """
    with store.read() as session:
        project = project_of(session, project_id)
    imported = Imported()
    if not _holds_responses(path):
        items = _judged(project, path, use, skip_bad, imported, tell)
    elif use == "tasks":
        records = iter_records(path, Response, skip_bad, imported.happened.append)
        drafts = drafts_of(project.kind, _told(_at_most(records, path), imported, tell), per_prompt)
        items = [_NewTask(draft) for draft in _at_most(drafts, path)]
    else:
        raise UsageError("{file}: holds responses, in which nothing is judged; add them as tasks", file=Path(path).name)
    _add(store, project, items, imported, tell)
    return imported


def _at_most(found: Iterable[T], path: str | Path) -> Iterator[T]:
    for number, one in enumerate(found):
        if number == MOST:
            hint = "split it into several files"
            raise DataError("holds more than {n} records or tasks", n=MOST, file=path, hint=hint)
        yield one


def _told(records: Iterable[T], imported: Imported, tell: Tell) -> Iterator[T]:
    """The records, counted."""
    for record in records:
        imported.read += 1
        if imported.read % TOLD == 0:
            tell(Text("{n} records read", n=imported.read))
        yield record


# ------------------------------------------------------------------------------------------------------------ reading


def _holds_responses(path: str | Path) -> bool:
    try:
        record = json.loads(next((line for _, line in numbered_lines(path) if line.strip()), ""))
    except (ValueError, RecursionError, DataError):  # another kind of file, which its reader knows or refuses
        return False
    return isinstance(record, dict) and "prompt_id" in record


def _judged(
    project: Project, path: str | Path, use: Use, skip_bad: int, imported: Imported, tell: Tell
) -> list[_NewTask]:
    """Comparisons, rankings and votes as items. What the store would refuse later is a bad record here."""

    def fits(row: Row, record: Preference) -> Preference:
        if COMPARISONS.useless(record) is None:  # else it is dropped anyway
            try:
                item = _item(project.kind, record, use)
                task_rows(project, item.draft)
                check_text(item.annotator)
            except DataError as error:
                raise row.error(error.problem, error.field, error.hint) from None
        return record

    summary = ReadSummary()
    records = COMPARISONS.iterate(path, DataOptions(skip_bad=skip_bad), summary, fits)
    items = [_item(project.kind, record, use) for record in _told(_at_most(records, path), imported, tell)]
    imported.read = sum(source.read for source in summary.sources)
    imported.happened += [line for source in summary.sources for line in source.events()]
    return items


def _item(kind: str, record: Preference, use: Use) -> _NewTask:
    draft, value = _draft(kind, record)
    if use == "gold":
        draft.gold = value
    if use != "labels":
        return _NewTask(draft)
    value = checked(kind, value, len(draft.responses))
    return _NewTask(draft, value, record.annotator or "unknown", None if isinstance(record, Vote) else record.seconds)


def _draft(kind: str, record: Preference) -> tuple[TaskDraft, dict[str, Any]]:
    """A record as a task of this kind, and its judgment. The answers are sorted by their text, so that a
    comparison of the same two the other way round is the same task."""
    match record:
        case Comparison() if kind == "pairwise":
            texts = sorted((record.chosen, record.rejected))
            winner = None if record.tie else texts.index(record.chosen)
            value: dict[str, Any] = {"winner": winner, "verdict": "tie" if record.tie else "better"}
        case Ranking() if kind in ("ranking", "pairwise") and (kind == "ranking" or len(record.responses) == 2):
            texts = sorted(record.responses)
            groups = [sorted(texts.index(record.responses[i]) for i in group) for group in record.groups]
            value = {"groups": groups}
            if kind == "pairwise":
                value = {"winner": groups[0][0]} if len(groups) == 2 else {"winner": None, "verdict": "tie"}
        case Vote() if kind == "thumbs":
            texts, value = [record.response], {"vote": record.vote}
        case _:
            raise DataError(
                "a {record} cannot become a {kind} task",
                record=type(record).__name__.lower(),
                kind=kind,
                hint="choose another kind",
            )
    return TaskDraft(record.prompt, texts, source=record.source), value


# ------------------------------------------------------------------------------------------------------------- adding


def _add(store: Store, project: Project, items: list[_NewTask], imported: Imported, tell: Tell) -> None:
    done = 0
    while done < len(items):
        batch = [(item, task_rows(project, item.draft)) for item in items[done : done + BATCH]]
        with store.write() as session:
            begun, new, at = time.monotonic(), 0, 0
            # As it is now, and stays until the batch is there: its settings open and close its tasks.
            locked = project_of(session, project.id, with_for_update={"read": True})
            while at < len(batch) and time.monotonic() - begun < BATCH_SECONDS:
                step = batch[at : at + STEP]
                new += insert_tasks(session, locked, [rows for _, rows in step])
                for item, rows in step:
                    _label(session, locked, item, rows)
                at += len(step)
        done, imported.added = done + at, imported.added + new
        tell(Text("{done} of {n} tasks done, {new} of them new", done=done, n=len(items), new=imported.added))


def _label(session: Session, project: Project, item: _NewTask, rows: TaskRows) -> None:
    """The item's judgment as a label, under an id that the same judgment has whenever it is imported."""
    if item.value is None:
        return
    name = rows["task"]["external_id"]
    client_id = "import:" + content_hash(project.id, name, item.annotator, item.value)
    task = task_of(session, project, name)
    add_label(session, task, item.annotator, client_id, item.value, seconds=item.seconds)
