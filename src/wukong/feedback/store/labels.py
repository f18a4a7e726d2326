"""Judgments in: submitted, skipped, undone, adjudicated, imported. Nothing is ever changed, rows are only added.

Every function takes a `client_id`, chosen by the client. The same act again returns the row that is there, so a
page that heard no answer can ask until it hears one; another act under the same id is a conflict. What is acknowledged
is committed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased, joinedload

from wukong.errors import DataError, UsageError
from wukong.feedback.store.people import imported_annotator
from wukong.feedback.store.tables import (
    Annotator,
    Assignment,
    GuidelineVersion,
    Label,
    Project,
    Task,
    check_json,
    check_text,
    now,
)
from wukong.feedback.store.tasks import NEWEST_GUIDELINES
from wukong.feedback.store.values import as_shown, as_stored, checked, disagreement

LONGEST_COMMENT = 4000


class ConflictError(UsageError):
    """The request was fine once, but not any more: the task is judged already, or the client id is used."""


class NotFoundError(UsageError):
    """There is no such thing for this person."""


def project_of(session: Session, project_id: int, **lock: Any) -> Project:
    """Raises NotFoundError for a number that no project has."""
    project = session.get(Project, project_id, **lock)
    if project is None:
        raise NotFoundError("there is no such project")
    return project


def current() -> Any:
    """The condition that a label counts: given, and superseded by none."""
    later = aliased(Label)
    return sa.and_(Label.status == "given", ~sa.exists().where(later.supersedes == Label.id))


def assignment_of(session: Session, annotator: Annotator, assignment_id: int) -> Assignment:
    """This person's assignment. Raises NotFoundError for another's, or none."""
    found = session.get(Assignment, assignment_id)
    if found is None or found.annotator_id != annotator.id:
        raise NotFoundError("there is no such assignment of yours")
    return found


def submit(
    session: Session,
    annotator: Annotator,
    assignment_id: int,
    client_id: str,
    value: Mapping[str, Any],
    *,
    seconds: float | None = None,
    comment: str = "",
    flagged: bool = False,
) -> Label:
    """A judgment of the task in hand, by the places that its answers are shown at.

    Raises:
        NotFoundError: the assignment is another's.
        ConflictError: the task is judged already, or the client id is another label's.
        DataError: the value does not fit the task.
    """
    task, assignment = _taken_up(session, annotator, assignment_id)
    kind = task.project.kind
    stored = as_stored(kind, checked(kind, dict(value), len(assignment.shown)), assignment.shown)
    act = _Act("given", stored, comment, flagged, _seconds(seconds))
    if (before := _submitted(session, annotator, client_id, task.id, act)) is not None:
        return before
    if assignment.state != "leased":
        raise ConflictError("this task is judged already; undo that first")
    assignment.state, assignment.draft = "done", None
    return _add(session, task, annotator, assignment.shown, client_id, act)


def skip(
    session: Session,
    annotator: Annotator,
    assignment_id: int,
    client_id: str,
    reason: str,
    *,
    seconds: float | None = None,
    flagged: bool = False,
) -> Label:
    """The task is left to others, for a reason. Raises as `submit`."""
    task, assignment = _taken_up(session, annotator, assignment_id)
    act = _Act("skipped", None, reason, flagged, _seconds(seconds))
    if (before := _submitted(session, annotator, client_id, task.id, act)) is not None:
        return before
    if assignment.state != "leased":
        raise ConflictError("this task is judged already; undo that first")
    if not reason.strip():
        raise DataError("a task is skipped for a reason", field="reason")
    assignment.state = "skipped"
    return _add(session, task, annotator, assignment.shown, client_id, act)


def undo(session: Session, annotator: Annotator, project_id: int, client_id: str) -> Assignment:
    """Takes back this person's last judgment or skip of the project; the task is in hand again, with it as a draft.

    Raises ConflictError when there is nothing to take back.
    """
    before = _known(session, client_id)
    if before is not None:
        same = (before.annotator_id, before.project_id, before.status) == (annotator.id, project_id, "withdrawn")
        if not same:
            raise ConflictError("this client id is another label's")
        return _assigned(session, annotator, before.task_id)
    task = _locked(session, _last(session, annotator, project_id).task_id)
    last = _last(session, annotator, project_id)  # again: it may have been undone while we waited for the task
    _add(session, task, annotator, last.shown, client_id, _Act("withdrawn", last.value))
    found = _assigned(session, annotator, task.id)
    found.state, found.leased_at = "leased", now()
    found.expires_at = now() + task.project.lease_seconds
    found.draft = None if last.value is None else as_shown(task.project.kind, last.value, found.shown)
    session.flush()
    return found


def _assigned(session: Session, annotator: Annotator, task_id: int) -> Assignment:
    return session.scalars(
        sa.select(Assignment).where(Assignment.task_id == task_id, Assignment.annotator_id == annotator.id)
    ).one()


def _last(session: Session, annotator: Annotator, project_id: int) -> Label:
    later = aliased(Label)
    found = session.scalar(
        sa.select(Label)
        .join(Assignment, sa.and_(Assignment.task_id == Label.task_id, Assignment.annotator_id == Label.annotator_id))
        .where(
            Label.annotator_id == annotator.id,
            Label.project_id == project_id,
            Label.status != "withdrawn",
            ~Label.adjudicates,
            ~sa.exists().where(later.supersedes == Label.id),
        )
        .order_by(Label.id.desc())
        .limit(1)
    )
    if found is None:
        raise ConflictError("there is nothing to undo")
    return found


def save_draft(session: Session, annotator: Annotator, assignment_id: int, draft: Mapping[str, Any]) -> None:
    """Keeps an unfinished judgment, as the page has it. Raises NotFoundError, ConflictError (it is judged)."""
    assignment = assignment_of(session, annotator, assignment_id)
    if assignment.state != "leased":
        raise ConflictError("this task is judged already")
    check_json(draft)
    assignment.draft = dict(draft)
    assignment.expires_at = max(assignment.expires_at, now() + assignment.task.project.lease_seconds)


def adjudicate(
    session: Session, admin: Annotator, task_id: int, client_id: str, value: Mapping[str, Any], comment: str = ""
) -> Label:
    """An admin's decision about a task, by its answers' own indices; it supersedes an earlier decision."""
    task = _locked(session, task_id)
    n = len(task.responses)
    act = _Act("given", checked(task.project.kind, dict(value), n), comment, adjudicates=True)
    if (before := _submitted(session, admin, client_id, task.id, act)) is not None:
        return before
    return _add(session, task, admin, list(range(n)), client_id, act)


def add_label(
    session: Session,
    task: Task,
    annotator: Annotator | str,
    client_id: str,
    value: Mapping[str, Any],
    *,
    seconds: float | None = None,
    comment: str = "",
    created_at: float | None = None,
) -> tuple[Label, bool]:
    """A judgment made elsewhere, by the task's own indices; (label, whether it is new).

    Args:
        annotator: a person, or a name; an unknown name is added, without the right to sign in.
        client_id: names the judgment where it was made; known ones add nothing. Another judgment of the same task by
            the same person supersedes the earlier one.
        created_at: when it was made; now, when absent.
    """
    person = imported_annotator(session, annotator) if isinstance(annotator, str) else annotator
    task = _locked(session, task.id)
    n = len(task.responses)
    stored = checked(task.project.kind, dict(value), n)
    if (before := session.scalar(_OF_CLIENT, {"client_id": client_id})) is not None:
        if (before.task_id, before.annotator_id, before.value) != (task.id, person.id, stored):
            raise ConflictError(
                "the label {id!r} is there already, for another task, annotator or judgment", id=client_id
            )
        return before, False
    act = _Act("given", stored, comment, seconds=_seconds(seconds))
    label = _add(session, task, person, list(range(n)), client_id, act, at=created_at)
    session.execute(
        sa.update(Assignment)
        .where(Assignment.task_id == task.id, Assignment.annotator_id == person.id)
        .values(state="done", draft=None)
    )
    return label, True


# -------------------------------------------------------------------------------------------------------- the row

# Written once, with places for the values, as in `queue`.
_TASK = sa.bindparam("task", type_=sa.Integer)
_LOCKED = (
    sa.select(Task)
    .options(joinedload(Task.project, innerjoin=True))
    .with_for_update(of=Task)
    .execution_options(populate_existing=True)
)
_LOCK = _LOCKED.where(Task.id == _TASK)
_ITS = (
    Assignment.id == sa.bindparam("assignment", type_=sa.Integer),
    Assignment.annotator_id == sa.bindparam("annotator", type_=sa.Integer),
)
_LOCK_OF_ASSIGNMENT = _LOCKED.where(Task.id == sa.select(Assignment.task_id).where(*_ITS).scalar_subquery())
_ASSIGNMENT = sa.select(Assignment).where(*_ITS).execution_options(populate_existing=True)
_OF_CLIENT = sa.select(Label).where(Label.client_id == sa.bindparam("client_id"))
_CURRENT = sa.select(Label).where(Label.task_id == _TASK, current())


@cache
def _before(adjudicates: bool) -> sa.Select[int | None, int | None]:
    """The newest guidelines, and the label that a new one of the same person and task supersedes; a decision supersedes
    another admin's, too."""
    later = aliased(Label)
    query = sa.select(Label.id).where(
        Label.task_id == _TASK,
        Label.adjudicates == adjudicates,
        ~sa.exists().where(later.supersedes == Label.id),
    )
    if not adjudicates:
        query = query.where(Label.annotator_id == sa.bindparam("annotator", type_=sa.Integer))
    last = query.order_by(Label.id.desc()).limit(1)
    guideline = NEWEST_GUIDELINES.with_only_columns(GuidelineVersion.id)
    return sa.select(guideline.scalar_subquery(), last.scalar_subquery())


