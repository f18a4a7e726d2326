"""Who gets which task next.

A task is handed out while its labels and the unexpired leases of others are fewer than the project's overlap, and
never twice to one person. Sooner come higher priorities, then, with active selection, what the reward models are
least sure of, then each annotator's own random order. A closed laptop blocks nothing: its lease ends, and the task
goes to somebody else; a label that arrives later all the same is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from wukong.feedback.store.tables import Annotator, Assignment, Project, Task, now
from wukong.feedback.store.tasks import SHUFFLE
from wukong.seeds import derived_seed, permutation


def next_assignments(session: Session, project: Project, annotator: Annotator, count: int = 1) -> list[Assignment]:
    """Up to `count` tasks for this person, on lease: first those in hand already, then new ones."""
    time = now()
    mine = sa.select(Assignment).where(
        Assignment.annotator_id == annotator.id,
        Assignment.project_id == project.id,
        Assignment.state == "leased",
        Assignment.expires_at > time,
    )
    held = list(session.scalars(mine.order_by(Assignment.leased_at, Assignment.id).limit(count)))
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
    handed_out = session.scalar(
        sa.select(sa.func.count())
        .select_from(Assignment)
        .where(Assignment.annotator_id == annotator.id, Assignment.project_id == project.id)
    )
    gold_turn = derived_seed("gold", annotator.id, project.id, handed_out) / 2**63 < project.gold_rate
    for is_gold in (True, False) if gold_turn else (False,):
        while True:
            # PostgreSQL hands no two people the same row here; the others skip it.
            query = _candidates(project, annotator, time, is_gold).limit(1).with_for_update(of=Task, skip_locked=True)
            task = session.scalar(query)
            if task is None:
                break
            # The row may have become ours just after its last place was taken: count again, now that it is locked.
            if is_gold or _has_place(session, project, task, annotator, time):
                return task
    return None


def _taken(annotator: Annotator, time: float) -> Any:
    """How many others hold the task on lease."""
    return (
        sa.select(sa.func.count())
        .select_from(Assignment)
        .where(
            Assignment.task_id == Task.id,
            Assignment.state == "leased",
            Assignment.expires_at > time,
            Assignment.annotator_id != annotator.id,
        )
        .correlate(Task)
        .scalar_subquery()
    )


def _candidates(project: Project, annotator: Annotator, time: float, is_gold: bool) -> sa.Select[Task]:
    """The tasks that this person may get, the next one first."""
    seen = sa.exists().where(
        Assignment.task_id == Task.id,
        Assignment.annotator_id == annotator.id,
        sa.or_(Assignment.state != "leased", Assignment.expires_at > time),
    )
    query = sa.select(Task).where(Task.project_id == project.id, Task.is_gold == is_gold, ~seen)
    if not is_gold:
        query = query.where(Task.open, Task.n_labels + _taken(annotator, time) < project.overlap)
    a, b = (derived_seed("order", part, project.id, annotator.id) % (SHUFFLE - 1) + 1 for part in "ab")
    own_order = (Task.shuffle * sa.literal(a, sa.BigInteger) + sa.literal(b, sa.BigInteger)) % SHUFFLE
    unsure = [Task.uncertainty.desc()] if project.active_selection else []
    return query.order_by(Task.priority.desc(), *unsure, own_order, Task.id)


def _has_place(session: Session, project: Project, task: Task, annotator: Annotator, time: float) -> bool:
    taken = session.scalar(sa.select(Task.n_labels + _taken(annotator, time)).where(Task.id == task.id))
    return taken is not None and taken < project.overlap


def lease(
    session: Session,
    project: Project,
    annotator: Annotator,
    task: Task,
    time: float,
    shown: Sequence[int] | None = None,
) -> Assignment:
    """The task in this person's hands; an earlier lease of theirs that ended begins anew, with its draft.

    shown: the order in which the person sees the answers, a random one when absent.
    """
    assignment = session.scalar(
        sa.select(Assignment).where(Assignment.task_id == task.id, Assignment.annotator_id == annotator.id)
    )
    if assignment is None:
        n = len(task.responses)
        order = permutation(n, "shown", project.id, task.external_id, annotator.id) if shown is None else shown
        assignment = Assignment(
            task_id=task.id,
            project_id=project.id,
            annotator_id=annotator.id,
            shown=[int(i) for i in order],
            draft=None,
        )
        session.add(assignment)
    assignment.state, assignment.leased_at, assignment.expires_at = "leased", time, time + project.lease_seconds
    session.flush()
    return assignment


def progress(session: Session, project: Project, annotator: Annotator) -> dict[str, int]:
    """How many tasks of the project this person has judged, and how many more there are for them."""
    mine = sa.select(Assignment.task_id).where(Assignment.annotator_id == annotator.id)
    done = session.scalar(
        sa.select(sa.func.count())
        .select_from(Assignment)
        .where(Assignment.annotator_id == annotator.id, Assignment.project_id == project.id, Assignment.state == "done")
    )
    left = session.scalar(
        sa.select(sa.func.count())
        .select_from(Task)
        .where(
            Task.project_id == project.id,
            Task.open,
            ~Task.is_gold,
            Task.id.not_in(mine.where(Assignment.state != "leased")),
        )
    )
    return {"done": done or 0, "left": left or 0}
