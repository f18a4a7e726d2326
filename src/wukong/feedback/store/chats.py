"""Conversations with models, thumbs for their answers, and the pairs of answers that people were shown there.

A conversation is a tree of turns: an edited message, or an answer that was drawn again, is kept beside the old one,
under the same parent. Nothing is ever changed. A pair (an answer and the one that was drawn again, or two models
in the arena) is an ordinary pairwise task in a project of the studio's own, whose overlap is 0: it is in the hands of
whoever saw it being written, and never handed to anybody else. So sides, drafts, judgments, quality and export are
those of `queue`, `labels` and `exchange`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased, selectinload

from wukong.errors import UsageError
from wukong.feedback.store.database import Store, insert_new
from wukong.feedback.store.labels import LONGEST_COMMENT, ConflictError, NotFoundError
from wukong.feedback.store.queue import lease
from wukong.feedback.store.tables import (
    Annotator,
    Assignment,
    ChatTurn,
    Label,
    Project,
    PromptRow,
    ResponseRow,
    Setting,
    Task,
    TaskResponse,
    VoteRow,
    check_text,
    now,
)
from wukong.feedback.store.tasks import SHUFFLE, add_response, create_project
from wukong.records import Message, Messages, Response, Vote
from wukong.seeds import derived_seed

Place = Literal["Chat", "Arena"]
LONGEST_MESSAGE = 20_000


def own_project(session: Session, place: Place) -> Project:
    """The studio's own project for the pairs of the chat or of the arena, made on first use."""
    setting = f"project:{place}"
    insert_new(session, Setting, [{"name": setting, "value": ""}])
    row = session.scalars(sa.select(Setting).where(Setting.name == setting).with_for_update()).one()
    if row.value:
        return session.get_one(Project, int(row.value))
    taken = set(session.scalars(sa.select(Project.name).where(Project.name.startswith(place))))
    name = next(name for n in range(1, len(taken) + 2) if (name := place if n == 1 else f"{place} {n}") not in taken)
    project = create_project(session, name, "pairwise", overlap=0)
    row.value = str(project.id)
    session.flush()
    return project


def own_project_in(store: Store, place: Place) -> Project:
    """The same, without waiting for the writer where there is one already, as a page must not."""
    with store.read() as session:
        made = session.scalar(sa.select(Setting.value).where(Setting.name == f"project:{place}"))
        if made:
            return session.get_one(Project, int(made))
    with store.write() as session:
        return own_project(session, place)


def add_pair(
    session: Session,
    project: Project,
    person: Annotator,
    external_id: str,
    responses: Sequence[str],
    shown: Sequence[int],
) -> Assignment:
    """Two answers to one prompt, by their ids in the store, in the hands of the person who saw them in the order
    `shown` (a permutation of 0 and 1)."""
    prompt_id = session.get_one(ResponseRow, responses[0]).prompt_id
    task = Task(
        project_id=project.id,
        prompt_id=prompt_id,
        external_id=external_id,
        shuffle=derived_seed("task", project.id, external_id) % SHUFFLE,
        open=False,
        gold=None,
    )
    session.add(task)
    session.flush()
    session.add_all(TaskResponse(task_id=task.id, position=i, response_id=one) for i, one in enumerate(responses))
    session.flush()
    return lease(session, project, person, task, now(), shown)


# ------------------------------------------------------------------------------------------------------ conversations


def turn_of(session: Session, person: Annotator, turn_id: int) -> ChatTurn:
    """This person's turn. Raises NotFoundError for another's, or none."""
    turn = session.get(ChatTurn, turn_id)
    if turn is None or turn.annotator_id != person.id:
        raise NotFoundError("there is no such turn of yours")
    return turn


def ask(session: Session, person: Annotator, conversation: str, parent: int | None, content: str) -> ChatTurn:
    """A message of the person.

    Args:
        conversation: its name, chosen by the client that begins it.
        parent: the answer that it follows; None at the beginning.

    Raises:
        NotFoundError: the conversation, or the parent, is another's. UsageError: an empty or too long message.
    """
    check_message(session, person, conversation, parent, content)
    return _added(session, person, conversation, parent, "user", content)