def _taken_up(session: Session, annotator: Annotator, assignment_id: int) -> tuple[Task, Assignment]:
    """The task, locked as by `_locked`, and then this person's assignment as it is now. Raises NotFoundError."""
    values = {"assignment": assignment_id, "annotator": annotator.id}
    task = session.scalar(_LOCK_OF_ASSIGNMENT, values)
    if task is None:
        raise NotFoundError("there is no such assignment of yours")
    return task, session.scalars(_ASSIGNMENT, values).one()


def _locked(session: Session, task_id: int) -> Task:
    """The task, locked until the transaction ends."""
    task = session.scalar(_LOCK, {"task": task_id})
    if task is None:
        raise NotFoundError("there is no such task")
    return task


@dataclass(frozen=True)
class _Act:
    """What somebody says of a task: two acts under one client id are the same one, or a conflict."""

    status: str
    value: dict[str, Any] | None
    comment: str = ""
    flagged: bool = False
    seconds: float | None = None
    adjudicates: bool = False

    @classmethod
    def of(cls, label: Label) -> _Act:
        return cls(label.status, label.value, label.comment, label.flagged, label.seconds, label.adjudicates)


def _seconds(given: float | None) -> float | None:
    """The time taken, at most a day; DataError for what is no time."""
    if given is None:
        return None
    if not math.isfinite(given):
        raise DataError("is not a finite number", field="seconds")
    return max(0.0, min(float(given), 86400.0))


