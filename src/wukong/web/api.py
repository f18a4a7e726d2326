"""The JSON API: what the label page calls, and what another program may (with a session's cookie and CSRF token).

An annotator knows answers by the places they are shown at, never by model or index, so a judgment stays blind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from wukong.feedback.agreement import summary
from wukong.feedback.store import labels
from wukong.feedback.store.exchange import SUFFIX, Form, Judgments, export_file, judgments_of
from wukong.feedback.store.labels import NotFoundError
from wukong.feedback.store.queue import next_assignments, progress
from wukong.feedback.store.tables import Annotator, Assignment, Project
from wukong.web.access import Admin, AStore, Person, csrf_header
from wukong.web.inputs import Body, Count, Id, writes

router = APIRouter(prefix="/api", tags=["studio"])
CHANGE = [Depends(csrf_header)]


class Act(Body):
    client_id: str = Field(min_length=8, max_length=200)
    """A random id: the same one again, after an answer that was lost, adds nothing."""


class Judged(Act):
    assignment: Id
    value: dict[str, Any]
    """By kind of task, with answers by the place they are shown at (docs/tools/studio.md)."""
    seconds: float | None = Field(None, ge=0)
    comment: str = Field("", max_length=labels.LONGEST_COMMENT)
    flagged: bool = False


class Skipped(Act):
    assignment: Id
    reason: str = Field(min_length=1, max_length=labels.LONGEST_COMMENT)
    seconds: float | None = Field(None, ge=0)
    flagged: bool = False


class Decided(Act):
    value: dict[str, Any]
    """With answers by their own index."""
    comment: str = Field("", max_length=labels.LONGEST_COMMENT)


class Draft(Body):
    draft: dict[str, Any]


class Progress(BaseModel):
    done: int
    left: int


class Turn(BaseModel):
    role: str
    content: str


class TaskInHand(BaseModel):
    assignment: int
    kind: str
    prompt: list[Turn]
    responses: list[str]
    """In the order they are to be shown in."""
    draft: dict[str, Any] | None


class Hand(BaseModel):
    tasks: list[TaskInHand]
    progress: Progress


class Saved(BaseModel):
    label: int
    progress: Progress


def project_or_404(session: Session, project_id: int) -> Project:
    project = session.get(Project, project_id)
    if project is None:
        raise NotFoundError("there is no such project")
    return project


def _in_hand(assignment: Assignment) -> TaskInHand:
    texts = assignment.task.texts
    return TaskInHand(
        assignment=assignment.id,
        kind=assignment.task.project.kind,
        prompt=[Turn(**message) for message in assignment.task.prompt.messages],
        responses=[texts[i] for i in assignment.shown],
        draft=assignment.draft,
    )


def _progress(session: Session, project_id: int, person: Annotator) -> Progress:
    return Progress(**progress(session, project_id, person))


@router.post("/projects/{project_id}/next", dependencies=CHANGE)
@writes
def take(project_id: Id, store: AStore, person: Person, count: Count = 1) -> Hand:
    """The next tasks, leased to this person: those in hand first."""
    with store.write() as session:
        project = project_or_404(session, project_id)
        found = next_assignments(session, project, person, max(1, min(count, 10)))
        return Hand(tasks=[_in_hand(one) for one in found], progress=_progress(session, project_id, person))


@router.post("/labels", dependencies=CHANGE)
@writes
def submit(body: Judged, store: AStore, person: Person) -> Saved:
    """A judgment. The answer comes after the commit."""
    with store.write() as session:
        label = labels.submit(
            session,
            person,
            body.assignment,
            body.client_id,
            body.value,
            seconds=body.seconds,
            comment=body.comment,
            flagged=body.flagged,
        )
        saved = Saved(label=label.id, progress=_progress(session, label.project_id, person))
    return saved


@router.post("/skips", dependencies=CHANGE)
@writes
def skip(body: Skipped, store: AStore, person: Person) -> Saved:
    """Leaves a task to others."""
    with store.write() as session:
        label = labels.skip(
            session,
            person,
            body.assignment,
            body.client_id,
            body.reason,
            seconds=body.seconds,
            flagged=body.flagged,
        )
        saved = Saved(label=label.id, progress=_progress(session, label.project_id, person))
    return saved


@router.post("/projects/{project_id}/undo", dependencies=CHANGE)
@writes
def undo(project_id: Id, body: Act, store: AStore, person: Person) -> Hand:
    """Takes this person's last judgment back; its task is in hand again, the judgment is its draft."""
    with store.write() as session:
        found = labels.undo(session, person, project_id, body.client_id)
        hand = Hand(tasks=[_in_hand(found)], progress=_progress(session, project_id, person))
    return hand


@router.put("/assignments/{assignment_id}/draft", dependencies=CHANGE, status_code=204)
@writes
def draft(assignment_id: Id, body: Draft, store: AStore, person: Person) -> None:
    """Keeps an unfinished judgment."""
    with store.write() as session:
        labels.save_draft(session, person, assignment_id, body.draft)


@router.post("/tasks/{task_id}/adjudication", dependencies=CHANGE)
@writes
def adjudicate(task_id: Id, body: Decided, store: AStore, person: Admin) -> Saved:
    """An admin's decision."""
    with store.write() as session:
        label = labels.adjudicate(session, person, task_id, body.client_id, body.value, body.comment)
        saved = Saved(label=label.id, progress=_progress(session, label.project_id, person))
    return saved


@router.get("/projects")
def projects(store: AStore, person: Person) -> list[dict[str, Any]]:
    """The projects, with this person's progress in each."""
    with store.read() as session:
        found = session.scalars(sa.select(Project).order_by(Project.id)).all()
        return [{"id": p.id, "name": p.name, "kind": p.kind, **progress(session, p.id, person)} for p in found]


@router.get("/projects/{project_id}/quality")
def quality(project_id: Id, store: AStore, person: Admin) -> dict[str, Any]:
    """Agreement, alpha, and each annotator's figures."""
    with store.read() as session:
        return summary(judgments_of(session, project_or_404(session, project_id)))


@router.get("/projects/{project_id}/export")
def export(
    project_id: Id, store: AStore, person: Admin, form: Form = "wukong", judgments: Judgments = "all"
) -> StreamingResponse:
    """The labels as a file, in the form that `wukong reward` and others read."""
    directory = tempfile.TemporaryDirectory(prefix="wukong-export-")
    path = Path(directory.name) / f"labels.{SUFFIX[form]}"
    with store.read() as session:
        project = project_or_404(session, project_id)
        export_file(session, project, path, form, judgments)
        name = f"project-{project.id}-{form}-{judgments}.{SUFFIX[form]}"

    def parts() -> Iterator[bytes]:
        with directory, path.open("rb") as file:
            while part := file.read(1 << 16):
                yield part

    kind = "text/csv" if form == "csv" else "application/x-ndjson"
    return StreamingResponse(
        parts(), media_type=f"{kind}; charset=utf-8", headers={"content-disposition": f'attachment; filename="{name}"'}
    )
