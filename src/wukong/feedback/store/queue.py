"""Who gets which task next.

A task is handed out while its labels and the unexpired leases of others are fewer than the project's overlap, and
never twice to one person. Sooner come higher priorities, then, with active selection, what the reward models are
least sure of, then each annotator's own random order. A closed laptop blocks nothing: its lease ends, and the task
goes to somebody else; a label that arrives later all the same is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import sqlalchemy as sa
from sqlalchemy.orm import Session

from wukong.feedback.store.tables import Annotator, Assignment, Project, Task, now
from wukong.feedback.store.tasks import SHUFFLE
from wukong.seeds import derived_seed, permutation

# What every request asks is written once, with places for the values: to build such a statement costs more than to run
# it.
_ANNOTATOR, _PROJECT, _TASK = (sa.bindparam(name, type_=sa.Integer) for name in ("annotator", "project", "task"))
_TIME = sa.bindparam("time", type_=sa.Float)
_OVERLAP = sa.bindparam("overlap", type_=sa.Integer)
_A, _B = (sa.bindparam(name, type_=sa.BigInteger) for name in "ab")
_MINE = sa.and_(Assignment.annotator_id == _ANNOTATOR, Assignment.project_id == _PROJECT)

_IN_HAND = (
    sa.select(Assignment)
    .where(_MINE, Assignment.state == "leased", Assignment.expires_at > _TIME)
    .order_by(Assignment.leased_at, Assignment.id)
    .limit(sa.bindparam("count", type_=sa.Integer))
)
_HANDED_OUT = sa.select(sa.func.count()).select_from(Assignment).where(_MINE)
_TAKEN = (
    sa.select(sa.func.count())
    .select_from(Assignment)
    .where(
        Assignment.task_id == Task.id,
        Assignment.state == "leased",
        Assignment.expires_at > _TIME,
        Assignment.annotator_id != _ANNOTATOR,
    )
    .correlate(Task)
    .scalar_subquery()
)
"""How many others hold the task on lease."""
_PLACES_TAKEN = sa.select(Task.n_labels + _TAKEN).where(Task.id == _TASK)
_EARLIER_LEASE = sa.select(Assignment).where(Assignment.task_id == _TASK, Assignment.annotator_id == _ANNOTATOR)
_DONE = sa.select(sa.func.count()).select_from(Assignment).where(_MINE, Assignment.state == "done")
_LEFT = (
    sa.select(sa.func.count())
    .select_from(Task)
    .where(
        Task.project_id == _PROJECT,
        Task.open,
        ~Task.is_gold,
        Task.id.not_in(
            sa.select(Assignment.task_id).where(Assignment.annotator_id == _ANNOTATOR, Assignment.state != "leased")
        ),
    )
)


@cache
def _candidate(is_gold: bool, active_selection: bool) -> sa.Select[Task]:
    """The next of the tasks that this person may get."""
    seen = sa.exists().where(
        Assignment.task_id == Task.id,
        Assignment.annotator_id == _ANNOTATOR,
        sa.or_(Assignment.state != "leased", Assignment.expires_at > _TIME),
    )
    query = sa.select(Task).where(Task.project_id == _PROJECT, Task.is_gold == is_gold, ~seen)
    if not is_gold:
        query = query.where(Task.open, Task.n_labels + _TAKEN < _OVERLAP)
    own_order = (Task.shuffle * _A + _B) % SHUFFLE
    unsure = [Task.uncertainty.desc()] if active_selection else []
    query = query.order_by(Task.priority.desc(), *unsure, own_order, Task.id).limit(1)
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
    a, b = (derived_seed("order", part, project.id, annotator.id) % (SHUFFLE - 1) + 1 for part in "ab")
    values = {"annotator": annotator.id, "project": project.id, "time": time}
    handed_out = session.scalar(_HANDED_OUT, values)
    gold_turn = derived_seed("gold", annotator.id, project.id, handed_out) / 2**63 < project.gold_rate
    for is_gold in (True, False) if gold_turn else (False,):
        while True:
            query = _candidate(is_gold, project.active_selection)
            task = session.scalar(query, {**values, "overlap": project.overlap, "a": a, "b": b})
            if task is None:
                break
            # The row may have become ours just after its last place was taken: count again, now that it is locked.
            if is_gold or _has_place(session, project, task, annotator, time):
                return task
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
    """The task in this person's hands; an earlier lease of theirs that ended begins anew, with its draft.

    shown: the order in which the person sees the answers, a random one when absent.
    """
    assignment = session.scalar(_EARLIER_LEASE, {"task": task.id, "annotator": annotator.id})
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
    values = {"annotator": annotator.id, "project": project.id}
    done, left = session.scalar(_DONE, values), session.scalar(_LEFT, values)
    return {"done": done or 0, "left": left or 0}