def _known(session: Session, client_id: str) -> Label | None:
    """The label of this client id. Raises DataError for an id that none may have."""
    if not 8 <= len(client_id) <= 200:
        raise DataError("must have 8 to 200 characters", field="client_id")
    check_text(client_id)
    return session.scalar(_OF_CLIENT, {"client_id": client_id})


def _submitted(session: Session, annotator: Annotator, client_id: str, task_id: int, act: _Act) -> Label | None:
    """The label of this client id, when it is the same act. Raises ConflictError when it is another."""
    found = _known(session, client_id)
    if found is not None and (found.annotator_id, found.task_id, _Act.of(found)) != (annotator.id, task_id, act):
        raise ConflictError("this client id is another label's")
    return found


def _add(
    session: Session,
    task: Task,
    annotator: Annotator,
    shown: Sequence[int],
    client_id: str,
    act: _Act,
    *,
    at: float | None = None,
) -> Label:
    """Adds the row, behind the last one of the same person and task, and brings the task up to date with it."""
    if len(act.comment) > LONGEST_COMMENT:
        raise DataError("has more than {n} characters", n=LONGEST_COMMENT, field="comment")
    values = {"project": task.project_id, "task": task.id, "annotator": annotator.id}
    guideline_id, supersedes = session.execute(_before(act.adjudicates), values).one()
    label = Label(
        client_id=client_id,
        task_id=task.id,
        project_id=task.project_id,
        annotator_id=annotator.id,
        status=act.status,
        value=act.value,
        shown=list(shown),
        seconds=act.seconds,
        comment=act.comment,
        flagged=act.flagged,
        adjudicates=act.adjudicates,
        guideline_id=guideline_id,
        supersedes=supersedes,
        created_at=now() if at is None else at,
    )
    session.add(label)
    session.flush()
    _bring_up_to_date(session, task)
    return label


def _bring_up_to_date(session: Session, task: Task) -> None:
    labels = session.scalars(_CURRENT, {"task": task.id}).all()
    given = [label.value for label in labels if not label.adjudicates and label.value is not None]
    task.n_labels = len(given)
    task.open = task.n_labels < task.project.overlap
    task.disagreement = disagreement(task.project.kind, given)
    task.adjudicated = any(label.adjudicates for label in labels)
    session.flush()
