"""What people said, as files: our JSONL, TRL, HH, and a CSV of every row, the superseded ones too."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session, selectinload

from wukong.data.trl import as_trl, pairs_of
from wukong.feedback.agreement import Judgment
from wukong.feedback.consensus import decide
from wukong.feedback.store.chats import votes
from wukong.feedback.store.labels import current
from wukong.feedback.store.tables import (
    Annotator,
    GuidelineVersion,
    Label,
    Project,
    PromptRow,
    ResponseRow,
    Task,
    TaskResponse,
    VoteRow,
)
from wukong.files import atomic_open
from wukong.records import Comparison, Message, Preference, Ranking, Vote

Form = Literal["wukong", "trl", "hh", "csv"]
Judgments = Literal["all", "majority"]

SUFFIX: dict[Form, str] = {"wukong": "jsonl", "trl": "jsonl", "hh": "jsonl", "csv": "csv"}


def labelled(session: Session, project: Project) -> Iterator[tuple[Task, list[Label]]]:
    """Every task that somebody judged, with the labels that count, the tasks in order."""
    last = 0
    while True:
        some = sa.exists().where(Label.task_id == Task.id)
        tasks = session.scalars(
            sa.select(Task)
            .where(Task.project_id == project.id, Task.id > last, some)
            .order_by(Task.id)
            .limit(500)
            .options(selectinload(Task.prompt), selectinload(Task.responses).selectinload(TaskResponse.response))
        ).all()
        if not tasks:
            return
        last = tasks[-1].id
        labels: dict[int, list[Label]] = {task.id: [] for task in tasks}
        query = sa.select(Label).where(Label.task_id.in_(labels), current()).order_by(Label.id)
        for label in session.scalars(query.options(selectinload(Label.annotator))):
            labels[label.task_id].append(label)
        yield from ((task, labels[task.id]) for task in tasks if labels[task.id])


def judgments_of(session: Session, project: Project) -> list[Judgment]:
    """The labels that count, without the admins' decisions, as the statistics take them."""
    return [
        Judgment(task.id, one.annotator.name, project.kind, one.value, one.shown, one.seconds, task.gold)
        for task, labels in labelled(session, project)
        for one in labels
        if not one.adjudicates and one.value is not None
    ]


def records(session: Session, project: Project, judgments: Judgments = "all") -> Iterator[Preference]:
    """The labels that count as records: everybody's, or one decision a task.

    A decision is the adjudication where there is one, else the majority (`wukong.feedback.consensus`). Gold tasks are
    tests of the annotators, and left out.
    """
    for task, labels in labelled(session, project):
        if task.is_gold:
            continue
        final = [label for label in labels if label.adjudicates]
        if judgments == "majority" and final:
            labels = final
        found = [record for label in labels for record in _records(task, label)]
        yield from decide(found) if judgments == "majority" and not final else found


def _records(task: Task, label: Label) -> Iterator[Preference]:
    value, texts = label.value or {}, task.texts
    prompt = [Message.model_validate(m) for m in task.prompt.messages]
    source = f"studio:{task.project.name}"
    who = label.annotator.name
    match task.project.kind:
        case "pairwise":
            winner = value["winner"]
            yield Comparison(
                prompt=prompt,
                chosen=texts[winner or 0],
                rejected=texts[1 - (winner or 0)],
                strength=None if winner is None else value["strength"],
                tie=winner is None,
                annotator=who,
                source=source,
                seconds=label.seconds,
            )
        case "ranking" | "likert" if len(texts) > 1:
            groups = value["groups"] if "groups" in value else _by_score(value["ratings"])
            yield Ranking(
                prompt=prompt, responses=texts, groups=groups, annotator=who, source=source, seconds=label.seconds
            )
        case "thumbs":
            yield Vote(prompt=prompt, response=texts[0], vote=value["vote"], annotator=who, source=source)


