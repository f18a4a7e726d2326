"""The arena: two models answer side by side, a person says which is better, and only then learns which they were.

A battle is an ordinary judgment (`POST /api/labels`) of a task that the last event of its stream names. The sides are
drawn at random and stored with it. Ratings are Bradley-Terry's, as in `wukong compare`.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from wukong.errors import UsageError, WukongError
from wukong.feedback.store import chats
from wukong.feedback.store.database import Store
from wukong.feedback.store.tables import Annotator, Assignment
from wukong.feedback.store.tasks import add_response
from wukong.language import translate
from wukong.records import as_messages
from wukong.serve.events import EventStream, event
from wukong.web.access import CHANGE, Person
from wukong.web.inputs import Body, Id, in_turn
from wukong.web.language import language_of
from wukong.web.rendering import render_page
from wukong.web.state import Studio
from wukong.web.streams import SamplingBody

if TYPE_CHECKING:
    from wukong.serve.service import Answer

pages = APIRouter(include_in_schema=False)
api = APIRouter(prefix="/api", tags=["arena"])
ROUTERS = (pages, api)
FEWEST = 10
"""Below so many battles a model's interval would look narrower than it is."""


class Challenge(Body):
    client_id: str = Field(min_length=8, max_length=64)
    """A random id: names the battle, and stops it."""
    prompt: str = Field(min_length=1, max_length=chats.LONGEST_MESSAGE)


@pages.get("/arena")
def arena_page(request: Request, studio: Studio, person: Person) -> HTMLResponse:
    project = chats.own_project_in(studio.store, "Arena")
    return render_page(request, "arena", person=person, models=list(studio.models.sources()), project=project)


@api.post("/arena/battles", dependencies=CHANGE, response_class=StreamingResponse)
async def battle(request: Request, body: Challenge, studio: Studio, person: Person) -> EventStream:
    """Two models, drawn at random, answer a prompt; both answers are streamed as server-sent events.

    Pieces carry the `place` (0 left, 1 right) and the `text`, never the model. The last event names the `assignment` to
    be judged, or says that the answers are the `same`, which cannot be judged.
    """
    offered = list(studio.models.sources())
    if len(offered) < 2:
        raise UsageError("a battle takes two models: start the studio with a run that has them, or with --models")
    if not body.prompt.strip():
        raise UsageError("a message has 1 to {n} characters", n=chats.LONGEST_MESSAGE)
    studio.streams.admit(body.client_id, person)
    await run_in_threadpool(_check_name, studio.store, person, body.client_id)
    names = random.SystemRandom().sample(offered, 2)  # left, right
    messages = as_messages(body.prompt)
    served = [await studio.models.load(name) for name in names]
    drawings = [SamplingBody().drawing(one) for one in served]
    answers: list[Answer] = []
    try:
        for one, drawing in zip(served, drawings, strict=True):
            room = one.context - (drawing.max_new_tokens or 0)
            answers.append(await studio.models.service.chat(one.name, messages, drawing, max_prompt=room))
    except WukongError:  # the first answer is useless without the second
        for answer in answers:
            answer.cancel()
        raise
    writing = studio.streams.begin(body.client_id, person, answers)

    def save() -> Assignment:
        order = sorted((0, 1), key=lambda place: names[place])  # index in the task -> place: a pair has one order
        with studio.store.write() as session:
            responses = [
                add_response(
                    session, writing.response(body.client_id, place, messages, drawings[place], "studio:arena")
                )
                for place in order
            ]
            project = chats.own_project(session, "Arena")
            return chats.add_pair(
                session, project, person, body.client_id, responses, [order.index(place) for place in (0, 1)]
            )

    async def events() -> AsyncIterator[str]:
        try:
            async for place, text in writing.pieces():
                if text:
                    yield event({"place": place, "text": text})
            if writing.stopped:
                yield event({"stopped": True})
            elif writing.texts[0].strip() == writing.texts[1].strip():
                yield event({"same": True})
            else:
                pair = await in_turn(save)
                yield event({"assignment": pair.id})
        except WukongError as error:
            yield event({"error": translate(language_of(request), error)})

    return EventStream(events(), lambda: studio.streams.end(body.client_id))


def _check_name(store: Store, person: Annotator, name: str) -> None:
    with store.read() as session:
        chats.check_pair(session, person, name, None, None)


@api.get("/arena/battles/{assignment_id}")
def names(assignment_id: Id, studio: Studio, person: Person) -> list[str]:
    """Which models a battle of this person was between, from left to right; only once it is judged."""
    with studio.store.read() as session:
        return chats.revealed(session, person, assignment_id)


@api.get("/arena/ratings")
def ratings(studio: Studio, person: Person) -> list[dict[str, Any]]:
    """Bradley-Terry ratings of the models that have fought, the best first (see `wukong.studies.win_rates`)."""
    project = chats.own_project_in(studio.store, "Arena")
    with studio.store.read() as session:
        found = chats.battles(session, project)
    if studio.ratings is None or studio.ratings[0] != len(found):
        studio.ratings = (len(found), rated(found))
    return studio.ratings[1]


def rated(battles: Sequence[chats.Battle]) -> list[dict[str, Any]]:
    """A row for each model: rating on Elo's scale, its 95 % interval (None below ten battles), battles, win rate."""
    from wukong.studies import win_rates

    fought = Counter(name for battle in battles for name in battle.models)
    names = sorted(fought)
    if not names:
        return []
    outcomes: dict[tuple[str, str], np.ndarray] = {}  # (a, b) -> (N,) over all battles: NaN where another pair fought
    for i, battle in enumerate(battles):
        of_pair = outcomes.setdefault(battle.models, np.full(len(battles), np.nan))
        of_pair[i] = {0: 1.0, 1: 0.0, None: 0.5}[battle.winner]
    wins: dict[str, float] = defaultdict(float)
    for battle in battles:
        for i, name in enumerate(battle.models):
            wins[name] += 0.5 if battle.winner is None else float(battle.winner == i)
    found = win_rates.ratings(names, outcomes, seed=0)
    rows = [
        {
            "model": name,
            "rating": found[name]["rating"],
            "interval": found[name]["interval"] if fought[name] >= FEWEST else None,
            "battles": fought[name],
            "win_rate": wins[name] / fought[name],
        }
        for name in names
    ]
    return sorted(rows, key=lambda row: -row["rating"])