def check_message(session: Session, person: Annotator, conversation: str, parent: int | None, content: str) -> None:
    """Raises as `ask`, and writes nothing."""
    check_text(content)
    if not content.strip() or len(content) > LONGEST_MESSAGE:
        raise UsageError("a message has 1 to {n} characters", n=LONGEST_MESSAGE)
    others = sa.select(ChatTurn.id).where(
        ChatTurn.conversation == conversation, ChatTurn.annotator_id != person.id
    )  # fmt: skip
    if session.scalar(others.limit(1)) is not None:
        raise NotFoundError("there is no such conversation of yours")
    if parent is not None:
        before = turn_of(session, person, parent)
        if (before.conversation, before.role) != (conversation, "assistant"):
            raise NotFoundError("a message follows an answer of the same conversation")


def question(session: Session, person: Annotator, conversation: str, turn_id: int) -> ChatTurn:
    """The person's message that is to be answered (again). Raises NotFoundError for what is none of theirs."""
    turn = turn_of(session, person, turn_id)
    if (turn.conversation, turn.role) != (conversation, "user"):
        raise NotFoundError("there is no such message in this conversation")
    return turn


def history(session: Session, turn: ChatTurn) -> Messages:
    """What was said up to this turn, from the first one on."""
    rows = session.scalars(sa.select(ChatTurn).where(ChatTurn.conversation == turn.conversation))
    by_id = {row.id: row for row in rows}
    path = [turn]
    while (parent := path[-1].parent_id) is not None:
        path.append(by_id[parent])
    return [Message.model_validate({"role": one.role, "content": one.content}) for one in reversed(path)]


def answer(session: Session, person: Annotator, asked: ChatTurn, response: Response) -> ChatTurn:
    """A model's answer to a message."""
    name = add_response(session, response)
    return _added(session, person, asked.conversation, asked.id, "assistant", response.text, name)


def _added(
    session: Session,
    person: Annotator,
    conversation: str,
    parent: int | None,
    role: str,
    content: str,
    response_id: str | None = None,
) -> ChatTurn:
    turn = ChatTurn(
        conversation=conversation,
        parent_id=parent,
        annotator_id=person.id,
        role=role,
        content=content,
        response_id=response_id,
    )
    session.add(turn)
    session.flush()
    return turn


@dataclass(frozen=True)
class Heading:
    """A conversation in a list."""

    conversation: str
    title: str
    annotator: str
    created_at: float


def conversations(session: Session, person: Annotator | None, page: int = 1, size: int = 50) -> list[Heading]:
    """A page of a person's conversations, or everybody's, the one begun last first."""
    first = sa.select(sa.func.min(ChatTurn.id)).group_by(ChatTurn.conversation)
    query = (
        sa.select(ChatTurn, Annotator.name)
        .join(Annotator, Annotator.id == ChatTurn.annotator_id)
        .where(ChatTurn.id.in_(first))
        .order_by(ChatTurn.id.desc())
        .limit(size)
        .offset((page - 1) * size)
    )
    if person is not None:
        query = query.where(ChatTurn.annotator_id == person.id)
    return [Heading(t.conversation, t.content[:120], name, t.created_at) for t, name in session.execute(query)]


@dataclass(frozen=True)
class Turn:
    """One turn with what is known of it; the last fields are an answer's."""

    id: int
    parent: int | None
    role: str
    content: str
    model: str = ""
    sampling: dict[str, Any] | None = None
    finish_reason: str = ""
    vote: int = 0
    reason: str = ""


def turns(session: Session, reader: Annotator, conversation: str) -> list[Turn]:
    """All turns of a conversation, in the order they were said.

    Raises NotFoundError when there is none, or it is another's and the reader no admin.
    """
    rows = session.scalars(
        sa.select(ChatTurn).where(ChatTurn.conversation == conversation).order_by(ChatTurn.id)
    ).all()  # fmt: skip
    if not rows or (reader.role != "admin" and any(row.annotator_id != reader.id for row in rows)):
        raise NotFoundError("there is no such conversation of yours")
    names = [row.response_id for row in rows if row.response_id]
    responses = {one.id: one for one in session.scalars(sa.select(ResponseRow).where(ResponseRow.id.in_(names)))}
    said = sa.select(VoteRow).where(VoteRow.response_id.in_(names), VoteRow.annotator_id == rows[0].annotator_id)
    votes = {vote.response_id: vote for vote in session.scalars(said.where(_last_vote()))}
    return [_turn(row, responses, votes) for row in rows]