def _by_score(ratings: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Ratings as a ranking: equal scores are tied."""
    scores = [rating["score"] for rating in ratings]
    return [[i for i, s in enumerate(scores) if s == score] for score in sorted(set(scores), reverse=True)]


def export_file(
    session: Session, project: Project, path: str | Path, form: Form = "wukong", judgments: Judgments = "all"
) -> int:
    """Writes the project's labels; returns how many records. TRL and HH know pairs only: a ranking becomes all its
    pairs, ties and thumbs are left out of HH, thumbs become TRL's unpaired votes."""
    if form == "csv":
        return _write_csv(session, project, path)
    count = 0
    with atomic_open(path) as out:
        for record in records(session, project, judgments):
            for line in _lines(record, form):
                out.write(line + "\n")
                count += 1
    return count


def _lines(record: Preference, form: Form) -> Iterator[str]:
    if form == "wukong":
        yield record.model_dump_json(exclude_none=True)
        return
    if form == "trl":
        yield from map(_json, as_trl([record]))
        return
    asked = "".join(f"\n\n{'Assistant' if m.role == 'assistant' else 'Human'}: {m.content}" for m in record.prompt)
    for chosen, rejected in pairs_of(record):
        yield _json({"chosen": f"{asked}\n\nAssistant: {chosen}", "rejected": f"{asked}\n\nAssistant: {rejected}"})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


CSV_COLUMNS = [
    "label_id", "created_at", "task_id", "annotator", "status", "counts", "adjudicates", "value", "shown", "seconds",
    "flagged", "comment", "supersedes", "guidelines_version", "prompt", "responses", "models", "client_id",
]  # fmt: skip


def _write_csv(session: Session, project: Project, path: str | Path) -> int:
    """Every row of the label table, whether it counts or not: what an audit needs."""
    count, last = 0, 0
    versions = dict(session.execute(sa.select(GuidelineVersion.id, GuidelineVersion.version)).all())
    names = dict(session.execute(sa.select(Annotator.id, Annotator.name)).all())
    counting = set(session.scalars(sa.select(Label.id).where(Label.project_id == project.id, current())))
    with atomic_open(path) as out:
        writer = csv.writer(out)
        writer.writerow(CSV_COLUMNS)
        while True:
            query = (
                sa.select(Label).where(Label.project_id == project.id, Label.id > last).order_by(Label.id).limit(500)
            )
            answers = selectinload(Label.task).selectinload(Task.responses).selectinload(TaskResponse.response)
            labels = session.scalars(query.options(answers)).all()
            if not labels:
                return count
            last = labels[-1].id
            for label in labels:
                writer.writerow(
                    [
                        label.id,
                        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(label.created_at)),
                        label.task_id,
                        _cell(names[label.annotator_id]),
                        label.status,
                        label.id in counting,
                        label.adjudicates,
                        _json(label.value),
                        _json(label.shown),
                        "" if label.seconds is None else round(label.seconds, 2),
                        label.flagged,
                        _cell(label.comment),
                        label.supersedes or "",
                        versions.get(label.guideline_id, "") if label.guideline_id else "",
                        _json(label.task.prompt.messages),
                        _json(label.task.texts),
                        _json([one.response.model for one in label.task.responses]),
                        _cell(label.client_id),
                    ]
                )
                count += 1


VOTE_COLUMNS = ["vote_id", "created_at", "annotator", "vote", "reason", "prompt", "response", "model", "client_id"]


def export_votes(session: Session, path: str | Path, form: Literal["wukong", "trl", "csv"]) -> int:
    """Writes the chat's thumbs; returns how many. CSV has every row, also those that a later one replaced."""
    count = 0
    with atomic_open(path) as out:
        if form != "csv":
            for vote in votes(session):
                for line in _lines(vote, form):
                    out.write(line + "\n")
                    count += 1
            return count
        writer = csv.writer(out)
        writer.writerow(VOTE_COLUMNS)
        query = (
            sa.select(VoteRow, ResponseRow, PromptRow.messages, Annotator.name)
            .join(ResponseRow, ResponseRow.id == VoteRow.response_id)
            .join(PromptRow, PromptRow.id == ResponseRow.prompt_id)
            .join(Annotator, Annotator.id == VoteRow.annotator_id)
            .order_by(VoteRow.id)
        )
        for vote, response, messages, name in session.execute(query):
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(vote.created_at))
            row = [vote.id, when, _cell(name), vote.vote, _cell(vote.reason), _json(messages), _cell(response.text)]
            writer.writerow([*row, _cell(response.model), _cell(vote.client_id)])
            count += 1
    return count


def _cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula, which could send the table elsewhere."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
