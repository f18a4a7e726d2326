"""The tables of the label store.

Labels are append-only: a correction, an undo or an adjudication is a new row that says which one it supersedes, and
triggers in the database refuse to change or delete an old one. So everything needed for an audit stays: both texts,
the order they were shown in, who judged, when, for how long, and by which version of the guidelines.

Times are seconds since 1970, UTC. Indices of answers are the task's own (`TaskResponse.position`); the order in which
an annotator saw them is a permutation of these: `shown[0]` is the position of the answer on the left, or on top.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from wukong.errors import DataError
from wukong.strict_json import problem_in, problem_of_text

KINDS = ("pairwise", "ranking", "likert", "thumbs")
"""The kinds of task: two answers, 4 to 9 to be ordered, ratings from 1 to 7 with flags, a thumb for one answer."""

MOST_SHOWN = 9
"""As many answers as there are number keys."""


class StorableText(TypeDecorator[str]):
    """Text that both databases can keep. PostgreSQL takes no NUL and neither takes half a character; what one of them
    would refuse, or cut, is refused for both, with one clear line."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        if value is not None:
            check_text(value)
        return value


class StorableJSON(TypeDecorator[Any]):
    """A JSON value that both databases can keep and every reader can be sent: text as in `StorableText`, finite
    numbers, at most so deep. None becomes NULL."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        check_json(value)
        return value


def check_text(value: str) -> None:
    """Raises DataError for text that no database can keep."""
    if (problem := problem_of_text(value, nul=False)) is not None:
        raise DataError(problem, hint="remove it")


def check_json(value: Any) -> None:
    """Raises DataError for a value that cannot be kept or cannot be sent back."""
    if (found := problem_in(value, nul=False)) is not None:
        raise DataError(found[1], field=found[0] or None)


class Base(DeclarativeBase):
    type_annotation_map = {
        str: StorableText,
        float: Double,
        dict[str, Any]: StorableJSON(none_as_null=True),
        list[int]: StorableJSON,
        list[Any]: StorableJSON,
    }


def now() -> float:
    return time.time()


class Annotator(Base):
    """A person, or a name that came with imported labels (`role` "imported": it cannot sign in)."""

    __tablename__ = "annotators"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str] = mapped_column(default="annotator")
    active: Mapped[bool] = mapped_column(Boolean, default=True)
    created_at: Mapped[float] = mapped_column(default=now)


class Project(Base):
    """Tasks of one kind, with how they are handed out."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    overlap: Mapped[int] = mapped_column(Integer, default=1)
    """How many people judge each task; 0 for answers that are judged only where they were given (see `chats`)."""
    gold_rate: Mapped[float] = mapped_column(default=0.0)
    """Which part of the tasks handed out are ones whose answer is known."""
    lease_seconds: Mapped[float] = mapped_column(default=1800.0)
    """For so long a task is kept for the person who opened it."""
    active_selection: Mapped[bool] = mapped_column(Boolean, default=False)
    """Hand out first what the reward models are least sure of."""
    created_at: Mapped[float] = mapped_column(default=now)


class GuidelineVersion(Base):
    """What annotators are asked to do, in Markdown. A change is a new version."""

    __tablename__ = "guideline_versions"
    __table_args__ = (UniqueConstraint("project_id", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    version: Mapped[int]
    text: Mapped[str]
    author_id: Mapped[int | None] = mapped_column(ForeignKey("annotators.id"))
    created_at: Mapped[float] = mapped_column(default=now)


class PromptRow(Base):
    __tablename__ = "prompts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    messages: Mapped[list[Any]]
    text: Mapped[str]
    """The last message, for lists and searches."""
    source: Mapped[str] = mapped_column(default="")


class ResponseRow(Base):
    __tablename__ = "responses"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"), index=True)
    text: Mapped[str]
    model: Mapped[str] = mapped_column(default="")
    sampling: Mapped[dict[str, Any]] = mapped_column(default=dict)
    finish_reason: Mapped[str] = mapped_column(default="stop")
    n_tokens: Mapped[int] = mapped_column(Integer, default=0)
    source: Mapped[str] = mapped_column(default="")


class Task(Base):
    """Answers to one prompt, to be judged together. The last four columns follow from the labels, and change in the
    transaction that adds one."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("project_id", "external_id"),
        Index("ix_tasks_queue", "project_id", "is_gold", "open", "priority", "uncertainty"),
        Index("ix_tasks_ring", "project_id", "is_gold", "open", "priority", "shuffle"),
        Index("ix_tasks_disagreement", "project_id", "adjudicated", "disagreement"),
        Index("ix_tasks_list", "project_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    external_id: Mapped[str]
    """The name under which a task is added; adding it again adds nothing."""
    priority: Mapped[float] = mapped_column(default=0.0)
    uncertainty: Mapped[float] = mapped_column(default=0.0)
    """How unsure the reward models are of it, from 0 to 1."""
    shuffle: Mapped[int] = mapped_column(BigInteger)
    """A random number: the task's place on the ring from which annotators draw (see `queue`)."""
    is_gold: Mapped[bool] = mapped_column(Boolean, default=False)
    gold: Mapped[dict[str, Any] | None]
    """The known answer, a value as in `values`."""
    created_at: Mapped[float] = mapped_column(default=now)
    open: Mapped[bool] = mapped_column(Boolean, default=True)
    """Whether it needs more labels (n_labels < overlap)."""
    n_labels: Mapped[int] = mapped_column(Integer, default=0)
    disagreement: Mapped[float] = mapped_column(default=0.0)
    adjudicated: Mapped[bool] = mapped_column(Boolean, default=False)

    prompt: Mapped[PromptRow] = relationship()
    project: Mapped[Project] = relationship()
    responses: Mapped[list[TaskResponse]] = relationship(order_by="TaskResponse.position")

    @property
    def texts(self) -> list[str]:
        """The answers in the task's own order."""
        return [one.response.text for one in self.responses]


class TaskResponse(Base):
    __tablename__ = "task_responses"

    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))

    response: Mapped[ResponseRow] = relationship(lazy="joined", innerjoin=True)