def is_of(session: Session, person: Annotator, conversation: str) -> bool:
    """Whether it is this person's, who may go on with it."""
    whose = sa.select(ChatTurn.annotator_id).where(ChatTurn.conversation == conversation).limit(1)
    return session.scalar(whose) == person.id


def _turn(row: ChatTurn, responses: dict[str, ResponseRow], votes: dict[str, VoteRow]) -> Turn:
    if row.response_id is None:
        return Turn(row.id, row.parent_id, row.role, row.content)
    one, vote = responses[row.response_id], votes.get(row.response_id)
    more = (one.model, one.sampling, one.finish_reason)
    said = (vote.vote, vote.reason) if vote else (0, "")
    return Turn(row.id, row.parent_id, row.role, row.content, *more, *said)


@dataclass(frozen=True)
class SpokenAnswer:
    """An answer of the chat or the arena, with what is needed to read it as its model did."""

    model: str
    messages: Messages
    text: str
    finished: bool
    temperature: float


def spoken(session: Session, reader: Annotator, turn_id: int) -> SpokenAnswer:
    """Raises NotFoundError for a turn that is no answer, or another's and the reader no admin."""
    turn = session.get(ChatTurn, turn_id)
    if turn is None or turn.response_id is None or (reader.role != "admin" and turn.annotator_id != reader.id):
        raise NotFoundError("there is no such answer of yours")
    return _spoken(session.get_one(ResponseRow, turn.response_id), history(session, turn)[:-1])


def _spoken(row: ResponseRow, messages: Messages) -> SpokenAnswer:
    temperature = float(row.sampling.get("temperature", 1.0))
    return SpokenAnswer(row.model, messages, row.text, row.finish_reason == "stop", temperature)


def check_pair(session: Session, person: Annotator, name: str, against: int | None, asked: int | None) -> None:
    """Whether a pair of this name can be made with an earlier answer, before the new one is drawn.

    Args:
        against: the earlier answer; None where there will be no pair.
        asked: the message that both answer.

    Raises:
        NotFoundError: the earlier one is another's, or answers something else. ConflictError: the name is in use.
    """
    check_text(name)
    if against is not None:
        old = turn_of(session, person, against)
        if old.parent_id != asked or old.role != "assistant":
            raise NotFoundError("there is no such answer to this message")
    if session.scalar(sa.select(Task.id).where(Task.external_id == name, Task.project_id.in_(_own_ids(session)))):
        raise ConflictError("this client id is another answer's")


def _own_ids(session: Session) -> list[int]:
    values = session.scalars(sa.select(Setting.value).where(Setting.name.startswith("project:")))
    return [int(value) for value in values if value]


def drawn_again(
    session: Session, person: Annotator, turn: ChatTurn, before: int, place: int, name: str
) -> Assignment | None:
    """The pair of an answer and an earlier one to the same message, in the person's hands; None where there is nothing
    to compare, because one says nothing or both the same.

    Args:
        turn: the new answer, the task's index 1.
        before: the earlier one, index 0.
        place: where the person sees the new one, 0 left or 1 right.
        name: the task's external id.

    Raises NotFoundError when the earlier one is another's, or answers something else.
    """
    old = turn_of(session, person, before)
    if old.parent_id != turn.parent_id or old.role != "assistant" or old.id == turn.id:
        raise NotFoundError("there is no such answer to this message")
    texts = {one.content.strip() for one in (old, turn)}
    if "" in texts or len(texts) < 2:
        return None
    responses = [str(one.response_id) for one in (old, turn)]
    return add_pair(session, own_project(session, "Chat"), person, name, responses, [1, 0] if place == 0 else [0, 1])


# --------------------------------------------------------------------------------------------------------------- votes


