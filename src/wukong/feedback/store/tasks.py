"""Projects, their guidelines, and the tasks in them: made of responses, or of answers that were compared elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypedDict

import sqlalchemy as sa
from sqlalchemy.orm import Session

from wukong.errors import DataError, UsageError
from wukong.feedback.store.database import insert_new
from wukong.feedback.store.tables import (
    KINDS,
    MOST_SHOWN,
    GuidelineVersion,
    Project,
    PromptRow,
    ResponseRow,
    Task,
    TaskResponse,
    check_text,
)
from wukong.feedback.store.values import checked
from wukong.records import Messages, Response, prompt_id
from wukong.seeds import derived_seed, permutation

SHUFFLE = 2**31 - 1
"""A prime: s -> (a s + b) mod p is another order of all s for every a, b (see `queue`)."""

FEWEST = {"pairwise": 2, "ranking": 4, "likert": 1, "thumbs": 1}
MOST = {"pairwise": 2, "ranking": MOST_SHOWN, "likert": MOST_SHOWN, "thumbs": 1}


@dataclass
class TaskDraft:
    """A task to be added.

    Attributes:
        prompt: the conversation that was answered; empty where only answers are compared.
        responses: the answers, 2 to 9 by kind, in any order: it is not the one shown.
        external_id: names the task within its project; by default a hash of prompt and answers.
        gold: the known answer as a value by index into `responses`, for a task that tests annotators.
        priority: the larger, the sooner.
    """

    prompt: Messages
    responses: Sequence[Response | str]
    external_id: str = ""
    gold: Mapping[str, Any] | None = None
    priority: float = 0.0
    source: str = ""


def create_project(session: Session, name: str, kind: str, **settings: Any) -> Project:
    """A new project. Raises UsageError for a name that is taken or a kind that is not known."""
    if kind not in KINDS:
        raise UsageError("the kind of task is {kind!r}; it must be one of {kinds}", kind=kind, kinds=", ".join(KINDS))
    if not name.strip():
        raise UsageError("a project needs a name")
    check_text(name)
    if session.scalar(sa.select(Project.id).where(Project.name == name.strip())) is not None:
        raise UsageError("there is a project {name!r} already", name=name.strip())
    project = Project(name=name.strip(), kind=kind)
    session.add(project)
    change_project(session, project, **settings)
    session.flush()
    return project


_LIMITS = {"overlap": (0, 100), "gold_rate": (0, 1), "lease_seconds": (10, 7 * 86400), "active_selection": (0, 1)}


def change_project(session: Session, project: Project, **settings: Any) -> None:
    """Sets overlap, gold_rate, lease_seconds, active_selection. Raises UsageError for a value out of range."""
    for name, value in settings.items():
        low, high = _LIMITS[name]
        if not low <= value <= high:
            raise UsageError(
                "{name} is {value}; it must lie between {low} and {high}", name=name, value=value, low=low, high=high
            )
        setattr(project, name, value)
    session.flush()
    if "overlap" in settings:
        session.execute(
            sa.update(Task).where(Task.project_id == project.id).values(open=Task.n_labels < project.overlap)
        )


def add_guidelines(session: Session, project: Project, text: str, author_id: int | None = None) -> GuidelineVersion:
    """The guidelines' next version; the same text again makes none."""
    before = guidelines(session, project.id)
    if before is not None and before.text == text:
        return before
    version = GuidelineVersion(
        project_id=project.id, version=1 if before is None else before.version + 1, text=text, author_id=author_id
    )
    session.add(version)
    session.flush()
    return version


NEWEST_GUIDELINES = (  # every label asks it: built once
    sa.select(GuidelineVersion)
    .where(GuidelineVersion.project_id == sa.bindparam("project", type_=sa.Integer))
    .order_by(GuidelineVersion.version.desc())
    .limit(1)
)


def guidelines(session: Session, project_id: int) -> GuidelineVersion | None:
    """The newest version."""
    return session.scalar(NEWEST_GUIDELINES, {"project": project_id})


# ----------------------------------------------------------------------------------------------------- adding tasks


def add_tasks(session: Session, project: Project, drafts: Iterable[TaskDraft]) -> int:
    """Adds the tasks that are not there yet, and what they are made of; returns how many those were.

    Raises DataError for a task with too few or too many answers, equal answers, or a gold answer that does not fit.
    """
    return sum(
        insert_tasks(session, project, [task_rows(project, one) for one in part]) for part in _parts(drafts, 500)
    )


def insert_tasks(session: Session, project: Project, rows: Sequence[TaskRows]) -> int:
    """Adds those of the tasks (`task_rows`) that are not there yet; returns how many those were."""
    insert_new(session, PromptRow, [row["prompt"] for row in rows])
    insert_new(session, ResponseRow, [one for row in rows for one in row["responses"]])
    is_open = project.overlap > 0
    count = insert_new(session, Task, [{**row["task"], "open": is_open} for row in rows])
    names = [row["task"]["external_id"] for row in rows]
    ids = dict(
        session.execute(
            sa.select(Task.external_id, Task.id).where(Task.project_id == project.id, Task.external_id.in_(names))
        ).all()
    )
    insert_new(
        session,
        TaskResponse,
        [
            {"task_id": ids[row["task"]["external_id"]], "position": place, "response_id": one["id"]}
            for row in rows
            for place, one in enumerate(row["responses"])
        ],
    )
    return count


