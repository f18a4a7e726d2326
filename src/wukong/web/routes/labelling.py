"""What annotators see and send: the list of projects, the label page, and the API that the page calls (other programs
may too, with a session's cookie and CSRF token).

An annotator knows answers by the places they are shown at, never by model or index, so a judgment stays blind.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from wukong.feedback.store import labels
from wukong.feedback.store.labels import project_of
from wukong.feedback.store.queue import next_assignments, progress
from wukong.feedback.store.tables import Annotator, Assignment, Project
from wukong.feedback.store.tasks import guidelines
from wukong.feedback.store.values import FLAGS, SKIP_REASONS
from wukong.web.access import CHANGE, Person
from wukong.web.inputs import Body, Count, Id, WithClientId, writes
from wukong.web.rendering import render_page
from wukong.web.state import Studio

pages = APIRouter(include_in_schema=False)
api = APIRouter(prefix="/api", tags=["studio"])
ROUTERS = (pages, api)


class Judged(WithClientId):
    assignment: Id
    value: dict[str, Any]
    """By kind of task, with answers by the place they are shown at (docs/tools/studio.md)."""
    seconds: float | None = Field(None, ge=0)
    comment: str = Field("", max_length=labels.LONGEST_COMMENT)
    flagged: bool = False


class Skipped(WithClientId):
    assignment: Id
    reason: str = Field(min_length=1, max_length=labels.LONGEST_COMMENT)
    seconds: float | None = Field(None, ge=0)
    flagged: bool = False


class Draft(Body):
    draft: dict[str, Any]


class Progress(BaseModel):
    done: int
    left: int


class PromptTurn(BaseModel):
    role: str
    content: str


class TaskInHand(BaseModel):
    assignment: int
    kind: str
    prompt: list[PromptTurn]
    responses: list[str]
    """In the order they are to be shown in."""
    draft: dict[str, Any] | None


class Hand(BaseModel):
    tasks: list[TaskInHand]
    progress: Progress


class Saved(BaseModel):
    label: int
    progress: Progress


# ------------------------------------------------------------------------------------------------------------- pages


@pages.get("/")
def home(request: Request, studio: Studio, person: Person) -> HTMLResponse:
    with studio.store.read() as session:
        offered = sa.true() if person.role == "admin" else Project.overlap > 0
        found = session.scalars(sa.select(Project).where(offered).order_by(Project.id.desc())).all()
        rows = [{"project": project, **progress(session, project.id, person)} for project in found]
    return render_page(request, "home", person=person, rows=rows)


@pages.get("/label/{project_id}")
def label(request: Request, project_id: Id, studio: Studio, person: Person) -> HTMLResponse:
    with studio.store.read() as session:
        project = project_of(session, project_id)
        version = guidelines(session, project_id)
    return render_page(
        request, "label", person=person, project=project, guidelines=version, flags=FLAGS, reasons=SKIP_REASONS
    )


# --------------------------------------------------------------------------------------------------------------- API


def _in_hand(assignment: Assignment) -> TaskInHand:
    texts = assignment.task.texts
    return TaskInHand(
        assignment=assignment.id,
        kind=assignment.task.project.kind,
        prompt=[PromptTurn(**message) for message in assignment.task.prompt.messages],
        responses=[texts[i] for i in assignment.shown],
        draft=assignment.draft,
    )


def progress_of(session: Session, project_id: int, person: Annotator) -> Progress:
    return Progress(**progress(session, project_id, person))


@api.post("/projects/{project_id}/next", dependencies=CHANGE)
@writes
def take(project_id: Id, studio: Studio, person: Person, count: Count = 1) -> Hand:
    """The next tasks, leased to this person: those in hand first."""
    with studio.store.write() as session:
        project = project_of(session, project_id)
        found = next_assignments(session, project, person, max(1, min(count, 10)))
        return Hand(tasks=[_in_hand(one) for one in found], progress=progress_of(session, project_id, person))


@api.post("/labels", dependencies=CHANGE)
@writes
def submit(body: Judged, studio: Studio, person: Person) -> Saved:
    """A judgment. The answer comes after the commit."""
    with studio.store.write() as session:
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
        saved = Saved(label=label.id, progress=progress_of(session, label.project_id, person))
    return saved


@api.post("/skips", dependencies=CHANGE)
@writes
def skip(body: Skipped, studio: Studio, person: Person) -> Saved:
    """Leaves a task to others."""
    with studio.store.write() as session:
        label = labels.skip(
            session,
            person,
            body.assignment,
            body.client_id,
            body.reason,
            seconds=body.seconds,
            flagged=body.flagged,
        )
        saved = Saved(label=label.id, progress=progress_of(session, label.project_id, person))
    return saved


@api.post("/projects/{project_id}/undo", dependencies=CHANGE)
@writes
def undo(project_id: Id, body: WithClientId, studio: Studio, person: Person) -> Hand:
    """Takes this person's last judgment back; its task is in hand again, the judgment is its draft."""
    with studio.store.write() as session:
        found = labels.undo(session, person, project_id, body.client_id)
        hand = Hand(tasks=[_in_hand(found)], progress=progress_of(session, project_id, person))
    return hand


@api.put("/assignments/{assignment_id}/draft", dependencies=CHANGE, status_code=204)
@writes
def draft(assignment_id: Id, body: Draft, studio: Studio, person: Person) -> None:
    """Keeps an unfinished judgment."""
    with studio.store.write() as session:
        labels.save_draft(session, person, assignment_id, body.draft)


@api.get("/projects")
def projects(studio: Studio, person: Person) -> list[dict[str, Any]]:
    """The projects, with this person's progress in each."""
    with studio.store.read() as session:
        found = session.scalars(sa.select(Project).order_by(Project.id)).all()
        return [{"id": p.id, "name": p.name, "kind": p.kind, **progress(session, p.id, person)} for p in found]