def vote(session: Session, person: Annotator, turn_id: int, client_id: str, thumb: int, reason: str = "") -> VoteRow:
    """A thumb for an answer in a conversation of this person: 1, -1, or 0 to take it back.

    Raises:
        NotFoundError: the turn is another's, or no answer.
        ConflictError: the client id is another vote's.
    """
    turn = turn_of(session, person, turn_id)
    if turn.response_id is None:
        raise NotFoundError("there is no such answer of yours")
    check_text(reason)
    if thumb not in (-1, 0, 1) or len(reason) > LONGEST_COMMENT:
        raise UsageError("a vote is 1, -1 or 0, with a reason of at most {n} characters", n=LONGEST_COMMENT)
    check_text(client_id)
    row = {
        "client_id": client_id, "response_id": turn.response_id, "annotator_id": person.id, "vote": thumb,
        "reason": reason, "created_at": now(),
    }  # fmt: skip
    same = sa.select(VoteRow).where(VoteRow.client_id == client_id)
    found = session.scalar(same)
    if found is None:  # so that the trigger that refuses to replace a vote is not asked about the same one again
        insert_new(session, VoteRow, [row])
        found = session.scalars(same).one()
    if (found.annotator_id, found.response_id, found.vote, found.reason) != (
        person.id, turn.response_id, thumb, reason
    ):  # fmt: skip
        raise ConflictError("this client id is another vote's")
    return found


def _last_vote() -> Any:
    later = aliased(VoteRow)
    return ~sa.exists().where(
        later.response_id == VoteRow.response_id, later.annotator_id == VoteRow.annotator_id, later.id > VoteRow.id
    )


def votes(session: Session) -> Iterator[Vote]:
    """Everybody's last thumb for each answer, as records."""
    query = (
        sa.select(VoteRow, ResponseRow, PromptRow, Annotator.name)
        .join(ResponseRow, ResponseRow.id == VoteRow.response_id)
        .join(PromptRow, PromptRow.id == ResponseRow.prompt_id)
        .join(Annotator, Annotator.id == VoteRow.annotator_id)
        .where(_last_vote(), VoteRow.vote != 0)
        .order_by(VoteRow.id)
    )
    for given, response, prompt, name in session.execute(query):
        thumb: Literal[1, -1] = 1 if given.vote == 1 else -1
        yield Vote(prompt=prompt.messages, response=response.text, vote=thumb, annotator=name, source="studio:chat")


# --------------------------------------------------------------------------------------------------------------- arena


@dataclass(frozen=True)
class Battle:
    """A judged pair of the arena: the models at its two indices, and the index that won (None: neither did)."""

    models: tuple[str, str]
    winner: int | None


def battles(session: Session, project: Project) -> list[Battle]:
    """All that count for ratings: the first judgment of each pair. A later correction does not, as the models' names
    were shown by then."""
    first, second = aliased(TaskResponse), aliased(TaskResponse)
    a, b = aliased(ResponseRow), aliased(ResponseRow)
    query = (
        sa.select(Label.value, a.model, b.model)
        .join(first, sa.and_(first.task_id == Label.task_id, first.position == 0))
        .join(second, sa.and_(second.task_id == Label.task_id, second.position == 1))
        .join(a, a.id == first.response_id)
        .join(b, b.id == second.response_id)
        .where(
            Label.project_id == project.id,
            Label.status == "given",
            Label.supersedes.is_(None),
            ~Label.adjudicates,
        )
        .order_by(Label.id)
    )
    return [Battle((x, y), value["winner"]) for value, x, y in session.execute(query) if value is not None]


def revealed(session: Session, person: Annotator, assignment_id: int) -> list[str]:
    """The models of a pair that this person has judged, in the order they were shown in.

    Raises NotFoundError for another's pair, ConflictError before it is judged.
    """
    return [one.model for one in _judged(session, person, assignment_id)]


def spoken_in_pair(session: Session, person: Annotator, assignment_id: int) -> list[SpokenAnswer]:
    """The answers of such a pair, in the same order. Raises as `revealed`."""
    rows = _judged(session, person, assignment_id)
    messages = [Message.model_validate(one) for one in session.get_one(PromptRow, rows[0].prompt_id).messages]
    return [_spoken(row, messages) for row in rows]


def _judged(session: Session, person: Annotator, assignment_id: int) -> list[ResponseRow]:
    found = session.get(
        Assignment, assignment_id, options=[selectinload(Assignment.task).selectinload(Task.responses)]
    )  # fmt: skip
    if found is None or found.annotator_id != person.id:
        raise NotFoundError("there is no such assignment of yours")
    if found.state != "done":
        raise ConflictError("judge first; the models' names are shown after that")
    return [found.task.responses[i].response for i in found.shown]