def add_task(session: Session, project: Project, draft: TaskDraft) -> Task:
    """The task, added when its external id is new to the project."""
    add_tasks(session, project, [draft])
    return task_of(session, project, draft.external_id or _identity(draft))


def task_of(session: Session, project: Project, name: str) -> Task:
    """The project's task of this external id."""
    return session.scalars(sa.select(Task).where(Task.project_id == project.id, Task.external_id == name)).one()


def _parts(drafts: Iterable[TaskDraft], size: int) -> Iterator[list[TaskDraft]]:
    part: list[TaskDraft] = []
    for draft in drafts:
        part.append(draft)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _text(response: Response | str) -> str:
    return response if isinstance(response, str) else response.text


def content_hash(*parts: Any) -> str:
    """A name for what comes without one."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


def _identity(draft: TaskDraft) -> str:
    return content_hash([m.model_dump() for m in draft.prompt], [_text(one) for one in draft.responses])


class TaskRows(TypedDict):
    """What a task is in the database, but for what its project says at the time."""

    prompt: dict[str, Any]
    responses: list[dict[str, Any]]
    task: dict[str, Any]


def task_rows(project: Project, draft: TaskDraft) -> TaskRows:
    """The rows of a task. Raises DataError as `add_tasks`."""
    texts = [_text(one) for one in draft.responses]
    for text in [*texts, *(m.content for m in draft.prompt)]:
        check_text(text)
    if not FEWEST[project.kind] <= len(texts) <= MOST[project.kind]:
        few, many = FEWEST[project.kind], MOST[project.kind]
        wanted = str(few) if few == many else f"{few} to {many}"
        raise DataError("a {kind} task has {wanted} answers, not {n}", kind=project.kind, wanted=wanted, n=len(texts))
    if len(set(texts)) < len(texts):
        raise DataError("a task compares different answers; two of these are equal")
    prompt = prompt_id(draft.prompt)
    name = draft.external_id or _identity(draft)
    gold = None if draft.gold is None else checked(project.kind, dict(draft.gold), len(texts))
    return {
        "prompt": {
            "id": prompt,
            "messages": [m.model_dump() for m in draft.prompt],
            "text": draft.prompt[-1].content if draft.prompt else "",
            "source": draft.source,
        },
        "responses": [_response_row(prompt, one, draft.source) for one in draft.responses],
        "task": {
            "project_id": project.id,
            "prompt_id": prompt,
            "external_id": name,
            "priority": draft.priority,
            "shuffle": derived_seed("task", project.id, name) % SHUFFLE,
            "is_gold": gold is not None,
            "gold": gold,
        },
    }


def _response_row(prompt: str, response: Response | str, source: str) -> dict[str, Any]:
    """A response by its own id; a text without one, or an id that means another text elsewhere, by its content."""
    if isinstance(response, str):
        return {
            "id": content_hash(prompt, response), "prompt_id": prompt, "text": response, "model": "", "sampling": {},
            "finish_reason": "stop", "n_tokens": 0, "source": source,
        }  # fmt: skip
    return {
        "id": content_hash(prompt, response.id, response.text),
        "prompt_id": prompt,
        "text": response.text,
        "model": response.model,
        "sampling": response.sampling.model_dump(),
        "finish_reason": response.finish_reason,
        "n_tokens": response.n_tokens,
        "source": response.source,
    }


def add_response(session: Session, response: Response) -> str:
    """The id in the store of a response, which is added with its prompt when it is new."""
    for text in (response.text, *(message.content for message in response.messages)):
        check_text(text)
    prompt = {
        "id": response.prompt_id,
        "messages": [message.model_dump() for message in response.messages],
        "text": response.messages[-1].content,
        "source": response.source,
    }
    row = _response_row(response.prompt_id, response, response.source)
    insert_new(session, PromptRow, [prompt])
    insert_new(session, ResponseRow, [row])
    return str(row["id"])


def drafts_of(kind: str, responses: Iterable[Response], per_prompt: int = 0, seed: int = 0) -> Iterator[TaskDraft]:
    """Tasks of the answers to each prompt: answers with the same text count once, empty ones not at all.

    Args:
        kind: pairwise makes pairs, ranking and likert show up to 9 answers together, thumbs one at a time.
        per_prompt: of a prompt's pairs, or of its answers for the other kinds, so many at most, drawn by the seed;
            0 takes all. A ranking of more than 9 takes 9.
        seed: of that draw.
    """
    by_prompt: dict[str, dict[str, Response]] = defaultdict(dict)
    for response in responses:
        if response.text.strip():
            by_prompt[response.prompt_id].setdefault(response.text, response)
    for name, answers in by_prompt.items():
        all_of_them = list(answers.values())
        if kind == "pairwise":
            groups: Iterable[tuple[Response, ...]] = combinations(all_of_them, 2)
            groups = _drawn(list(groups), per_prompt, seed, name) if per_prompt else groups
        else:
            taken = _drawn(all_of_them, per_prompt if kind == "thumbs" else per_prompt or MOST_SHOWN, seed, name)
            groups = [(one,) for one in taken] if kind == "thumbs" else [tuple(taken[:MOST_SHOWN])]
        for group in groups:
            if len(group) >= FEWEST[kind]:
                yield TaskDraft(group[0].messages, group, source=group[0].source)


def _drawn(items: list[Any], count: int, seed: int, name: str) -> list[Any]:
    if not count or len(items) <= count:
        return items
    return [items[i] for i in sorted(permutation(len(items), seed, "task", name)[:count])]