class Assignment(Base):
    """A task in one person's hands. `state`: leased, done or skipped; an expired lease no longer counts."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("task_id", "annotator_id"),
        Index("ix_assignments_person", "annotator_id", "project_id", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    state: Mapped[str] = mapped_column(default="leased")
    shown: Mapped[list[int]]
    draft: Mapped[dict[str, Any] | None]
    """An unfinished judgment, as the page left it."""
    leased_at: Mapped[float]
    expires_at: Mapped[float]

    task: Mapped[Task] = relationship()


class Label(Base):
    """One act of judging; see the module. `status`: given, skipped, or withdrawn (an undo)."""

    __tablename__ = "labels"
    __table_args__ = (
        UniqueConstraint("client_id"),
        UniqueConstraint("supersedes"),
        Index("ix_labels_task", "task_id"),
        Index("ix_labels_person", "annotator_id", "project_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(String(200))
    """Chosen by the client; the same id again adds nothing."""
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    status: Mapped[str]
    value: Mapped[dict[str, Any] | None]
    shown: Mapped[list[int]]
    seconds: Mapped[float | None]
    comment: Mapped[str] = mapped_column(default="")
    """What the annotator wrote; of a skipped task the reason."""
    flagged: Mapped[bool] = mapped_column(Boolean, default=False)
    adjudicates: Mapped[bool] = mapped_column(Boolean, default=False)
    """An admin's decision, which stands above the others."""
    guideline_id: Mapped[int | None] = mapped_column(ForeignKey("guideline_versions.id"))
    supersedes: Mapped[int | None] = mapped_column(ForeignKey("labels.id"))
    created_at: Mapped[float] = mapped_column(default=now)

    task: Mapped[Task] = relationship()
    annotator: Mapped[Annotator] = relationship()


class VoteRow(Base):
    """A thumb for an answer outside of a task, such as in the chat: append-only too. A person's last one of an answer
    counts; `vote` 0 takes it back."""

    __tablename__ = "votes"

    id: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(String(200), unique=True)
    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    vote: Mapped[int]
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float] = mapped_column(default=now)


class ChatTurn(Base):
    """One message of a conversation with a model. A regenerated or edited one has the same parent as the old one."""

    __tablename__ = "chat_turns"
    __table_args__ = (Index("ix_chat_turns_conversation", "conversation", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    conversation: Mapped[str] = mapped_column(String(64))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("chat_turns.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    role: Mapped[str]
    content: Mapped[str]
    response_id: Mapped[str | None] = mapped_column(ForeignKey("responses.id"))
    created_at: Mapped[float] = mapped_column(default=now)


class Invitation(Base):
    """A signed link for one person, once. The link holds the signature, the date and a random nonce; this row holds
    its use and a hash of the nonce, so that reading the database is not enough to make the link."""

    __tablename__ = "invitations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    nonce_hash: Mapped[str] = mapped_column(String(64), default="")
    """SHA-256; empty if made before links had a nonce: such a link does not work until it is renewed."""
    role: Mapped[str]
    annotator_id: Mapped[int | None] = mapped_column(ForeignKey("annotators.id"))
    """Set when an existing person is let in again."""
    note: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float] = mapped_column(default=now)
    expires_at: Mapped[float]
    used_at: Mapped[float | None]


class SessionRow(Base):
    """A signed-in browser. Only a hash of its cookie is kept: who reads the database cannot sign in with it."""

    __tablename__ = "sessions"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    created_at: Mapped[float] = mapped_column(default=now)
    expires_at: Mapped[float]

    annotator: Mapped[Annotator] = relationship()


class Setting(Base):
    """What the store itself must remember, such as the key that signs invitations."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str]
