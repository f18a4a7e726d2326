"""Who gets which task next.

A task is handed out while its labels and the unexpired leases of others are fewer than the project's overlap, and
never twice to one person. Higher priorities come first, then, with active selection, what the reward models are
least sure of, then each annotator's own random order. A closed laptop blocks nothing: its lease expires, and the task
goes to another person; a label that arrives later is kept all the same.

The random order is drawn task by task: tasks lie on a ring by their `shuffle`, and the next one is the first that may
be had from a random point on. With an index over the ring that reads a few rows; sorting thousands of tasks for
every request took most of the server's time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased, joinedload

from wukong.feedback.store.tables import Annotator, Assignment, Project, Task, now
from wukong.feedback.store.tasks import SHUFFLE
from wukong.seeds import derived_seed, permutation

# What every request asks is written once, with places for the values: to build such a statement costs more than to run
# it.
_ANNOTATOR, _PROJECT, _TASK = (sa.bindparam(name, type_=sa.Integer) for name in ("annotator", "project", "task"))
_TIME = sa.bindparam("time", type_=sa.Float)
_OVERLAP = sa.bindparam("overlap", type_=sa.Integer)
_LOW, _HIGH, _POINT = (sa.bindparam(name, type_=sa.BigInteger) for name in ("low", "high", "point"))
_BELOW = sa.bindparam("below", type_=sa.Float)
_MINE = sa.and_(Assignment.annotator_id == _ANNOTATOR, Assignment.project_id == _PROJECT)

_IN_HAND = (
    sa.select(Assignment)
    .where(_MINE, Assignment.state == "leased", Assignment.expires_at > _TIME)
    .order_by(Assignment.leased_at, Assignment.id)
    .limit(sa.bindparam("count", type_=sa.Integer))
)
_HANDED_OUT = sa.select(sa.func.count()).select_from(Assignment).where(_MINE)


def _taken(task: type[Task]) -> sa.ScalarSelect[int]:
    """How many others hold the task on lease."""
    return (
        sa.select(sa.func.count())
        .select_from(Assignment)
        .where(
            Assignment.task_id == task.id,
            Assignment.state == "leased",
            Assignment.expires_at > _TIME,
            Assignment.annotator_id != _ANNOTATOR,
        )
        .correlate(task)
        .scalar_subquery()
    )


_PLACES_TAKEN = sa.select(Task.n_labels + _taken(Task)).where(Task.id == _TASK)
_EARLIER_LEASE = sa.select(Assignment).where(Assignment.task_id == _TASK, Assignment.annotator_id == _ANNOTATOR)
_DONE = sa.select(sa.func.count()).select_from(Assignment).where(_MINE, Assignment.state == "done")
_OPEN = sa.select(sa.func.count()).select_from(Task).where(Task.project_id == _PROJECT, Task.open, ~Task.is_gold)
_OPEN_AND_SEEN = (
    sa.select(sa.func.count())
    .select_from(Assignment)
    .join(Task, Task.id == Assignment.task_id)
    .where(_MINE, Assignment.state != "leased", Task.open, ~Task.is_gold)
)
_PROGRESS = sa.select(*(query.scalar_subquery() for query in (_DONE, _OPEN, _OPEN_AND_SEEN)))


def _to_be_had(is_gold: bool, task: type[Task]) -> tuple[sa.ColumnElement[bool], ...]:
    """The conditions of a task that this person may get."""
    seen = (
        sa.exists()
        .where(
            Assignment.task_id == task.id,
            Assignment.annotator_id == _ANNOTATOR,
            sa.or_(Assignment.state != "leased", Assignment.expires_at > _TIME),
        )
        .correlate(task)
    )
    needed = () if is_gold else (task.open, task.n_labels + _taken(task) < _OVERLAP)
    return task.project_id == _PROJECT, task.is_gold == is_gold, ~seen, *needed


@cache
def _highest_priority(is_gold: bool) -> sa.Select[float]:
    """The highest priority, below a bound, of which there is such a task."""
    task = aliased(Task)
    query = sa.select(task.priority).where(*_to_be_had(is_gold, task), task.priority < _BELOW)
    return query.order_by(task.priority.desc()).limit(1)


@cache
def _candidate(is_gold: bool, active_selection: bool) -> sa.Select[Task]:
    """The first such task, of the highest priority below a bound, on a part of the ring."""
    priority = _highest_priority(is_gold).scalar_subquery()
    query = sa.select(Task).where(*_to_be_had(is_gold, Task), Task.priority == priority)
    query = query.where(Task.shuffle >= _LOW, Task.shuffle < _HIGH).options(joinedload(Task.prompt, innerjoin=True))
    if active_selection:
        query = query.order_by(Task.uncertainty.desc(), Task.shuffle < _POINT)
    query = query.order_by(Task.shuffle).limit(1)  # and by nothing after it: the index is to end the search
    # PostgreSQL hands no two people the same row here; the others skip it.
    return query.with_for_update(of=Task, skip_locked=True)


def next_assignments(session: Session, project: Project, annotator: Annotator, count: int = 1) -> list[Assignment]:
    """Up to `count` tasks for this person, on lease: first those in hand already, then new ones."""
    time = now()
    values = {"annotator": annotator.id, "project": project.id, "time": time, "count": count}
    held = list(session.scalars(_IN_HAND, values))
    for assignment in held:
        assignment.expires_at = time + project.lease_seconds
    while len(held) < count:
        task = _next_task(session, project, annotator, time)
        if task is None:
            break
        held.append(lease(session, project, annotator, task, time))
    session.flush()
    return held


def _next_task(session: Session, project: Project, annotator: Annotator, time: float) -> Task | None:
    values = {"annotator": annotator.id, "project": project.id, "time": time}
    handed_out = session.scalar(_HANDED_OUT, values)
    gold_turn = derived_seed("gold", annotator.id, project.id, handed_out) / 2**63 < project.gold_rate
    point = derived_seed("order", project.id, annotator.id, handed_out) % SHUFFLE
    values |= {"overlap": project.overlap, "point": point}
    for is_gold in (True, False) if gold_turn else (False,):
        while (task := _drawn(session, project, is_gold, values)) is not None:
            # The row may have become ours just after its last place was taken: count again, now that it is locked.
            if is_gold or _has_place(session, project, task, annotator, time):
                return task
    return None


def _drawn(session: Session, project: Project, is_gold: bool, values: dict[str, Any]) -> Task | None:
    """A task of the highest priority; of a lower one where others are just taking all the rows of that."""
    query, point = _candidate(is_gold, project.active_selection), values["point"]
    parts = [(0, SHUFFLE)] if project.active_selection else [(point, SHUFFLE), (0, point)]
    below: float | None = math.inf
    while below is not None:
        for low, high in parts:
            task = session.scalar(query, {**values, "below": below, "low": low, "high": high})
            if task is not None:
                return task
        below = session.scalar(_highest_priority(is_gold), {**values, "below": below})
    return None


def _has_place(session: Session, project: Project, task: Task, annotator: Annotator, time: float) -> bool:
    taken = session.scalar(_PLACES_TAKEN, {"task": task.id, "annotator": annotator.id, "time": time})
    return taken is not None and taken < project.overlap


def lease(
    session: Session,
    project: Project,
    annotator: Annotator,
    task: Task,
    time: float,
    shown: Sequence[int] | None = None,
) -> Assignment:
    """The task in this person's hands; an earlier lease of theirs that expired is renewed, with its draft.

    shown: the order in which the person sees the answers, a random one when absent.
    """
    assignment = session.scalar(_EARLIER_LEASE, {"task": task.id, "annotator": annotator.id})
    if assignment is None:
        n = len(task.responses)
        order = permutation(n, "shown", project.id, task.external_id, annotator.id) if shown is None else shown
        assignment = Assignment(
            task=task,
            project_id=project.id,
            annotator_id=annotator.id,
            shown=[int(i) for i in order],
            draft=None,
        )
        session.add(assignment)
    assignment.state, assignment.leased_at, assignment.expires_at = "leased", time, time + project.lease_seconds
    session.flush()
    return assignment


def progress(session: Session, project_id: int, annotator: Annotator) -> dict[str, int]:
    """How many tasks of the project this person has judged, and how many more there are for them."""
    done, all_open, seen = session.execute(_PROGRESS, {"annotator": annotator.id, "project": project_id}).one()
    return {"done": done, "left": all_open - seen}
