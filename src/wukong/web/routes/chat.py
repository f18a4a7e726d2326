"""The chat: a person talks to a model of the run, says what they think of its answers, and has them drawn again.

An answer that was drawn again appears beside the one before it, and "which is better" is an ordinary judgment
(`POST /api/labels`) of a task that the answer's last event names. Everybody reads their own conversations; admins all.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, HTMLResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from wukong.errors import WukongError
from wukong.feedback.store import chats
from wukong.feedback.store.database import Store
from wukong.feedback.store.exchange import export_votes
from wukong.feedback.store.labels import LONGEST_COMMENT, ConflictError
from wukong.feedback.store.tables import Annotator, ChatTurn
from wukong.language import translate
from wukong.records import Messages, as_messages
from wukong.run_models import example_prompts
from wukong.serve.events import EventStream, event
from wukong.web.access import CHANGE, Admin, Person
from wukong.web.inputs import Id, Name, WithClientId, in_turn, writes
from wukong.web.language import language_of
from wukong.web.rendering import render_page
from wukong.web.state import Studio
from wukong.web.streams import SamplingBody

pages = APIRouter(include_in_schema=False)
api = APIRouter(prefix="/api", tags=["chat"])
ROUTERS = (pages, api)
Conversation = Annotated[str, Path(pattern="^[0-9a-z]{16,64}$")]


class Asked(SamplingBody):
    client_id: str = Field(min_length=8, max_length=64)
    """A random id, by which the answer can be stopped while it is written."""
    model: Name
    content: str | None = Field(None, max_length=chats.LONGEST_MESSAGE)
    """A message to be said first; when absent, `parent` is the message to be answered (again)."""
    parent: Id | None = None
    """The answer that the message follows, or the message to be answered."""
    against: Id | None = None
    """The earlier answer to the same message that the new one is to be compared with."""


class Thumb(WithClientId):
    vote: Literal[1, -1, 0]
    """0 takes it back."""
    reason: str = Field("", max_length=LONGEST_COMMENT)


class Said(BaseModel):
    turns: list[chats.Turn]
    mine: bool


@pages.get("/chat")
@pages.get("/chat/{conversation}")
def chat_page(request: Request, studio: Studio, person: Person) -> HTMLResponse:
    project = None
    if person.role == "admin":
        project = chats.own_project_in(studio.store, "Chat")
    run = studio.models.run_dir
    examples = example_prompts(run) if run else []
    models = list(studio.models.sources())
    return render_page(request, "chat", person=person, models=models, examples=examples, project=project)


@api.get("/chats")
def conversations(
    studio: Studio, person: Person, everybody: bool = False, page: Annotated[int, Field(ge=1, le=10**6)] = 1
) -> list[dict[str, Any]]:
    """A page of fifty of this person's conversations, the one begun last first; for admins everybody's, on demand."""
    with studio.store.read() as session:
        whose = None if everybody and person.role == "admin" else person
        return [asdict(heading) for heading in chats.conversations(session, whose, page)]


@api.get("/chats/{conversation}")
def conversation(conversation: Conversation, studio: Studio, person: Person) -> Said:
    """All turns of a conversation, also those that were edited or drawn again: a tree by `parent`."""
    with studio.store.read() as session:
        return Said(
            turns=chats.turns(session, person, conversation), mine=chats.is_of(session, person, conversation)
        )  # fmt: skip


@api.post("/chats/{conversation}/answers", dependencies=CHANGE, response_class=StreamingResponse)
async def answer(
    request: Request,
    conversation: Conversation,
    body: Asked,
    studio: Studio,
    person: Person,
) -> EventStream:
    """Says something, and streams the model's answer as server-sent events.

    The first one names the turn that is answered, then come pieces of `text`, the last one names the answer's turn,
    and where the answer was drawn again and can be compared, the `assignment` of the pair. An `error` ends the stream.
    """
    studio.streams.admit(body.client_id, person)
    served = await studio.models.load(body.model)
    drawing = body.drawing(served)
    messages = await run_in_threadpool(_conversation, studio.store, person, conversation, body)
    room = served.context - (drawing.max_new_tokens or 0)
    written = await studio.models.service.chat(body.model, messages, drawing, max_prompt=room)
    writing = studio.streams.begin(body.client_id, person, [written])
    try:  # only what is going to be answered is kept
        asked = await in_turn(lambda: _asked(studio.store, person, conversation, body))
        whole = len(await run_in_threadpool(served.tokenizer.prompt_ids, messages))
    except BaseException:
        studio.streams.end(body.client_id)
        raise
    place = secrets.randbelow(2)  # side of the new answer, when there are two
    saved = False

    def save() -> dict[str, Any]:
        nonlocal saved
        response = writing.response(body.client_id, 0, messages, drawing, "studio:chat")
        with studio.store.write() as session:
            turn = chats.answer(session, person, asked, response)
        saved = True  # whatever becomes of the pair
        pair = None
        if body.against is not None and not writing.stopped:
            with studio.store.write() as session:
                pair = chats.drawn_again(session, person, turn, body.against, place, body.client_id)
        return {
            "turn": turn.id,
            "finish_reason": "stopped" if writing.stopped else response.finish_reason,
            "seed": written.seed,
            "assignment": pair.id if pair else None,
        }

    async def events() -> AsyncIterator[str]:
        yield event({"asked": asked.id, "shortened": whole > written.prompt_tokens[0], "place": place})
        try:
            async for _, text in writing.pieces():
                if text:
                    yield event({"text": text})
            yield event(await in_turn(save))
        except WukongError as error:
            yield event({"error": translate(language_of(request), error)})

    def at_end() -> None:
        studio.streams.end(body.client_id)
        if writing.texts[0] and not saved:  # the page was left: what was said stays
            writing.stopped = True
            asyncio.get_running_loop().run_in_executor(None, save)

    return EventStream(events(), at_end)


def _conversation(store: Store, person: Annotator, conversation: str, body: Asked) -> Messages:
    """What is to be answered, to its last message, with every reason to refuse it: nothing is written here."""
    with store.read() as session:
        chats.check_pair(session, person, body.client_id, body.against, body.parent)
        if body.content is not None:
            chats.check_message(session, person, conversation, body.parent, body.content)
            before = [] if body.parent is None else chats.history(session, session.get_one(ChatTurn, body.parent))
            return [*before, *as_messages(body.content)]
        if body.parent is not None:
            return chats.history(session, chats.question(session, person, conversation, body.parent))
    raise ConflictError("there is nothing to answer")


def _asked(store: Store, person: Annotator, conversation: str, body: Asked) -> ChatTurn:
    """The message to be answered, kept when it is new."""
    with store.write() as session:
        if body.content is None:
            return chats.question(session, person, conversation, body.parent or 0)
        return chats.ask(session, person, conversation, body.parent, body.content)


@api.post("/answers/{client_id}/stop", dependencies=CHANGE, status_code=204)
async def stop(client_id: Name, studio: Studio, person: Person) -> None:
    """Ends an answer that is being written; what was said stays."""
    studio.streams.of(client_id, person).stop()


@api.post("/turns/{turn_id}/vote", dependencies=CHANGE)
@writes
def vote(turn_id: Id, body: Thumb, studio: Studio, person: Person) -> dict[str, int]:
    """A thumb for an answer of this person's conversations; the last one counts."""
    with studio.store.write() as session:
        row = chats.vote(session, person, turn_id, body.client_id, body.vote, body.reason)
        return {"vote": row.vote}


@api.get("/votes/export", response_class=FileResponse)
def export(studio: Studio, person: Admin, form: Literal["wukong", "trl", "csv"] = "wukong") -> FileResponse:
    """Everybody's thumbs of the chat as a file: the last one of each person and answer, which `wukong kto` reads, or
    as CSV every row."""
    directory = tempfile.TemporaryDirectory(prefix="wukong-export-")
    name = f"chat-votes-{form}.{'csv' if form == 'csv' else 'jsonl'}"
    path = FilePath(directory.name) / name
    with studio.store.read() as session:
        export_votes(session, path, form)
    return FileResponse(path, filename=name, background=BackgroundTask(directory.cleanup))
