"""A project's tasks: lists, and single tasks with the place to decide them.

Lists are paged and filtered by the database; no page loads more rows than it shows.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import Field
from sqlalchemy.orm import selectinload

from wukong.errors import UsageError
from wukong.feedback.store import labels
from wukong.feedback.store.labels import NotFoundError, current, project_of
from wukong.feedback.store.tables import Label, PromptRow, Task
from wukong.feedback.store.values import FLAGS
from wukong.web.access import CHANGE, Admin
from wukong.web.inputs import ONE_OF, Count, Id, Name, WithClientId, Words, writes
from wukong.web.rendering import paging, render_page
from wukong.web.routes.labelling import Saved, progress_of
from wukong.web.state import Studio

pages = APIRouter(include_in_schema=False)
api = APIRouter(prefix="/api", tags=["studio"])
ROUTERS = (pages, api)
PAGE = 50

FILTERS = {
    "all": sa.true(),
    "open": Task.open,
    "complete": ~Task.open,
    "gold": Task.is_gold,
    "disagreement": sa.and_(Task.disagreement > 0, ~Task.adjudicated),
    "adjudicated": Task.adjudicated,
}


@pages.get("/projects/{project_id}/tasks")
def tasks(
    request: Request, project_id: Id, studio: Studio, person: Admin, show: Name = "all", q: Words = "", page: Count = 1
) -> HTMLResponse:
    if show not in FILTERS:
        raise UsageError(ONE_OF, name="show", value=show, values=", ".join(FILTERS))
    with studio.store.read() as session:
        project = project_of(session, project_id)
        query = sa.select(Task).where(Task.project_id == project_id, FILTERS[show])
        if q:
            found = sa.select(PromptRow.id).where(PromptRow.text.icontains(q, autoescape=True))
            query = query.where(Task.prompt_id.in_(found))
        count = session.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
        order = Task.disagreement.desc() if show == "disagreement" else Task.id
        place = paging(page, count, PAGE)
        query = query.order_by(order, Task.id).limit(PAGE).offset(place.before)
        rows = session.scalars(query.options(selectinload(Task.prompt))).all()
    return render_page(
        request,
        "tasks",
        person=person,
        project=project,
        rows=rows,
        count=count,
        paging=place,
        show=show,
        filters=list(FILTERS),
        q=q,
    )


@pages.get("/tasks/{task_id}")
def task_page(request: Request, task_id: Id, studio: Studio, person: Admin) -> HTMLResponse:
    """One task with every judgment of it, those that were taken back too, and the place to decide."""
    with studio.store.read() as session:
        task = session.get(Task, task_id)
        if task is None:
            raise NotFoundError("there is no such task")
        texts, messages, project = task.texts, task.prompt.messages, task.project
        sources = [one.response.model for one in task.responses]
        loaded = (
            sa.select(Label).where(Label.task_id == task_id).order_by(Label.id).options(selectinload(Label.annotator))
        )
        rows = session.scalars(loaded).all()
        counting = set(session.scalars(sa.select(Label.id).where(Label.task_id == task_id, current())))
        following = session.scalar(
            sa.select(Task.id)
            .where(Task.project_id == project.id, FILTERS["disagreement"], Task.id != task_id)
            .order_by(Task.disagreement.desc(), Task.id)
            .limit(1)
        )
    return render_page(
        request,
        "task",
        person=person,
        task=task,
        project=project,
        texts=texts,
        sources=sources,
        messages=messages,
        rows=rows,
        counting=counting,
        following=following,
        flags=FLAGS,
    )


class Decided(WithClientId):
    value: dict[str, Any]
    """With answers by their own index."""
    comment: str = Field("", max_length=labels.LONGEST_COMMENT)


@api.post("/tasks/{task_id}/adjudication", dependencies=CHANGE)
@writes
def adjudicate(task_id: Id, body: Decided, studio: Studio, person: Admin) -> Saved:
    """An admin's decision."""
    with studio.store.write() as session:
        label = labels.adjudicate(session, person, task_id, body.client_id, body.value, body.comment)
        saved = Saved(label=label.id, progress=progress_of(session, label.project_id, person))
    return saved
